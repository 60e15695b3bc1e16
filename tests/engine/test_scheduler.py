"""The scheduler by hand: budget, prefixes under way, priority, preemption, refusal."""

from __future__ import annotations

from typing import Any

import pytest

from velollm.engine import BlockManager, Scheduler, Sequence
from velollm.engine.events import Discard, Export, Import
from velollm.engine.scheduler import Step
from velollm.engine.sequence import Status
from velollm.errors import ContextLengthExceeded


def make(num_blocks: int = 64, **options: Any) -> Scheduler:
    return Scheduler(BlockManager(num_blocks), **options)


def run(scheduler: Scheduler, token: int = 7) -> Step:
    step = scheduler.schedule()
    scheduler.commit(step)
    for chunk in step.chunks:
        if chunk.sample:
            chunk.sequence.tokens.append(token)
    return step


def prompt(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


def shape(step: Step) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in step.chunks]


def test_prompts_come_in_chunks_and_decoding_comes_first() -> None:
    scheduler = make(token_budget=32)
    scheduler.add(Sequence(1, prompt(10)))
    assert shape(run(scheduler)) == [(1, 0, 10)]
    scheduler.add(Sequence(2, prompt(70, 1000), arrival=1))
    assert shape(run(scheduler)) == [(1, 10, 1), (2, 0, 31)]
    assert shape(run(scheduler)) == [(1, 11, 1), (2, 31, 31)]
    assert shape(run(scheduler)) == [(1, 12, 1), (2, 62, 8)]
    assert shape(run(scheduler)) == [(1, 13, 1), (2, 70, 1)]


def test_a_prefix_that_is_being_computed_is_waited_for() -> None:
    scheduler = make(token_budget=64)
    for number in range(4):
        scheduler.add(Sequence(number, [*prompt(80), number], arrival=number))
    assert shape(run(scheduler)) == [(0, 0, 64)]
    assert shape(run(scheduler)) == [(0, 64, 17)]
    assert shape(run(scheduler)) == [(0, 81, 1), (1, 80, 1), (2, 80, 1), (3, 80, 1)]
    assert scheduler.counters.cached == 240
    assert [one.num_cached for one in scheduler.running] == [0, 80, 80, 80]


def test_strangers_pass_those_who_wait_for_a_prefix() -> None:
    scheduler = make(token_budget=64)
    for number, first in enumerate((0, 0, 5000)):
        scheduler.add(Sequence(number, prompt(40, first), arrival=number))
    assert shape(run(scheduler)) == [(0, 0, 40), (2, 0, 24)]


def test_the_last_arrival_makes_room_and_comes_back() -> None:
    scheduler = make(6, token_budget=64, context=96)
    for number in range(2):
        scheduler.add(Sequence(number, prompt(30, 1000 * number), arrival=number))
    while not scheduler.counters.preempted:
        run(scheduler)
    first = scheduler.running[0]
    assert ([one.id for one in scheduler.running], [one.id for one in scheduler.waiting]) == ([0], [1])
    while scheduler.waiting:
        run(scheduler)
        if len(first) == 90:
            scheduler.finish(first)
    (back,) = scheduler.running
    assert (back.id, back.preemptions, len(back.output) > 1) == (1, 1, True), "with all that it had said"


def test_swapping_brings_the_state_back() -> None:
    scheduler = make(9, token_budget=64, swap_tokens=100)
    for number in range(2):
        scheduler.add(Sequence(number, prompt(60, 1000 * number), arrival=number))
    steps = []
    while not any(isinstance(event, Export) for step in steps[-1:] for event in step.events):
        steps.append(run(scheduler))
    exported = next(event for event in steps[-1].events if isinstance(event, Export))
    assert (exported.key, exported.tokens) == (1, len(exported.table) * 16)
    victim = scheduler.waiting[0]
    assert victim.swapped
    scheduler.finish(scheduler.running[0])
    for number in range(2, 4):  # others have taken its cached blocks meanwhile
        other = Sequence(number, prompt(70, 1000 * number), priority=-1, arrival=number)
        scheduler.add(other)
        run(scheduler)
        scheduler.finish(other)
    step = run(scheduler)
    imported = [event for event in step.events if isinstance(event, Import)]
    assert [event.key for event in imported] == [1]
    assert victim.status is Status.RUNNING
    scheduler.preempt(victim)
    scheduler.finish(victim)
    assert Discard(1) in scheduler.schedule().events


def test_urgent_work_takes_the_place_of_what_can_wait() -> None:
    scheduler = make(max_running=2)
    for number in range(2):
        scheduler.add(Sequence(number, prompt(20, 1000 * number), priority=2, arrival=number))
    run(scheduler)
    scheduler.add(Sequence(2, prompt(20, 9000), priority=0, arrival=2))
    assert [chunk.sequence.id for chunk in run(scheduler).chunks] == [0, 2]
    assert [one.id for one in scheduler.waiting] == [1]
    scheduler.add(Sequence(3, prompt(20, 7000), priority=1, arrival=3))
    run(scheduler)
    assert sorted(one.id for one in scheduler.running) == [2, 3], "a waiting class lets more urgent ones pass"


def test_what_waits_long_enough_comes_before_the_more_urgent() -> None:
    scheduler = make(max_running=1, ageing=10)
    scheduler.add(Sequence(0, prompt(20), priority=0, arrival=0))
    run(scheduler)
    scheduler.add(Sequence(1, prompt(20, 100), priority=1, arrival=1))
    scheduler.add(Sequence(2, prompt(20, 200), priority=0, arrival=10))
    scheduler.add(Sequence(3, prompt(20, 300), priority=0, arrival=12))
    order = []
    while scheduler.running:
        order.append(scheduler.running[0].id)
        scheduler.finish(scheduler.running[0])
        run(scheduler)
    assert order == [0, 2, 1, 3]


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = make(4, context=48)
    with pytest.raises(ContextLengthExceeded, match=r"50 tokens.* 48 is the most"):
        scheduler.add(Sequence(0, prompt(50)))
    with pytest.raises(ContextLengthExceeded):
        scheduler.add(Sequence(0, prompt(48)))
    scheduler.add(Sequence(0, prompt(47)))


def test_deadlines_count_until_the_first_token() -> None:
    scheduler = make(max_running=1)
    scheduler.add(Sequence(0, prompt(5), deadline=3))
    run(scheduler)
    late = Sequence(1, prompt(5, 50), arrival=1, deadline=2)
    scheduler.add(late)
    assert scheduler.overdue(1.5) == []
    assert scheduler.overdue(2.5) == [late]


def test_forks_go_on_from_the_same_place() -> None:
    scheduler = make(8)
    parent = Sequence(0, prompt(20))
    scheduler.add(parent)
    step = scheduler.schedule()
    scheduler.commit(step)
    children = [Sequence(number, parent.tokens) for number in (1, 2)]
    for child in children:
        scheduler.fork(parent, child)
    for one in (parent, *children):
        one.tokens.append(one.id)
    assert shape(run(scheduler)) == [(0, 20, 1), (1, 20, 1), (2, 20, 1)]
    assert scheduler.blocks.num_blocks - scheduler.blocks.num_free == 4, "one block in common, three of their own"
