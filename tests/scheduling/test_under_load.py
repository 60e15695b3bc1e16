"""Whole loads in virtual time: priorities, ageing, fair shares, deadlines, models that do not fit together."""

from __future__ import annotations

import pytest
from support.scheduling_world import Served, World

from velollm.scheduling.job import BATCH, INTERACTIVE, NORMAL, Job


def steadily(world: World, rate: float, seconds: float, ask: dict[str, object], start: float = 0.0) -> None:
    """An open loop of requests."""
    for number in range(int(rate * seconds)):
        world.at(start + number / rate, lambda: world.ask(**ask))  # type: ignore[arg-type]


def waits(world: World, **wanted: object) -> list[float]:
    return sorted(
        served.first - served.asked
        for served in world.served.values()
        if served.first is not None and all(getattr(served.job, name) == value for name, value in wanted.items())
    )


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def tokens(world: World, until: float) -> dict[str, int]:
    found: dict[str, int] = {}
    for job in world.served:
        found[job.tenant] = found.get(job.tenant, 0) + job.produced
    return found


def test_more_urgent_work_starts_first() -> None:
    world = World({"engine": 1})
    for level in (BATCH, NORMAL, INTERACTIVE, NORMAL, BATCH, INTERACTIVE):
        world.ask(level=level)
    world.run(10)
    starts = [served.job.level for served in sorted(world.served.values(), key=lambda served: served.job.granted)]
    assert starts == [BATCH, INTERACTIVE, INTERACTIVE, NORMAL, NORMAL, BATCH], "the first found a free slot"


def test_interactive_work_preempts_the_youngest_batch_work() -> None:
    world = World({"engine": 2})
    old = world.ask(1000, level=BATCH, preemptible=True)
    world.run(0.1)
    young = world.ask(1000, level=BATCH, preemptible=True)
    world.run(0.2)
    urgent = world.ask(level=INTERACTIVE)
    world.run(30)
    assert world.served[urgent].first is not None
    assert world.served[urgent].first - world.served[urgent].asked < 0.03
    assert (old.preemptions, young.preemptions) == (0, 1)
    assert old.produced == young.produced == 1000
    assert world.dispatcher.preemptions == 1


def test_what_cannot_be_continued_is_not_preempted() -> None:
    world = World({"engine": 1})
    world.ask(200, level=BATCH)
    urgent = world.ask(level=INTERACTIVE)
    world.run(10)
    assert world.served[urgent].first == pytest.approx(1.03, abs=0.02)
    assert world.dispatcher.preemptions == 0


def test_nothing_is_preempted_forever() -> None:
    world = World({"engine": 1})
    batch = world.ask(400, level=BATCH, preemptible=True)
    steadily(world, 4, 20, {"level": INTERACTIVE})
    world.run(60)
    assert batch.preemptions == 3
    assert batch.produced == 400


def test_batch_work_does_not_starve_and_takes_a_quarter_at_most() -> None:
    world = World({"engine": 4}, ageing=2.0)
    for _ in range(60):
        world.ask(100, level=BATCH, preemptible=True)
    steadily(world, 60, 20, {"level": INTERACTIVE, "tokens": 15}, start=0.01)  # more than there is room for
    aged = 0
    while world.now < 20:
        world.run(world.now + 0.05)
        running = world.dispatcher.lanes["engine"].running
        aged = max(aged, sum(job.aged for job in running))
    done = [job for job in world.served if job.level == BATCH and job.state == "done"]
    assert aged == 1
    assert 10 <= len(done) <= 50, "one slot of four, and no more"


def test_ageing_means_nothing_without_more_urgent_work() -> None:
    world = World({"engine": 4}, ageing=0.5)
    for tenant in ("a", "b"):
        for _ in range(100):
            world.ask(40, level=BATCH, tenant=tenant)
    world.run(5)
    assert not any(job.aged for job in world.served)
    assert jain([float(count) for count in tokens(world, 5).values()]) > 0.99


@pytest.mark.parametrize("sizes", [(20, 20, 20), (10, 40, 160)])
def test_tenants_share_tokens_evenly(sizes: tuple[int, ...]) -> None:
    world = World(max_queue=1000)

    def again(world: World, job: Job) -> None:
        world.ask(job.max_tokens or 1, tenant=job.tenant, prompt=5, then=again)

    for tenant, size in zip("abc", sizes, strict=True):
        for _ in range(12):
            world.ask(size, tenant=tenant, prompt=5, then=again)
    world.run(30)
    assert jain([float(count) for count in tokens(world, 30).values()]) > 0.95


def test_a_light_tenant_hardly_notices_a_flood() -> None:
    world = World(max_queue=100)
    steadily(world, 60, 20, {"tenant": "flood", "tokens": 80})
    steadily(world, 1, 18, {"tenant": "light", "tokens": 80}, start=1.0)
    world.run(22)
    light = [served for served in world.served.values() if served.job.tenant == "light"]
    assert all(served.refused is None for served in light), "a tenant alone never fills the queue"
    assert waits(world, tenant="light")[-2] < 0.4


def within(served: Served, slo: float) -> bool:
    return served.first is not None and served.first - served.asked <= slo


