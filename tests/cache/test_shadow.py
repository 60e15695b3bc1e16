"""Shadow mode: which answers agree, what follows from it, and how much time it takes."""

from __future__ import annotations

import pytest
from support.cache import Clock

from velollm.cache.evidence import Evidence
from velollm.cache.shadow import Allowance, agreement, report


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


@pytest.mark.parametrize(
    ("agree", "disagree", "recommended"),
    [(10, 0, "shadow"), (60, 0, "on"), (60, 1, "on"), (60, 3, "shadow"), (60, 9, "off"), (0, 60, "off")],
)
def test_the_recommendation(agree: int, disagree: int, recommended: str) -> None:
    found = Evidence(asked=100, compared=agree + disagree, agreed=agree, tokens=7, seconds=2.00049, first=1.0, last=2.0)
    (said,) = report({"chat": found})
    assert (said.route, said.compared, said.agreed, said.recommended) == ("chat", agree + disagree, agree, recommended)
    assert (said.tokens_saved, said.seconds_saved, said.first, said.last) == (7, 2.0, 1.0, 2.0)
    assert said.misses == 100 - agree - disagree


def test_the_busiest_route_comes_first() -> None:
    said = report({"a": Evidence(asked=1), "b": Evidence(asked=3), "c": Evidence(asked=2)})
    assert [one.route for one in said] == ["b", "c", "a"]
    assert said[0].agreement == 0.0


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
