"""Asks the questions of a workload as a schedule wants it, and records what came when."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Protocol

import attrs

from velollm.bench.lag import Lag, LagProbe
from velollm.bench.question import Question
from velollm.bench.record import Record
from velollm.bench.schedule import Schedule

__all__ = ["Asker", "Progress", "Run", "run"]


class Asker(Protocol):
    """Asks one question. Failures are records with an `error`; `sent` is a reading of `perf_counter`."""

    def ask(self, question: Question, record: Record) -> AsyncGenerator[None, None]:
        """Fill in the record. The first step ends when the answer is there; what it says may be read in later ones."""
        ...


@attrs.frozen(kw_only=True)
class Progress:
    """How far a run is."""

    asked: int
    done: int
    failed: int
    total: int
    tokens: int
    seconds: float


@attrs.frozen(kw_only=True)
class Run:
    """The records of a run, in the order of the questions, their times counted from its beginning.

    That was at `begun`, a reading of `perf_counter`.
    """

    records: Sequence[Record]
    seconds: float
    lag: Lag
    begun: float = 0.0


async def run(
    asker: Asker,
    questions: Sequence[Question],
    due: Sequence[float],
    schedule: Schedule,
    *,
    progress: Callable[[Progress], None] = lambda state: None,
) -> Run:
    """Ask all `questions`, each when it is `due` (seconds from now) and a place is free, until all are answered."""
    with _no_collections(), LagProbe() as probe:
        job = _Job(asker, questions, due, schedule, progress)
        seconds = await job.run()
    for record in job.records:
        record.sent -= job.begun
    return Run(records=job.records, seconds=seconds, lag=probe.lag, begun=job.begun)


class _Job:
    def __init__(
        self,
        asker: Asker,
        questions: Sequence[Question],
        due: Sequence[float],
        schedule: Schedule,
        progress: Callable[[Progress], None],
    ) -> None:
        self.records = [
            Record(number=number, group=question.group, planned=due[number], inputs=max(1, len(question.inputs)))
            for number, question in enumerate(questions)
        ]
        self.begun = perf_counter()
        self._asker = asker
        self._questions = questions
        self._progress = progress
        self._places = asyncio.Semaphore(schedule.concurrency or max(1, len(questions)))
        self._asked = self._done = self._failed = self._tokens = 0
        self._ended = self.begun

    async def run(self) -> float:
        """Until everything is answered; the seconds that the answering took."""
        begun = self.begun = perf_counter()
        async with asyncio.TaskGroup() as group:
            for record in self.records:
                wait = begun + record.planned - perf_counter()
                if wait > 0:
                    await asyncio.sleep(wait)
                await self._places.acquire()
                group.create_task(self._ask(record))
        return max(self._ended - begun, 1e-9)

    async def _ask(self, record: Record) -> None:
        self._asked += 1
        steps = self._asker.ask(self._questions[record.number], record)
        try:
            await anext(steps, None)
        finally:
            self._ended = perf_counter()
            self._places.release()
        async for _ in steps:
            await asyncio.sleep(0)
        self._done += 1
        self._failed += not record.good
        self._tokens += record.output_tokens
        self._progress(
            Progress(
                asked=self._asked,
                done=self._done,
                failed=self._failed,
                total=len(self.records),
                tokens=self._tokens,
                seconds=perf_counter() - self.begun,
            )
        )


@contextmanager
def _no_collections() -> Iterator[None]:
    """Without pauses of the garbage collector, which would be charged to the server."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