@pytest.mark.parametrize("factor", [1, 2, 5, 10, 20])
def test_goodput_under_overload(factor: int) -> None:
    """4 slots, 0.4 s a request, a first token within 2 s: as much as fits is answered in time, the rest refused."""
    world = World()
    rate = 10.0 * factor
    for number in range(int(rate * 20)):
        world.at(number / rate, lambda: world.ask(78, deadline=world.now + 2.0))
    world.run(20)
    late = [served for served in world.served.values() if 10 <= served.asked < 18]
    good = sum(within(served, 2.0) for served in late)
    assert good >= 0.9 * 10 * 8
    failed = [served for served in world.served.values() if served.first is not None and not within(served, 2.0)]
    assert len(failed) <= 0.05 * good
    refused = [served for served in late if served.refused is not None]
    slow = [served for served in refused if served.refused_at is None or served.refused_at - served.asked > 0.05]
    assert len(slow) <= 0.05 * len(refused)
    assert all(1 <= (served.refused.retry_after or 0) <= 4 for served in refused if served.refused is not None)
    assert world.most_running <= 4


def test_the_hint_when_to_come_back_is_true() -> None:
    """Whoever was refused and comes back after that time, with nobody else around, starts in time."""
    world = World(max_queue=10)
    for _ in range(8):
        world.ask(200)  # measured first
    world.run(10)
    for _ in range(14):
        world.ask(200)
    refused = world.ask(200)
    error = world.served[refused].refused
    assert error is not None
    assert error.code == "queue_full"
    assert 3 <= (error.retry_after or 0) <= 4, "14 requests of a second each over 4 slots"
    late = world.ask(200, deadline=world.now + 1.0)
    hint = world.served[late].refused
    assert hint is not None
    assert hint.code in ("deadline_unreachable", "queue_full")


def test_deadlines_are_met_or_refused_at_once() -> None:
    world = World({"engine": 1})
    world.ask(200)
    world.run(5)
    world.ask(400)
    hopeless = world.ask(20, deadline=world.now + 0.5)
    assert world.served[hopeless].refused is not None
    assert world.served[hopeless].refused.code == "deadline_unreachable"
    assert world.served[hopeless].refused.retry_after in (2, 3)
    fine = world.ask(20, deadline=world.now + 4)
    world.run(10)
    assert within(world.served[fine], 4)


def test_a_free_slot_is_tried_even_after_slow_answers() -> None:
    world = World({"engine": 1}, prefill=0.1)
    for _ in range(4):
        world.ask(10, prompt=20)
        world.run(world.now + 5)
    world.prefill = 0.0005
    job = world.ask(10, prompt=20, deadline=world.now + 1.5)
    world.run(world.now + 5)
    assert within(world.served[job], 1.5)


def test_the_wait_is_bounded_where_it_is_asked_for() -> None:
    world = World({"engine": 1})
    world.ask(1000)
    job = world.ask(10, expires=world.now + 1.0)
    world.run(10)
    assert world.served[job].refused is not None
    assert world.served[job].refused.code == "queue_timeout"
    assert world.served[job].refused_at == pytest.approx(1.0)


def test_urgent_work_finds_a_place_in_a_full_queue() -> None:
    world = World({"engine": 1}, max_queue=2)
    world.ask(100)
    first, second = world.ask(level=BATCH), world.ask(level=BATCH)
    urgent = world.ask(level=INTERACTIVE)
    assert world.served[second].refused is not None, "the batch work that came last"
    assert (first.state, urgent.state) == ("waiting", "waiting")
    assert world.served[world.ask(level=BATCH)].refused is not None


def test_conversations_keep_their_order() -> None:
    world = World({"a": 1, "b": 1})
    for number in range(12):
        world.ask(5 + 10 * (number % 3), conversation="c" if number % 2 else None, prompt=5 + 40 * (number % 3))
    world.run(10)
    own = [job.granted for job in world.served if job.conversation == "c"]
    assert own == sorted(own)


@pytest.mark.parametrize("load", [0.5, 1.0, 3.0])
def test_models_that_do_not_fit_together_take_turns(load: float) -> None:
    world = World({"engine": 2}, load=load, quantum=2.5)
    answered = 0

    def again(world: World, job: Job) -> None:
        nonlocal answered
        answered += 1
        if answered < 100:
            world.at(world.now + 0.01, lambda: world.ask(30, model=job.targets["engine"], then=again))

    for number in range(6):
        world.ask(30, model="one" if number % 2 else "two", then=again)
    world.run(200)
    assert world.loads <= 12, "100 changes at worst"
    assert waits(world)[-1] <= 2 * 2.5 + 2 * load


def test_models_that_fit_together_soon_run_together() -> None:
    world = World({"engine": 4}, quantum=5.0)
    steadily(world, 2, 60, {"model": "one", "tokens": 60})
    steadily(world, 2, 60, {"model": "two", "tokens": 60}, start=0.1)
    world.run(60)
    late = [served for served in world.served.values() if 20 < served.asked < 58]
    assert all(served.first is not None and served.first - served.asked < 0.1 for served in late)


def test_a_slow_backend_gets_little_work() -> None:
    world = World({"a": 2, "b": 2, "slow": 2}, speeds={"slow": 8.0})
    steadily(world, 12, 60, {"tokens": 40})
    world.run(70)
    shares = {name: sum(job.lane == name for job in world.served) for name in ("a", "b", "slow")}
    assert shares["slow"] <= sum(shares.values()) / 6
    assert min(shares["a"], shares["b"]) >= sum(shares.values()) / 5
