"""Traces in the format of Chrome's about:tracing, which Perfetto (ui.perfetto.dev) reads.

Format: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU; times are in
microseconds. Each request is a thread of its own, on which its spans lie in each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from velollm.profiling.trace import ENGINE, Trace

__all__ = ["chrome_trace"]


def chrome_trace(traces: Sequence[Trace], *, title: str = "velollm") -> dict[str, Any]:
    """The file as JSON; times count from the beginning of the first request."""
    begin = min((trace.begin for trace in traces), default=0.0)
    events: list[dict[str, Any]] = [_named("process_name", 0, title)]
    for trace in traces:
        events.append(_named("thread_name", trace.number + 1, f"request {trace.number}"))
        events += _spans(trace, begin)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _spans(trace: Trace, begin: float) -> Iterator[dict[str, Any]]:
    about = {
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
        "cached_tokens": trace.cached_tokens,
        **{f"{name}_ms": round(seconds * 1000, 3) for name, seconds in trace.phases.items()},
    }
    yield _event("request", trace.begin - begin, trace.total, trace.number, about)
    inside, end, first = trace.begin, trace.end, trace.begin + trace.ttft
    for span in trace.spans:
        yield _event(span.name, span.begin - begin, span.end - span.begin, trace.number, {"busy_ms": span.busy * 1000})
        if span.name == ENGINE:
            inside, end, first = span.begin, span.end, span.first or span.end
    if trace.spans and trace.spans[-1].name != ENGINE:
        return
    prefill, load, decode = (trace.phases.get(name, 0.0) for name in ("prefill", "load", "decode"))
    if not trace.spans and trace.queued:
        yield _event("queue", inside - begin, trace.queued, trace.number)
    if load:
        yield _event("load", max(inside, first - prefill - load) - begin, load, trace.number)
    yield _event("prefill", max(inside, first - prefill) - begin, min(prefill, first - inside), trace.number)
    yield _event("decode", first - begin, min(decode, max(end - first, 0.0)), trace.number)


def _event(name: str, at: float, seconds: float, number: int, args: dict[str, Any] | None = None) -> dict[str, Any]:
    found = {"name": name, "cat": "request", "ph": "X", "pid": 1, "tid": number + 1}
    times = {"ts": round(at * 1e6, 1), "dur": round(max(seconds, 0.0) * 1e6, 1)}
    return {**found, **times, "args": args or {}}


def _named(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": thread, "args": {"name": name}}
