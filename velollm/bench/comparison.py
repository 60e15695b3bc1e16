"""Two sets of runs against each other: what differs, by how much, and whether it could be chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, TypeAlias

import attrs
import orjson

from velollm.bench.statistics import Interval, bootstrap, per_second, percentile
from velollm.errors import ConfigError

__all__ = ["Comparison", "Difference", "compare", "read_runs", "render"]

JSON: TypeAlias = dict[str, Any]

SAME = ("profile", "model_id", "num_prompts", "max_concurrency", "request_rate", "burstiness")
MATTERS = 0.01  # a difference below one percent is none, however sure it is


@attrs.frozen(kw_only=True)
class Difference:
    """One figure of both sides; `ratio` is that of B by A. `better` is None where chance could explain it."""

    name: str
    unit: str
    one: float
    other: float
    ratio: Interval
    better: bool | None


@attrs.frozen(kw_only=True)
class Comparison:
    """All differences, the verdict in words, and what makes the comparison doubtful."""

    differences: tuple[Difference, ...]
    verdict: str
    doubts: tuple[str, ...]


def read_runs(text: bytes, name: str) -> list[JSON]:
    """The runs in a file that `--save` wrote, as JSON or JSON lines; vLLM's with `--save-detailed` as well.

    Raises `ConfigError` for anything else.
    """
    try:
        runs = [orjson.loads(text)]
    except orjson.JSONDecodeError:
        try:
            runs = [orjson.loads(line) for line in text.splitlines() if line.strip()]
        except orjson.JSONDecodeError:
            raise ConfigError(f"{name} is no result of a benchmark: JSON or JSON lines are wanted") from None
    for run in runs:
        if not isinstance(run, dict) or "duration" not in run:
            raise ConfigError(f"{name} is no result of a benchmark")
        if not all(isinstance(run.get(key), list) for key in ("ttfts", "output_lens", "errors")) or "itls" not in run:
            raise ConfigError(f"{name} holds no single requests: save it as .json or .jsonl (vLLM: --save-detailed)")
    if not runs:
        raise ConfigError(f"{name} is empty")
    return runs


def compare(ones: Sequence[JSON], others: Sequence[JSON], *, seed: int = 0, resamples: int = 1000) -> Comparison:
    """Runs A (`ones`) against runs B (`others`), by the bootstrap over runs and their requests at 95 %."""
    random = Random(seed)  # noqa: S311 -- no secret
    found = []
    for name, unit, values, figure, high_is_good in FIGURES:
        one, other = [values(run) for run in ones], [values(run) for run in others]
        if not any(one) or not any(other):
            continue
        ratio = bootstrap(one, other, figure, random=random, resamples=resamples)
        sure = ratio.excludes(1.0) and abs(ratio.value - 1) > MATTERS and not math.isnan(ratio.low)
        found.append(
            Difference(
                name=name,
                unit=unit,
                one=figure([value for run in one for value in run]),
                other=figure([value for run in other for value in run]),
                ratio=ratio,
                better=(ratio.value > 1) == high_is_good if sure else None,
            )
        )
    return Comparison(differences=tuple(found), verdict=_verdict(found), doubts=tuple(_doubts(ones, others)))


def _verdict(found: Sequence[Difference]) -> str:
    better = [one for one in found if one.better]
    worse = [one for one in found if one.better is False]
    if not better and not worse:
        return "no difference that these runs can show: what there is may be chance"
    if better and worse:
        return f"B is better in {_list(better)}, and worse in {_list(worse)}"
    return f"B is better: {_list(better)}" if better else f"B is worse: {_list(worse)}"


def _list(found: Sequence[Difference]) -> str:
    return ", ".join(f"{one.name} {(one.ratio.value - 1) * 100:+.1f} %" for one in found)


def _doubts(ones: Sequence[JSON], others: Sequence[JSON]) -> list[str]:
    found = []
    for key in SAME:
        one, other = ({str(run.get(key)) for run in runs} for runs in (ones, others))
        if one != other:
            found.append(f"{key} differs: {', '.join(sorted(one))} against {', '.join(sorted(other))}")
    for side, runs in (("A", ones), ("B", others)):
        failed = sum(bool(error) for run in runs for error in run["errors"])
        if failed:
            found.append(f"{failed} requests of {side} failed, and are not in the figures")
        if any((run.get("client") or {}).get("bottleneck") for run in runs):
            found.append(f"the load generator was the bottleneck in {side}")
    if len(ones) < 2 or len(others) < 2:
        found.append("one run a side says nothing of what differs from run to run: repeat both in turns, into .jsonl")
    return found


def _good(run: JSON) -> list[int]:
    return [number for number, error in enumerate(run["errors"]) if not error]


def _ttfts(run: JSON) -> list[float]:
    return [run["ttfts"][number] * 1000 for number in _good(run) if run["ttfts"][number]]


def _tpots(run: JSON) -> list[float]:
    return [
        sum(run["itls"][number]) / (run["output_lens"][number] - 1) * 1000
        for number in _good(run)
        if run["output_lens"][number] > 1
    ]


def _latencies(run: JSON) -> list[float]:
    return [(run["ttfts"][number] + sum(run["itls"][number])) * 1000 for number in _good(run)]


def _rates(run: JSON) -> list[float]:
    """Output tokens in each second of a run; the last one, which is not whole, is left out where there are others."""
    begins = run.get("start_times") or [0.0] * len(run["ttfts"])
    times, begin = [], min(begins, default=0.0)
    for number in _good(run):
        chunks = [run["ttfts"][number], *run["itls"][number]]
        weight = run["output_lens"][number] / len(chunks)
        now = begins[number]
        for gap in chunks:
            now += gap
            times.append((now, weight))
    whole = per_second((time for time, _ in times), begin)
    tokens = sum(weight for _, weight in times) / max(len(times), 1)
    if len(whole) > 2:
        whole.pop()
    return [count * tokens for count in whole]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _p99(values: Sequence[float]) -> float:
    return percentile(sorted(values), 99)


Figure: TypeAlias = tuple[str, str, Callable[[JSON], list[float]], Callable[[Sequence[float]], float], bool]
FIGURES: tuple[Figure, ...] = (
    ("throughput", "tok/s", _rates, _mean, True),
    ("mean TTFT", "ms", _ttfts, _mean, False),
    ("p99 TTFT", "ms", _ttfts, _p99, False),
    ("mean TPOT", "ms", _tpots, _mean, False),
    ("mean E2EL", "ms", _latencies, _mean, False),
    ("p99 E2EL", "ms", _latencies, _p99, False),
)


def render(comparison: Comparison, names: Mapping[str, str]) -> str:
    """A table, the verdict, and the doubts."""
    lines = [f"A {names['A']}", f"B {names['B']}", "", f"{'':<12}{'A':>12}{'B':>12}   B / A (95 %)"]
    for one in comparison.differences:
        mark = {True: "better", False: "worse", None: ""}[one.better]
        bounds = f"{one.ratio.value:.3f} ({one.ratio.low:.3f} to {one.ratio.high:.3f})"
        lines.append(f"{one.name:<12}{one.one:>12.2f}{one.other:>12.2f}   {bounds:<26} {one.unit:<6}{mark}".rstrip())
    lines += ["", comparison.verdict, *(f"note: {doubt}" for doubt in comparison.doubts)]
    return "\n".join(lines) + "\n"
