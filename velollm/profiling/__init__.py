"""Where a request's time goes: spans, their sums, Perfetto's traces, and a live view of a running proxy."""

from velollm.profiling.trace import Span, Trace, breakdown

__all__ = ["Span", "Trace", "breakdown"]
