"""The circuit breaker, the choice of the next attempt, and who is taken for slow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    ModelNotFound,
    Overloaded,
    UnsupportedError,
    VeloError,
)
from velollm.routing.attempts import Attempts, Budget
from velollm.routing.health import LONGEST_BREAK, Health, Pace

DOWN = BackendUnreachable("down", retry_after=1)
BROKEN = BackendProtocolError("broke off")
NOT_FOUND = BackendRefused("no such model", status=404)
BUSY = BackendRefused("busy", status=503, retry_after=7)


def ask(health: Health, now: float, error: VeloError | None = None) -> None:
    health.sent(now)
    if error is None:
        health.done(now)
    else:
        health.failed(error, now)


# ---- the breaker ----


def test_three_failures_in_a_row_open_it_and_one_good_trial_closes_it() -> None:
    health = Health()
    for _ in range(3):
        assert health.allows(0)
        ask(health, 0, BROKEN)
    assert not health.allows(0.9)
    assert health.allows(1.1)
    health.sent(1.1)
    assert not health.allows(1.1), "one trial at a time"
    health.done(1.2)
    assert health.closed
    assert health.allows(1.2)
    assert health.running == 0


def test_a_failed_trial_opens_it_for_longer_but_never_for_three_seconds() -> None:
    health, now = Health(), 0.0
    for _ in range(3):
        ask(health, now, BROKEN)
    for pause in (1.0, 2.0, 2.5, 2.5):
        assert not health.allows(now + pause - 0.1)
        now += pause
        assert health.allows(now)
        ask(health, now, BROKEN)
    assert LONGEST_BREAK < 3


def test_what_cannot_be_reached_waits_for_a_good_probe() -> None:
    health = Health()
    ask(health, 0, DOWN)
    assert not health.allows(100)
    assert health.wants_probe(0, 2)
    health.probed(DOWN, 1)
    assert not health.allows(100)
    health.probed(None, 2)
    assert health.allows(2)


def test_most_failures_among_many_open_it() -> None:
    health = Health()
    for number in range(12):
        ask(health, 0, BROKEN if number % 2 else None)
    assert health.closed, "each good answer forgets"
    health = Health()
    for _ in range(2):
        ask(health, 0, BROKEN)
    assert health.closed


@pytest.mark.parametrize("error", [NOT_FOUND, ModelNotFound("x"), BackendRefused("bad", status=400)])
def test_refusals_of_a_request_say_nothing_against_the_backend(error: VeloError) -> None:
    health = Health()
    for _ in range(50):
        ask(health, 0, error)
    assert health.allows(0)


def test_a_busy_backend_is_left_alone_as_long_as_it_asks() -> None:
    health = Health()
    ask(health, 0, BUSY)
    assert health.closed
    assert not health.allows(6.9)
    assert health.allows(7.1)


def test_two_silent_probes_are_a_hang() -> None:
    health = Health()
    health.sent(0)
    assert not health.wants_probe(1, 2)
    assert health.wants_probe(2.5, 2)
    health.probed(DOWN, 4.5, silent=True)
    assert health.allows(4.5), "it may be reading a long prompt"
    health.probed(DOWN, 7, silent=True)
    assert not health.allows(7)
    assert health.silent_for(10) == 5.5
    health.probed(None, 11)
    assert health.allows(11)
    assert health.silent_for(12) == 0


def test_draining_lets_no_new_work_in() -> None:
    health = Health(draining=True)
    assert not health.allows(0)
    assert health.closed


@given(
    st.lists(st.tuples(st.sampled_from(["sent", "done", "failed", "left", "probe", "silent", "ok"]), st.floats(0, 3)))
)
def test_whatever_happens_it_is_asked_again(steps: list[tuple[str, float]]) -> None:
    """Nothing loses count of what runs, and after good news it is never shut out for three seconds."""
    health, now, running = Health(), 0.0, 0
    for step, seconds in steps:
        now += seconds
        if step == "sent":
            health.sent(now)
            running += 1
        elif step in ("done", "failed", "left") and running:
            running -= 1
            if step == "failed":
                health.failed(BROKEN, now)
            else:
                getattr(health, step)(now)
        elif step == "ok":
            health.probed(None, now)
        elif step in ("probe", "silent"):
            health.probed(DOWN, now, silent=step == "silent")
        assert health.running == running
    for _ in range(running):
        health.left(now)
    health.probed(None, now)
    assert health.allows(now + LONGEST_BREAK + 0.01)


# ---- who is slow ----


def paced(seconds: float, answers: int = 5, pieces: int = 40) -> Pace:
    pace = Pace()
    for _ in range(answers):
        pace.add(seconds * (pieces - 1), pieces)
    return pace


def test_far_slower_than_the_others_is_an_outlier() -> None:
    assert paced(0.2).is_outlier([paced(0.02), paced(0.03)])
    assert not paced(0.06).is_outlier([paced(0.02), paced(0.03)])
    assert not paced(0.004).is_outlier([paced(0.0002)]), "a moment says nothing of a backend"
    assert not paced(0.2).is_outlier([])
    assert not paced(0.2).is_outlier([paced(0.02, answers=2)])
    assert not paced(0.2, pieces=5).is_outlier([paced(0.02)]), "short answers say nothing"


# ---- who is asked next ----


def attempts(*targets: str) -> Attempts[str]:
    tries = Attempts(targets, Budget())
    tries.begin(targets[0])
    return tries


def test_unreachable_ones_are_passed_over() -> None:
    tries = attempts("a", "b", "c")
    assert tries.after(DOWN, begun=False) == 0
    assert list(tries.choices) == ["b", "c"]


def test_the_only_one_is_asked_again_after_a_pause() -> None:
    tries = attempts("a")
    assert tries.after(DOWN, begun=False) > 0
    assert list(tries.choices) == ["a"]
    assert tries.after(DOWN, begun=False) > 0
    with pytest.raises(BackendUnreachable):
        tries.after(DOWN, begun=False)


def test_after_the_first_word_only_another_one_and_each_once() -> None:
    tries = attempts("a", "b")
    assert tries.after(BROKEN, begun=True) == 0
    assert list(tries.choices) == ["b"]
    tries.begin("b")
    with pytest.raises(BackendProtocolError, match="broke off"):
        tries.after(BackendTimeout("silent"), begun=True)
    with pytest.raises(BackendProtocolError):
        attempts("a").after(BROKEN, begun=True)


def test_one_that_cannot_go_on_is_passed_over() -> None:
    tries = attempts("a", "b", "c")
    tries.after(BROKEN, begun=True)
    tries.begin("b")
    tries.cannot_go_on(UnsupportedError("no"))
    assert list(tries.choices) == ["c"]
    tries.begin("c")
    with pytest.raises(BackendProtocolError, match="broke off"):
        tries.cannot_go_on(UnsupportedError("no"))


@pytest.mark.parametrize("error", [BackendRefused("busy", status=503), Overloaded("loading"), NOT_FOUND])
def test_one_that_refuses_to_go_on_is_passed_over(error: VeloError) -> None:
    tries = attempts("a", "b", "c")
    tries.begin("a")
    tries.after(BROKEN, begun=True)
    tries.begin("b")
    assert tries.after(error, begun=True) == 0
    assert list(tries.choices) == ["c"]
    tries.begin("c")
    with pytest.raises(BackendProtocolError, match="broke off"):
        tries.after(error, begun=True)


@pytest.mark.parametrize("error", [NOT_FOUND, BackendRefused("x", status=500), ModelNotFound("x")])
def test_a_refusal_is_final(error: VeloError) -> None:
    with pytest.raises(type(error)):
        attempts("a", "b").after(error, begun=False)
    with pytest.raises(type(error)):
        attempts("a", "b").after(error, begun=True)


def test_what_breaks_an_engine_is_not_tried_on_all_of_them() -> None:
    tries = attempts("a", "b", "c")
    tries.after(BROKEN, begun=False)
    assert list(tries.choices) == ["b", "c"]
    tries.begin("b")
    with pytest.raises(BackendProtocolError):
        tries.after(BROKEN, begun=False)


@given(st.lists(st.sampled_from([DOWN, BROKEN, BUSY, BackendRefused("x", status=503)]), max_size=60))
def test_the_budget_bounds_what_is_asked_again(errors: list[VeloError]) -> None:
    """An engine that fails everybody sees few more requests than there are clients."""
    budget, sent = Budget(), 0
    for error in errors:
        tries: Attempts[str] = Attempts(["a"], budget)
        tries.begin("a")
        sent += 1
        with pytest.raises(VeloError):
            while True:
                tries.after(error, begun=False)
                sent += 1
    assert sent <= len(errors) + 4
