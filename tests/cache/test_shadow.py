"""Shadow mode's books: which answers agree, and what follows from it."""

from __future__ import annotations

import pytest
from support.cache import Clock, answer

from velollm.cache.shadow import Allowance, ShadowBook, agreement


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The capital is Paris.", "Paris is the capital of France."),
        ("Boil it for 8 minutes.", "You boil it for 8 minutes in water."),
        ("Yes, it is.", "Yes."),
        ("", ""),
    ],
)
def test_answers_that_agree(one: str, other: str) -> None:
    assert agreement(one, other) >= 0.5
    assert agreement(one, other) == agreement(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes, cats purr loudly.", "No, cats purr loudly."),
        ("It has 8 legs.", "It has 6 legs."),
        ("Paris", "London"),
        ("", "Paris"),
        ("Turn left at the mill.", "Mix flour with butter."),
    ],
)
def test_answers_that_do_not(one: str, other: str) -> None:
    assert agreement(one, other) < 0.5


def book(agree: int, disagree: int) -> ShadowBook:
    made = ShadowBook()
    for number in range(agree + disagree):
        said = answer("Paris" if number < agree else "London")
        made.compare("chat", "capital of France?", "France's capital?", answer("Paris"), said, 2.0)
    return made


@pytest.mark.parametrize(
    ("agree", "disagree", "recommended"),
    [(10, 0, "shadow"), (60, 0, "on"), (60, 1, "on"), (60, 9, "off"), (0, 60, "off")],
)
def test_the_recommendation(agree: int, disagree: int, recommended: str) -> None:
    (report,) = book(agree, disagree).report()
    assert (report.compared, report.agreed, report.recommended) == (agree + disagree, agree, recommended)
    assert report.tokens_saved == 7 * agree
    assert report.seconds_saved == 2.0 * agree
    assert len(report.disagreements) == min(disagree, 20)


def test_routes_are_bounded_and_the_busiest_comes_first() -> None:
    made = ShadowBook()
    for number in range(1000):
        made.miss(f"route-{number}")
    made.miss("route-999")
    reports = made.report()
    assert len(reports) == 256
    assert reports[0].route == "route-999"
    assert reports[0].agreement == 0.0


def test_an_allowance_is_a_share_of_time_and_some_of_it_at_once() -> None:
    clock = Clock()
    allowance = Allowance(clock, share=0.1, burst=2.0)
    assert allowance.left()
    allowance.spend(3.0)
    assert not allowance.left()
    clock.now += 9
    assert not allowance.left()
    clock.now += 2
    assert allowance.left()
    clock.now -= 1000  # the wall clock was put back
    assert allowance.left()
    clock.now += 10**6
    assert allowance.left()
    allowance.spend(1.9)
    assert allowance.left()
    allowance.spend(0.2)
    assert not allowance.left()
