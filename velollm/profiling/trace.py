"""Spans of one request, and how its time divides among them. No clock, no I/O; all times in seconds.

    client ──▶ door ──▶ layers ──▶ scheduling ──▶ engine: network · load · prefill · decode

A span that is inside another is charged to itself alone: what a layer costs is what it takes less what is below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from velollm.bench.record import Record

__all__ = ["ENGINE", "PHASES", "Span", "Trace", "breakdown", "order", "placed", "trace_of"]

ENGINE = "engine"
# Before the names of layers, which come in their own order, and after them.
FIRST = ("client", "door")
LAST = ("queue", "network", "load", "prefill", "decode")
PHASES = (*FIRST, *LAST)


@attrs.define(kw_only=True)
class Span:
    """Something that took from `begin` to `end`; `busy` is how long it was waited for in between, below it included.

    `first` is when its first event came.
    """

    name: str
    begin: float
    end: float = 0.0
    first: float | None = None
    busy: float = 0.0


@attrs.define(kw_only=True)
class Trace:
    """One request: its spans outermost first, each around the next, and what it was like."""

    number: int
    begin: float
    end: float
    spans: Sequence[Span] = ()
    queued: float = 0.0
    ttft: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    engine: Mapping[str, float] = attrs.field(factory=dict)
    phases: Mapping[str, float] = attrs.field(factory=dict)

    @property
    def total(self) -> float:
        """How long it took."""
        return self.end - self.begin


def trace_of(record: Record, spans: Sequence[Span] = (), *, queued: float = 0.0) -> Trace:
    """What is known of a request from its record, and from spans inside the process where there are some."""
    trace = Trace(
        number=record.number,
        begin=record.sent,
        end=max(record.sent + record.latency, spans[0].end if spans else 0.0),
        spans=spans,
        queued=queued or record.phases.get("queue", 0.0),
        ttft=record.ttft,
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        cached_tokens=record.cached_tokens,
        engine=record.engine,
    )
    trace.phases = breakdown(trace, waited=record.waited, prefill=record.phases.get("prefill"))
    return trace


def placed(spans: Sequence[Span], begin: float, total: float) -> list[Span]:
    """Spans by another clock, moved so that the outermost lies in the middle of a request from `begin` on."""
    if not spans:
        return []
    shift = begin + max(0.0, total - (spans[0].end - spans[0].begin)) / 2 - spans[0].begin
    return [
        attrs.evolve(
            span,
            begin=span.begin + shift,
            end=span.end + shift,
            first=None if span.first is None else span.first + shift,
        )
        for span in spans
    ]


def breakdown(trace: Trace, *, waited: float = 0.0, prefill: float | None = None) -> dict[str, float]:
    """Seconds by phase, which add up to the whole; `waited` is the client's own time before it asked.

    `prefill` is the time to the first token behind the queue, as a proxy tells it; an engine's own word goes first.
    """
    found: dict[str, float] = {"client": waited}
    outer, before = trace.total, trace.ttft
    if trace.spans:
        outer = min(trace.total, trace.spans[0].busy)
        found["door"] = trace.total - outer
        for span, inner in zip(trace.spans, trace.spans[1:], strict=False):
            below = min(outer, inner.busy)  # what reads ahead is at work while what was read is passed on
            found[span.name] = found.get(span.name, 0.0) + outer - below
            outer = below
        last = trace.spans[-1]
        if last.name != ENGINE:  # it was answered before it came to an engine
            found[last.name] = found.get(last.name, 0.0) + outer
            return found
        before = min(outer, (last.first or last.end) - last.begin)
        _take(found, trace)
    else:
        found["queue"] = min(trace.queued, before)
        outer -= found["queue"]
        before -= found["queue"]
    return found | _engine(trace.engine, outer, before, prefill)


def _take(found: dict[str, float], trace: Trace) -> None:
    """The wait for a turn is a part of what the layer above the engine took."""
    above = trace.spans[-2].name if len(trace.spans) > 1 else "door"
    found["queue"] = min(trace.queued, found[above])
    found[above] -= found["queue"]


def _engine(said: Mapping[str, float], outer: float, before: float, prefill: float | None) -> dict[str, float]:
    """The engine's time: by its own words where they fit into what was seen, the rest being network (and its queue)."""
    load = min(said.get("load", 0.0), before)
    first = said.get("prefill", before - load if prefill is None else prefill)
    first = max(0.0, min(first, before - load))
    decode = min(said.get("decode", max(0.0, outer - before)), max(0.0, outer - load - first))
    return {"network": max(0.0, outer - load - first - decode), "load": load, "prefill": first, "decode": decode}


def order(traces: Sequence[Trace]) -> list[str]:
    """The phases that occur, from the client inwards."""
    inner = dict.fromkeys(name for trace in traces for name in trace.phases if name not in PHASES)
    used = {name for trace in traces for name, seconds in trace.phases.items() if seconds > 0}
    return [name for name in (*FIRST, *inner, *LAST) if name in used]
