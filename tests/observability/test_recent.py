"""The last requests, and the rates that follow from them."""

from __future__ import annotations

import random

import pytest

from velollm.observability.histogram import Histogram
from velollm.observability.recent import RecentRequests
from velollm.observability.record import Record


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(number: int = 0, **fields: object) -> Record:
    return Record(id=f"r{number}", model="tiny", prompt_tokens=10, completion_tokens=20, **fields)  # type: ignore[arg-type]


def test_the_newest_come_first_and_the_oldest_are_forgotten() -> None:
    clock = Clock()
    recent = RecentRequests(kept=3, clock=clock)
    for number in range(5):
        clock.now += 1
        recent.add(record(number))
    assert [one["id"] for one in recent.show()] == ["r4", "r3", "r2"]
    recent.add(record(5, key="mine"))
    assert [one["id"] for one in recent.show("mine")] == ["r5"]
    assert recent.show()[1]["at"] == 1005.0


def test_rates_are_those_of_the_last_minute() -> None:
    clock = Clock()
    recent = RecentRequests(clock=clock)
    assert recent.rates() == {
        "requests_per_second": 0.0, "prompt_tokens_per_second": 0.0, "generation_tokens_per_second": 0.0,
    }  # fmt: skip
    recent.add(record())
    clock.now += 10
    assert recent.rates()["requests_per_second"] == 0.1, "since it began"
    clock.now += 90
    for _ in range(30):
        recent.add(record())
        recent.add(Record(path="/v1/models"))
    assert recent.rates() == {
        "requests_per_second": 0.5, "prompt_tokens_per_second": 5.0, "generation_tokens_per_second": 10.0,
    }  # fmt: skip


def test_rates_of_a_flood_are_those_of_what_is_kept() -> None:
    clock = Clock()
    recent = RecentRequests(kept=100, clock=clock)
    for _ in range(1000):
        clock.now += 0.1
        recent.add(record())
    assert recent.rates()["requests_per_second"] == pytest.approx(10, rel=0.05)


def test_quantiles() -> None:
    bounds = tuple(number / 10 for number in range(1, 101))
    histogram = Histogram(bounds)
    assert histogram.quantile(0.5) is None
    values = sorted(random.Random(1).uniform(0, 10) for _ in range(2000))
    for value in values:
        histogram.add(value)
    for share in (0.01, 0.5, 0.9, 0.99):
        assert histogram.quantile(share) == pytest.approx(values[int(share * 2000)], abs=0.1)
    histogram = Histogram((1.0, 2.0))
    histogram.add(50.0)
    assert histogram.quantile(0.5) == 2.0, "beyond the last bound nothing is known"
