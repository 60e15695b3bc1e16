"""How many requests an engine is given that does not say how many it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.scheduling.fairness import TokenCounters
from velollm.scheduling.job import Job
from velollm.scheduling.lane import Lane
from velollm.scheduling.limits import AdaptiveLimit


def test_a_limit_that_is_used_grows() -> None:
    limit = AdaptiveLimit()
    for _ in range(60):
        limit.answered(limit.value(0.0))
    assert 64 <= limit.value(0.0) <= 256


def test_what_is_not_used_does_not_grow() -> None:
    limit = AdaptiveLimit()
    for _ in range(100):
        limit.answered(1)
    assert limit.value(0.0) == 16


@pytest.mark.parametrize("slots", [1, 2, 4, 16, 100])
def test_the_limit_finds_the_slots_of_an_engine_that_queues(slots: int) -> None:
    limit = AdaptiveLimit()
    for _ in range(400):
        running = limit.value(0.0)
        if running > slots:
            limit.queued(running, now=0.0)
        else:
            limit.answered(running)
    assert limit.value(0.0) == slots


def test_an_engine_that_queues_is_given_less_for_a_minute() -> None:
    limit = AdaptiveLimit()
    limit.queued(3, now=100.0)
    assert limit.value(130.0) == 2
    for _ in range(50):
        limit.answered(limit.value(130.0))
    assert limit.value(130.0) == 2
    assert limit.value(161.0) > 2


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 500)), max_size=100))
def test_the_limit_stays_within_bounds(samples: list[tuple[bool, int]]) -> None:
    limit = AdaptiveLimit()
    for queued, running in samples:
        if queued:
            limit.queued(running, 0.0)
        else:
            limit.answered(running)
        assert 1 <= limit.value(0.0) <= 256


def test_a_first_token_that_came_late_shows_the_number_of_slots() -> None:
    """One slot: what is sent beside a running request has its first token only when that one is over."""
    lane = Lane("a", limit=None, weight=1.0, quantum=5.0, usable=lambda now: True)

    def job() -> Job:
        new = Job(targets={"a": "m"}, prompt_tokens=20, max_tokens=50)
        new.model, new.expected_tokens = "m", 50
        return new

    now = 0.0
    for _ in range(5):
        alone = job()
        lane.start(alone, now)
        lane.answered(alone, now + 0.02)
        alone.produced = 50
        lane.learn(alone, now + 1.0, 0.0)
        lane.end(alone, now + 1.0)
        now += 1.0
    assert lane.capacity("m", now) == 16
    first, second = job(), job()
    lane.start(first, now)
    lane.start(second, now)
    lane.answered(first, now + 0.02)
    lane.answered(second, now + 1.02)
    assert lane.capacity("m", now + 1.02) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 1000)), max_size=200))
def test_counters_are_forgotten_with_the_last_one_and_lifted_on_return(steps: list[tuple[str, bool, float]]) -> None:
    counters = TokenCounters()
    active: dict[str, int] = {}
    for tenant, enters, cost in steps:
        if enters:
            before = min((counters[name] for name, count in active.items() if count), default=None)
            counters.enter(tenant)
            if not active.get(tenant):
                assert before is None or counters[tenant] >= before, "idleness is no credit"
            active[tenant] = active.get(tenant, 0) + 1
            counters.charge(tenant, cost)
        elif active.get(tenant):
            counters.leave(tenant)
            active[tenant] -= 1
        if not any(active.values()):
            assert len(counters) == 0
