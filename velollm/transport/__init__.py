"""HTTP to the engines: an own pooled transport, and `Upstream`, through which adapters see one server.

The seam is `httpx.AsyncBaseTransport`, called directly: any transport can take the place of `PooledTransport`.
"""

from velollm.transport.pool import PooledTransport
from velollm.transport.upstream import Upstream, UpstreamResponse

__all__ = ["PooledTransport", "Upstream", "UpstreamResponse"]
