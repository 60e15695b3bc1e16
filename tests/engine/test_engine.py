"""The engine's thread: updates in order, jobs that leave, faults of the runner, the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from velollm.engine import Engine, EngineCore, JobSpec, SamplingParams
from velollm.engine.runner import RunnerError, RunnerLimits
from velollm.errors import BackendError, ContextLengthExceeded, RequestError, VeloError

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(temperature=0)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Alphabet:
    """A runner whose model says the alphabet from wherever it is; what it is told to do wrong, it does."""

    def __init__(self, num_blocks: int = 32, **limits: Any) -> None:
        self.limits = RunnerLimits(
            vocabulary=len(LETTERS), context=200, num_blocks=num_blocks, batch=64, slots=16, **limits
        )
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.closed = 0
        self.steps = 0

    def apply(self, events: Sequence[Any]) -> None:
        pass

    def execute(self, chunks: Sequence[Any]) -> Any:
        self.steps += 1
        self.gate.wait(5)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        rows = np.zeros((sum(chunk.sample for chunk in chunks), len(LETTERS)), np.float32)
        for row, chunk in enumerate(chunk for chunk in chunks if chunk.sample):
            rows[row, (chunk.tokens[-1] + 1) % len(LETTERS)] = 9
        return rows

    def close(self) -> None:
        self.closed += 1


class Letters:
    """Tokens are letters; the answer ends with z."""

    def piece(self, token: int) -> bytes:
        return LETTERS[token].encode()

    def is_end(self, token: int) -> bool:
        return LETTERS[token] == "z"


@pytest.fixture
def runner() -> Alphabet:
    return Alphabet()


@pytest.fixture
async def engine(runner: Alphabet) -> AsyncIterator[Engine]:
    made = Engine(runner, Letters())
    yield made
    made.close()


async def said(engine: Engine, first: str = "a", **spec: Any) -> list[str]:
    texts: dict[int, str] = {}
    prompt = [LETTERS.index(letter) for letter in first]
    async for _, update in engine.generate(JobSpec(prompt=prompt, **{"sampling": GREEDY, **spec})):
        texts[update.index] = texts.get(update.index, "") + update.text
        if update.finish:
            texts[update.index] += f" {update.finish}"
    return [texts[index] for index in sorted(texts)]


async def test_answers_end_where_they_should(engine: Engine) -> None:
    assert await said(engine, "v") == ["wxy stop"]
    assert await said(engine, "a", max_tokens=4) == ["bcde length"]
    assert await said(engine, "a", stops=["efg"]) == ["bcd stop"]
    assert await said(engine, "a", stops=["never"], max_tokens=3) == ["bcd length"]
    assert await said(engine, "abc" * 5, n=3, max_tokens=2) == ["de length"] * 3
    together = await asyncio.gather(*(said(engine, letter) for letter in "mnopqr"))
    assert together == [[f"{LETTERS[LETTERS.index(letter) + 1 : -1]} stop"] for letter in "mnopqr"]


async def test_the_context_is_an_end_too(engine: Engine) -> None:
    (text,) = await said(engine, "a" * 190, sampling=SamplingParams(temperature=0, logit_bias={25: -100.0, 0: 50.0}))
    assert text == "a" * 10 + " length"
    with pytest.raises(ContextLengthExceeded):
        await said(engine, "a" * 200)


async def test_who_leaves_is_gone(engine: Engine, runner: Alphabet) -> None:
    endless = SamplingParams(temperature=0, logit_bias={25: -100.0})
    spec = JobSpec(prompt=[0], sampling=endless)
    async with aclosing(engine.generate(spec)) as updates:
        async for _ in updates:
            break
    task = asyncio.create_task(said(engine, sampling=endless))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    async with asyncio.timeout(5):
        while not engine.core.idle:
            await asyncio.sleep(0.001)
    assert engine.core.blocks.num_free == engine.core.blocks.num_blocks


async def test_a_step_that_fails_fails_its_jobs_and_no_more(engine: Engine, runner: Alphabet) -> None:
    runner.fault = RunnerError("no luck")
    with pytest.raises(BackendError, match="no luck"):
        await said(engine)
    assert await said(engine, "w") == ["xy stop"]
    runner.fault = ZeroDivisionError("a fault of ours")
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        await said(engine)
    assert await said(engine, "w") == ["xy stop"]
    assert engine.core.blocks.num_free == engine.core.blocks.num_blocks


async def test_constraints_that_make_no_sense_fail_their_own_job(engine: Engine) -> None:
    def broken() -> Any:
        raise RequestError("no grammar")

    with pytest.raises(RequestError, match="no grammar"):
        await said(engine, constrain=broken)
    assert await said(engine, "w") == ["xy stop"]


async def test_a_deadline_is_for_the_first_token_of_all(runner: Alphabet) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.5
        return now

    core = EngineCore(runner, Letters(), clock=clock, max_running=1)
    core.add(JobSpec(prompt=[0] * 20, sampling=GREEDY, n=3, max_tokens=4, deadline=3.0))
    late = core.add(JobSpec(prompt=[1] * 20, sampling=GREEDY, deadline=4.0))
    updates = []
    while not core.idle:
        updates += core.step()
    assert sum(getattr(update, "finish", None) is not None for _, update in updates) == 3
    assert late.error is not None
    assert late.error.code == "deadline_unreachable"


async def test_calls_between_steps(engine: Engine) -> None:
    assert await engine.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await engine.call(lambda: 1 // 0)


async def test_closing_ends_what_runs(engine: Engine, runner: Alphabet) -> None:
    runner.gate.clear()
    task = asyncio.create_task(said(engine))
    while not runner.steps:
        await asyncio.sleep(0.001)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    while engine._open:
        await asyncio.sleep(0.001)
    runner.gate.set()
    await closing
    with pytest.raises(VeloError):
        await task
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        await said(engine)
    assert runner.closed == 1


def test_what_cannot_share_is_computed_again() -> None:
    for options in ({"sharing": False}, {"swapping": False}):
        core = EngineCore(Alphabet(8, **options), Letters(), swap_tokens=10_000)
        jobs = [core.add(JobSpec(prompt=[0] * 20, sampling=GREEDY, n=2)) for _ in range(4)]
        while not core.idle:
            for job, update in core.step():
                assert not isinstance(update, VeloError), job
        assert [job.num_generated for job in jobs] == [50] * 4
        assert core.blocks.num_free == 8
        assert core.scheduler.counters.preempted
        assert not core.scheduler.counters.swapped or "swapping" not in options


def test_thousands_come_and_go_and_nothing_stays() -> None:
    random = np.random.default_rng(7)
    core = EngineCore(Alphabet(24), Letters(), swap_tokens=300, recompute=0, max_running=12)
    open_jobs: list[Any] = []
    ended = aborted = 0
    for _ in range(1000):
        prompt = [int(token) for token in random.integers(0, 25, int(random.integers(1, 60)))]
        params = GREEDY if random.random() < 0.5 else SamplingParams(seed=int(random.integers(1, 99)))
        spec = JobSpec(
            prompt=[1, 2, 3] * 6 + prompt,
            sampling=params,
            n=int(random.integers(1, 4)),
            max_tokens=int(random.integers(1, 30)),
            priority=int(random.integers(-1, 2)),
            stops=["xy"] if random.random() < 0.2 else (),
        )
        open_jobs.append(core.add(spec))
        if random.random() < 0.3:
            core.abort(open_jobs.pop(int(random.integers(0, len(open_jobs)))))
            aborted += 1
        for _ in range(40 if len(open_jobs) > 60 else 2):
            for job, update in core.step():
                assert not isinstance(update, VeloError)
                if update.last:
                    open_jobs.remove(job)
                    ended += 1
    while not core.idle:
        ended += sum(update.last for _, update in core.step())
    assert ended + aborted == 1000
    assert not core.scheduler.running
    assert not core.scheduler.waiting
    assert core.scheduler.counters.preempted
    assert core.blocks.num_free == 24
    core.blocks.check_integrity([])
