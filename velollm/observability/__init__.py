"""What can be seen from outside: metrics under vLLM's names, one log line for each request, `server-timing`."""

from velollm.observability.layer import ObserveLayer
from velollm.observability.metrics import Metrics

__all__ = ["Metrics", "ObserveLayer"]
