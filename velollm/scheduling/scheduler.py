"""The dispatcher in an event loop: requests wait for their turn here, and one timer does what time asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from velollm.scheduling.dispatcher import Dispatcher, Grant, Refuse, Step
from velollm.scheduling.job import Job

__all__ = ["Scheduler"]


class Scheduler:
    """Gives turns. `clock` gives seconds, as `time.monotonic` does.

    Whoever has taken a turn gives it back with `done`, whatever happens; one that was given up while waiting needs no
    `done`.
    """

    def __init__(self, dispatcher: Dispatcher, *, clock: Callable[[], float] = monotonic) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self._futures: dict[Job, asyncio.Future[None]] = {}
        self._victims: dict[Job, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None

    def take(self, job: Job) -> Awaitable[None] | None:
        """What to wait for until `job` may start, on `job.lane`; None where it starts at once. Raises `Overloaded`."""
        steps = self.dispatcher.submit(job, self.clock())
        if len(steps) == 1 and job.state == "running" and not self._futures:  # nobody waits: there is nothing to do
            return None
        return self._wait(job, steps)

    async def retake(self, job: Job, *, preempted: bool = False) -> None:
        """Give the turn back and wait for another one, before all others of its kind."""
        await self._wait(job, self.dispatcher.yielded(job, self.clock(), preempted=preempted))

    def answered(self, job: Job) -> None:
        """The first event of the answer came."""
        self.dispatcher.answered(job, self.clock())

    def done(self, job: Job, *, complete: bool, load: float | None = None) -> None:
        """The turn is over."""
        self._victims.pop(job, None)
        self._do(self.dispatcher.done(job, self.clock(), complete=complete, load=load))

    def on_preemption(self, job: Job, give_way: Callable[[], None]) -> None:
        """What to call when `job`, which is running, is to make way; it answers with `retake`."""
        self._victims[job] = give_way

    def set_slots(self, name: str, model: str, slots: int | None) -> None:
        """How many requests for `model` a backend works on at once, as it says itself; None when it does not."""
        lane = self.dispatcher.lanes[name]
        if slots is None:
            lane.slots.pop(model, None)
        elif lane.slots.get(model) != slots:
            lane.slots[model] = max(1, slots)
            self._do(self.dispatcher.dispatch(self.clock()))

    def close(self) -> None:
        """No more timers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- inside ----

    async def _wait(self, job: Job, steps: Sequence[Step]) -> None:
        future = self._futures[job] = asyncio.get_running_loop().create_future()
        try:
            self._do(steps)
            await future
        except BaseException:
            self._do(self.dispatcher.done(job, self.clock(), complete=False))
            raise
        finally:
            self._futures.pop(job, None)

    def _do(self, steps: Sequence[Step]) -> None:
        if not steps and not self._futures and self._timer is None:
            return
        for step in steps:
            if isinstance(step, Grant):
                self._tell(step.job, None)
            elif isinstance(step, Refuse):
                self._tell(step.job, step.error)
            else:
                self._victims[step.job]()
        self._arm()

    def _tell(self, job: Job, error: Exception | None) -> None:
        future = self._futures.get(job)
        if future is None or future.done():  # its client has just left
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _arm(self) -> None:
        """One timer at most, for the next time that the dispatcher wants to look."""
        due = self.dispatcher.next_check(self.clock()) if self._futures else None
        if due is not None and self._timer is not None and self._due is not None and self._due <= due:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = due
        if due is not None:
            delay = max(0.0, due - self.clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._do(self.dispatcher.dispatch(self.clock()))
