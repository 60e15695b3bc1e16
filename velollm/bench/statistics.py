"""Figures of many numbers, with NumPy's definitions but without NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from random import Random

import attrs

__all__ = ["Interval", "Spread", "bootstrap", "most_at_once", "per_second", "percentile", "spread"]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value at `percent` (0 to 100) of values in ascending order, linear between neighbours; 0 of none."""
    if not ordered:
        return 0.0
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@attrs.frozen(kw_only=True)
class Spread:
    """Mean, standard deviation (of the population) and percentiles of values; all 0 of none."""

    count: int
    mean: float
    std: float
    ordered: Sequence[float]

    def at(self, percent: float) -> float:
        """A percentile."""
        return percentile(self.ordered, percent)


def spread(values: Iterable[float]) -> Spread:
    """The spread of `values`."""
    ordered = sorted(values)
    count = len(ordered)
    mean = math.fsum(ordered) / count if count else 0.0
    variance = math.fsum((value - mean) ** 2 for value in ordered) / count if count else 0.0
    return Spread(count=count, mean=mean, std=math.sqrt(variance), ordered=ordered)


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """How many half-open spans (begin, end) overlap at most."""
    changes = sorted(change for begin, end in spans for change in ((begin, 1), (end, -1)))
    most = now = 0
    for _, step in changes:
        now += step
        most = max(most, now)
    return most


def per_second(times: Iterable[float], begin: float) -> list[int]:
    """How many of `times` fall into each whole second after `begin`."""
    counts: list[int] = []
    for time in times:
        second = int(time - begin)
        if second >= len(counts):
            counts.extend([0] * (second + 1 - len(counts)))
        counts[second] += 1
    return counts


@attrs.frozen(kw_only=True)
class Interval:
    """An estimate with the bounds that hold it at 95 % confidence."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return not self.low <= value <= self.high


def bootstrap(
    one: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    figure: Callable[[Sequence[float]], float],
    *,
    random: Random,
    resamples: int = 1000,
) -> Interval:
    """How `figure` of `other` relates to that of `one` (their ratio), by the percentile bootstrap (Efron 1979).

    Each side is a list of runs, each a list of values. Runs are drawn first and values within them after, so that runs
    that differ from each other widen the interval. `low` and `high` are NaN where a side has fewer than two values.
    """
    base, ours = figure(_flat(one)), figure(_flat(other))
    value = ours / base if base else math.nan
    if min(len(_flat(one)), len(_flat(other))) < 2:
        return Interval(value=value, low=math.nan, high=math.nan)
    ratios = []
    for _ in range(resamples):
        base, ours = figure(_drawn(one, random)), figure(_drawn(other, random))
        if base:
            ratios.append(ours / base)
    ratios.sort()
    return Interval(value=value, low=percentile(ratios, 2.5), high=percentile(ratios, 97.5))


def _drawn(runs: Sequence[Sequence[float]], random: Random) -> list[float]:
    chosen = runs if len(runs) == 1 else random.choices(runs, k=len(runs))
    return [value for run in chosen for value in random.choices(run, k=len(run))] if all(chosen) else _flat(chosen)


def _flat(runs: Sequence[Sequence[float]]) -> list[float]:
    return [value for run in runs for value in run]
