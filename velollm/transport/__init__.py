"""HTTP to the engines: an own pooled transport, and `Upstream`, through which adapters see one server.

The seam is `httpx.AsyncBaseTransport`, called directly: any transport can take the place of `PooledTransport`.
"""

from velollm.transport.pool import PooledTransport
from velollm.transport.response import UpstreamResponse
from velollm.transport.upstream import Upstream

__all__ = ["PooledTransport", "Upstream", "UpstreamResponse"]
