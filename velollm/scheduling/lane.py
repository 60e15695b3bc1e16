"""A backend as the dispatcher sees it: how many requests it takes, what runs there, and how fast. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from velollm.scheduling.job import Job
from velollm.scheduling.limits import AdaptiveLimit
from velollm.scheduling.pace import Pace
from velollm.scheduling.residency import Residency

__all__ = ["Lane"]

MOST_MODELS = 256


class Lane:
    """One backend. `limit` is how many requests it is given at once: a number, or None to learn it for each model.

    `weight` is its share where the policy goes by weights. While it is not `usable` (down, draining), which is a
    question of time, it is given work only when nothing else has the model.
    """

    def __init__(
        self, name: str, *, limit: int | None, weight: float, quantum: float, usable: Callable[[float], bool]
    ) -> None:
        self.name = name
        self.limit = limit
        self.weight = weight
        self.usable = usable
        self.running: dict[Job, None] = {}
        self.by_model: dict[str, int] = {}
        self.tokens = 0.0  # expected tokens of what runs here, those of prompts and answers
        self.waiting_for = 0  # jobs in the queue whose home this is
        self.last_aged = -inf
        self.residency = Residency(quantum)
        self.slots: dict[str, int] = {}  # what the engine says of a model
        self._loading: str | None = None  # a model that has not answered since it became the current one
        self._limits: dict[str, AdaptiveLimit] = {}
        self._paces: dict[str, Pace] = {}

    def pace(self, model: str) -> Pace:
        """How fast it serves `model`."""
        found = self._paces.get(model)
        if found is None:
            _make_room(self._paces)
            found = self._paces[model] = Pace()
        return found

    def capacity(self, model: str, now: float) -> int:
        """How many requests for `model` may run at once."""
        if self.limit is not None:
            return self.limit
        told = self.slots.get(model)
        if told is not None:
            return told
        return self._adaptive(model).value(now)

    def has_room(self, model: str, now: float) -> bool:
        """Whether one more may start, as far as slots go."""
        if self.limit is not None:
            return len(self.running) < self.limit
        return self.by_model.get(model, 0) < self.capacity(model, now)

    def start(self, job: Job, now: float) -> None:
        """`job` starts here; its `model` is set."""
        self.running[job] = None
        self.by_model[job.model] = self.by_model.get(job.model, 0) + 1
        self.tokens += job.prompt_tokens + job.expected_tokens
        job.lane = self.name
        job.granted = now
        before = self.residency.current
        job.switches = self.residency.started(job.model, now)
        if before != self.residency.current:
            self._loading = job.model
        job.cold = self._loading == job.model

    def answered(self, job: Job, now: float) -> None:
        """The first event of its answer came."""
        pace = self.pace(job.model)
        took = now - job.granted
        if job.cold:
            self._has_loaded(job.model, now)
            usual = pace.usual(job)
            if job.switches is not None and usual is not None:
                self.residency.observed(job.switches, job.model, took, usual, now)
        elif job.stream:
            running = self.by_model[job.model]
            if self.limit is None and running > 1 and pace.was_queued(job, took):
                self._adaptive(job.model).queued(running, now)
            else:
                pace.began(took, job.prompt_tokens)

    def end(self, job: Job, now: float) -> None:
        """`job` holds its slot no longer."""
        del self.running[job]
        left = self.by_model[job.model] - 1
        if left:
            self.by_model[job.model] = left
        else:
            del self.by_model[job.model]
        self.tokens = self.tokens - job.prompt_tokens - job.expected_tokens if self.running else 0.0
        self.residency.ended(job.model, now)
        if not left:
            self._has_loaded(job.model, now)

    def learn(self, job: Job, now: float, load: float) -> None:
        """A whole answer was given: measure, without the `load` seconds that the engine loaded the model."""
        held = max(0.0, now - job.granted - load)
        produced = job.produced - job.before
        pace = self.pace(job.model)
        if job.cold and pace.measured:
            return  # it waited for the model
        pace.ended(held, job.prompt_tokens, produced)
        if self.limit is None and job.model not in self.slots:
            self._adaptive(job.model).answered(self.by_model.get(job.model, 0))

    def _has_loaded(self, model: str, now: float) -> None:
        if self._loading == model:
            self._loading = None
            self.residency.loaded(now)

    def _adaptive(self, model: str) -> AdaptiveLimit:
        found = self._limits.get(model)
        if found is None:
            _make_room(self._limits)
            found = self._limits[model] = AdaptiveLimit()
        return found


def _make_room(table: dict[str, Pace] | dict[str, AdaptiveLimit]) -> None:
    if len(table) >= MOST_MODELS:
        del table[next(iter(table))]
