"""A world of virtual time around a dispatcher: engines with slots, prefill, decode and models to load, and clients."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import attrs

from velollm.errors import Overloaded
from velollm.routing.placement import placement
from velollm.scheduling.dispatcher import Dispatcher, Grant, Preempt, Refuse, Step
from velollm.scheduling.job import Job

Then = Callable[["World", Job], None]


@attrs.define
class Served:
    """What became of one job. Times are those of the world; None for what did not happen."""

    job: Job
    asked: float
    first: float | None = None
    end: float | None = None
    refused: Overloaded | None = None
    refused_at: float | None = None


class World:
    """`prefill` and `decode` are seconds a token, `load` seconds to change a model; `speeds` slow engines down."""

    def __init__(
        self,
        engines: dict[str, int] | None = None,
        *,
        policy: str = "least-loaded",
        prefill: float = 0.0005,
        decode: float = 0.005,
        load: float = 0.0,
        speeds: dict[str, float] | None = None,
        **options: float,
    ) -> None:
        self.now = 0.0
        self.dispatcher = Dispatcher(placement(policy), **options)  # type: ignore[arg-type]
        self.engines = engines or {"engine": 4}
        for name, slots in self.engines.items():
            self.dispatcher.add_lane(name, limit=slots)
        self.prefill, self.decode, self.load = prefill, decode, load
        self.speeds = speeds or {}
        self.loaded: dict[str, str] = {}
        self.loads = 0
        self.served: dict[Job, Served] = {}
        self.most_running = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._runs: dict[Job, int] = {}
        self._then: dict[Job, Then] = {}

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._events, (time, next(self._number), action))

    def run(self, until: float) -> None:
        """Let time go by."""
        while True:
            check = self.dispatcher.next_check(self.now)
            times = [entry[0] for entry in self._events[:1]] + ([check] if check is not None else [])
            if not times or min(times) > until:
                self.now = until
                return
            self.now = max(self.now, min(times))
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            else:
                self._do(self.dispatcher.dispatch(self.now))

    def ask(
        self, tokens: int = 20, *, prompt: int = 20, model: str = "m", then: Then | None = None, **more: object
    ) -> Job:
        """A request comes; `then` is called when it was answered or refused."""
        job = Job(
            targets=dict.fromkeys(self.engines, model),
            prompt_tokens=prompt,
            max_tokens=tokens,
            arrival=self.now,
            **more,
        )  # type: ignore[arg-type]
        self.served[job] = Served(job, self.now)
        if then is not None:
            self._then[job] = then
        try:
            steps = self.dispatcher.submit(job, self.now)
        except Overloaded as error:
            self._refused(job, error)
        else:
            self._do(steps)
        return job

    # ---- inside ----

    def _do(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, Grant):
                self._start(step.job)
            elif isinstance(step, Refuse):
                self._refused(step.job, step.error)
            else:
                assert isinstance(step, Preempt)
                self._runs[step.job] += 1
                self.at(self.now + 0.001, lambda job=step.job: self._do(self.dispatcher.yielded(job, self.now)))

    def _refused(self, job: Job, error: Overloaded) -> None:
        served = self.served[job]
        served.refused, served.refused_at = error, self.now
        self._finish(job)

    def _start(self, job: Job) -> None:
        assert job.lane is not None
        lane = self.dispatcher.lanes[job.lane]
        self.most_running = max(self.most_running, len(lane.running))
        slow = self.speeds.get(job.lane, 1.0)
        begin = self.now
        if self.load and self.loaded.get(job.lane) != job.model:
            self.loads += 1
            self.loaded[job.lane] = job.model
            begin += self.load
        run = self._runs[job] = self._runs.get(job, 0) + 1
        first = begin + slow * self.prefill * (job.prompt_tokens + job.produced)
        self.at(first, lambda: self._answered(job, run))
        for number in range(job.produced + 1, (job.max_tokens or 64) + 1):
            self.at(first + slow * self.decode * (number - job.before), lambda: self._token(job, run))

    def _answered(self, job: Job, run: int) -> None:
        if self._runs[job] == run:
            served = self.served[job]
            served.first = self.now if served.first is None else served.first
            self.dispatcher.answered(job, self.now)

    def _token(self, job: Job, run: int) -> None:
        if self._runs[job] != run:
            return
        job.produced += 1
        if job.produced == (job.max_tokens or 64):
            self.served[job].end = self.now
            self._do(self.dispatcher.done(job, self.now))
            self._finish(job)

    def _finish(self, job: Job) -> None:
        then = self._then.pop(job, None)
        if then is not None:
            then(self, job)
