"""Where the time went, for people and programs: in total, and request by request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from velollm.bench.statistics import spread
from velollm.profiling.trace import Trace, order

__all__ = ["facts", "render"]

BAR = 30
MARKS = "█▓▒░▞▚▤▥▦▧▨▩"
LONGEST_LIST = 20


def facts(traces: Sequence[Trace]) -> dict[str, Any]:
    """Seconds by phase over all requests and for each; `share` is of all time."""
    whole = sum(sum(trace.phases.values()) for trace in traces) or 1.0
    phases = {}
    for name in order(traces):
        values = spread(trace.phases.get(name, 0.0) for trace in traces)
        total = values.mean * values.count
        phases[name] = {
            "total": total, "share": total / whole, "mean": values.mean, "median": values.at(50), "p99": values.at(99),
        }  # fmt: skip
    return {
        "requests": len(traces),
        "phases": phases,
        "traces": [
            {
                "number": trace.number,
                "begin": trace.begin,
                "total": trace.total,
                "ttft": trace.ttft,
                "prompt_tokens": trace.prompt_tokens,
                "output_tokens": trace.output_tokens,
                "cached_tokens": trace.cached_tokens,
                "phases": dict(trace.phases),
            }
            for trace in traces
        ],
    }


def render(traces: Sequence[Trace]) -> str:
    """A table of the phases, and a bar for each request."""
    found = facts(traces)["phases"]
    lines = [f"{'':<14}{'share':>7}{'mean':>11}{'median':>11}{'p99':>11}   (ms)"]
    for name, one in found.items():
        bar = "█" * round(one["share"] * BAR)
        lines.append(
            f"{name:<14}{one['share']:>7.1%}{one['mean'] * 1000:>11.2f}{one['median'] * 1000:>11.2f}"
            f"{one['p99'] * 1000:>11.2f}   {bar}".rstrip()
        )
    lines += ["", *_bars(traces, list(found))]
    return "\n".join(lines) + "\n"


def _bars(traces: Sequence[Trace], names: list[str]) -> Iterator[str]:
    """The largest phases of each request, drawn to one scale."""
    sums = {name: sum(trace.phases.get(name, 0.0) for trace in traces) for name in names}
    shown = sorted(names, key=lambda name: -sums[name])[: len(MARKS)]
    marks = {name: MARKS[place] for place, name in enumerate(name for name in names if name in shown)}
    longest = max((sum(trace.phases.values()) for trace in traces), default=0.0) or 1.0
    yield "  ".join(f"{mark} {name}" for name, mark in marks.items() if sums[name] / longest * BAR * 2 >= 1)
    for trace in traces[:LONGEST_LIST]:
        bar = "".join(mark * round(trace.phases.get(name, 0.0) / longest * BAR * 2) for name, mark in marks.items())
        tokens = f"{trace.prompt_tokens:>6} -> {trace.output_tokens:<5}"
        yield f"{trace.number:>4} {tokens}{trace.total * 1000:>9.0f} ms  {bar}"
    if len(traces) > LONGEST_LIST:
        yield f"     and {len(traces) - LONGEST_LIST} more (--json, --trace)"
