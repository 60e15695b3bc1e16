"""Figures agree with NumPy's; the bootstrap finds what is there, and nothing else."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.bench.schedule import Schedule, due_times
from velollm.bench.statistics import bootstrap, most_at_once, per_second, percentile, spread
from velollm.errors import ConfigError

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(VALUES, st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


@given(VALUES)
def test_spreads_are_numpys(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == pytest.approx(float(np.mean(values)), abs=1e-6)
    assert found.std == pytest.approx(float(np.std(values)), rel=1e-6, abs=1e-4)
    assert found.at(50) == pytest.approx(float(np.median(values)), abs=1e-6)


def test_of_nothing() -> None:
    assert (spread([]).mean, spread([]).at(99), most_at_once([]), per_second([], 0)) == (0, 0, 0, [])


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=20))
def test_most_at_once(spans: list[tuple[int, int]]) -> None:
    every = [sum(begin <= now < begin + size for begin, size in spans) for now in range(40)]
    assert most_at_once((float(begin), float(begin + size)) for begin, size in spans) == max(every)


def test_per_second() -> None:
    assert per_second([10.0, 10.9, 12.1], 10.0) == [2, 0, 1]


def mean(values: object) -> float:
    return float(np.mean(values))  # type: ignore[arg-type]


def test_the_bootstrap_finds_a_difference_and_none() -> None:
    random = Random(1)
    one = [[random.gauss(100, 10) for _ in range(80)]]
    same = [[random.gauss(100, 10) for _ in range(80)]]
    faster = [[random.gauss(80, 10) for _ in range(80)]]
    assert not bootstrap(one, same, mean, random=random, resamples=300).excludes(1.0)
    found = bootstrap(one, faster, mean, random=random, resamples=300)
    assert found.excludes(1.0)
    assert found.low < 0.8 < found.high


def test_runs_that_differ_widen_the_interval() -> None:
    random = Random(2)
    steady = [[100.0 + number % 3 for number in range(30)] for _ in range(4)]
    swaying = [[80.0 + 15 * run + number % 3 for number in range(30)] for run in range(4)]
    narrow = bootstrap(steady, steady, mean, random=random, resamples=300)
    wide = bootstrap(steady, swaying, mean, random=random, resamples=300)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_one_value_says_nothing_of_chance() -> None:
    assert math.isnan(bootstrap([[1.0]], [[2.0]], mean, random=Random(0)).low)


# ---- when requests are sent ------------------------------------------------------------------------------------------


@given(st.floats(0.1, 500), st.floats(0.2, 20), st.integers(2, 200), st.integers(0, 99))
def test_the_rate_is_kept(rate: float, burstiness: float, count: int, seed: int) -> None:
    times = due_times(Schedule(rate=rate, burstiness=burstiness), count, Random(seed))
    assert times == sorted(times)
    assert times[0] > 0.0
    assert times[-1] == pytest.approx(count / rate)


def test_burstiness_is_that_of_the_gaps() -> None:
    for burstiness in (0.25, 1.0, 16.0):
        times = due_times(Schedule(rate=10, burstiness=burstiness), 4000, Random(7))
        gaps = np.diff(times)
        assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.15)


def test_a_closed_loop_is_due_at_once() -> None:
    assert due_times(Schedule(concurrency=2), 3, Random(0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rate": -1}, {"burstiness": 0}, {"concurrency": 0}])
def test_schedules_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**wrong)  # type: ignore[arg-type]
