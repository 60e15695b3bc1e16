"""Turns at the backends of a pool: makes jobs of requests, and has the scheduler say when and where each one goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

import attrs

from velollm.admission.urgency import read_urgency, says_urgency
from velollm.backend import Backend
from velollm.errors import Overloaded, VeloError
from velollm.messages import ChatEvent, ChatRequest, EmbedRequest, RequestContext, Usage
from velollm.routing.affinity import chain_of
from velollm.routing.interruption import Interruption
from velollm.routing.placement import placement
from velollm.scheduling.dispatcher import MOST_PREEMPTIONS, Dispatcher
from velollm.scheduling.job import BATCH, LEVELS, NORMAL, Job
from velollm.scheduling.metrics import SchedulingMetrics
from velollm.scheduling.reading import body_size, conversation_of, prompt_size
from velollm.scheduling.scheduler import Scheduler
from velollm.stages import next_stage

__all__ = ["Turn", "Turns"]

logger = logging.getLogger("velollm.scheduling")

UNLIMITED = 1 << 30
ASK_AGAIN_SECONDS = 60.0
FIRST_ASK_SECONDS = 0.5  # so long the first request for a model waits to hear how many slots there are
CHARACTERS_PER_TOKEN = 4
MOST_MODELS = 1024


class Turns:
    """Hands out turns.

    `concurrency` is how many requests a backend is given at once: a number, 0 for what it says itself (or else turns
    out to be best), or None for any number; `each` and `weights` are by the names of backends. `slo` is the latest
    first byte of whatever is not batch work, and `queue_timeout` the longest wait, in seconds.
    """

    def __init__(
        self,
        *,
        policy: str = "least-loaded",
        concurrency: int | None = None,
        each: Mapping[str, int] = {},
        weights: Mapping[str, float] = {},
        slo: float | None = None,
        queue_timeout: float | None = None,
        max_queue: int = 512,
        ageing: float = 30.0,
        quantum: float = 5.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        dispatcher = Dispatcher(placement(policy), max_queue=max_queue, ageing=ageing, quantum=quantum)
        self.scheduler = Scheduler(dispatcher, clock=clock)
        self.metrics = SchedulingMetrics(dispatcher)
        self.by_complexity = policy == "complexity"
        self._prefix = policy == "prefix"
        self._concurrency = concurrency
        self._each = dict(each)
        self._weights = dict(weights)
        self._slo = slo
        self._queue_timeout = queue_timeout
        self._clock = clock
        self._backends: dict[str, Backend] = {}
        self._asked: dict[tuple[str, str], tuple[float, asyncio.Task[None]]] = {}

    def add(self, backend: Backend, usable: Callable[[float], bool]) -> None:
        """One more backend; `usable` says of a time whether it may be given work then."""
        concurrency = self._each.get(backend.name, self._concurrency)
        limit = UNLIMITED if concurrency is None else concurrency or None
        weight = self._weights.get(backend.name, 1.0)
        self.scheduler.dispatcher.add_lane(backend.name, limit=limit, weight=weight, usable=usable)
        self._backends[backend.name] = backend

    async def take(self, request: ChatRequest | EmbedRequest, targets: Mapping[str, str]) -> Turn:
        """Wait for the turn of `request`; `targets` are the backends that have its model, with their names for it.

        Raises `Overloaded`, or `RequestError` when the request says something about its urgency that makes no sense.
        """
        lanes = self.scheduler.dispatcher.lanes
        await next_stage()
        job = self._job(request, targets)
        for name, model in targets.items():
            if lanes[name].limit is None and not self._has_asked(name, model, job.arrival):
                await self._ask(name, model)
        try:
            waiting = self.scheduler.take(job)
            if waiting is not None:
                await waiting
        except Overloaded as error:
            self.metrics.refused(error.code)
            raise
        now = self._clock()
        marks = request.context.marks
        marks["queued"], marks["sent"] = job.arrival, now
        self.metrics.waited(job.model, now - job.arrival)
        return Turn(self.scheduler, job)

    def close(self) -> None:
        """No more timers and questions."""
        self.scheduler.close()
        for _, task in self._asked.values():
            task.cancel()

    # ---- inside ----

    def _job(self, request: ChatRequest | EmbedRequest, targets: Mapping[str, str]) -> Job:
        now = self._clock()
        context = request.context
        if says_urgency(context, request.extra):
            read_urgency(context, request.extra, None, now)
        level = NORMAL if context.priority is None else LEVELS.index(context.priority)
        job = Job(targets=targets, level=level, tenant=context.tenant, arrival=now)
        job.deadline = self._deadline(context, level, now)
        if self._queue_timeout is not None:
            job.expires = now + self._queue_timeout
        if isinstance(request, EmbedRequest):
            job.stream = False
            job.max_tokens = 1
            job.size = sum(len(text) for text in request.inputs)
            job.prompt_tokens = job.size // CHARACTERS_PER_TOKEN + 1
            return job
        job.stream = request.stream
        job.max_tokens = None if request.max_tokens is None else request.max_tokens * request.n
        job.size = body_size(request)
        job.prompt_tokens = prompt_size(request)
        job.conversation = conversation_of(request)
        if self._prefix and len(targets) > 1:
            chain = chain_of(request)
            job.prefix, job.block_tokens, job.shared = chain.hashes, chain.tokens, chain.shared
        return job

    def _deadline(self, context: RequestContext, level: int, now: float) -> float | None:
        own = context.deadline
        if self._slo is None or level == BATCH:
            return own
        latest = context.marks.get("received", now) + self._slo
        return latest if own is None else min(own, latest)

    def _has_asked(self, name: str, model: str, now: float) -> bool:
        known = self._asked.get((name, model))
        return known is not None and now - known[0] < ASK_AGAIN_SECONDS and known[1].done()

    async def _ask(self, name: str, model: str) -> None:
        """Ask the backend how many slots it has, the first time with some patience."""
        now = self._clock()
        known = self._asked.get((name, model))
        if known is None or now - known[0] >= ASK_AGAIN_SECONDS:
            if len(self._asked) >= MOST_MODELS:
                self._asked.clear()
            task = asyncio.create_task(self._learn_slots(name, model))
            self._asked[name, model] = (now, task)
            if known is None:
                known = (now, task)
        since, task = known
        if not task.done() and now - since < FIRST_ASK_SECONDS:
            await asyncio.wait({task}, timeout=FIRST_ASK_SECONDS - (now - since))

    async def _learn_slots(self, name: str, model: str) -> None:
        try:
            slots = await self._backends[name].slots(model)
        except VeloError as error:
            logger.debug("%s does not say how many slots it has: %s", name, error.message)
        else:
            self.scheduler.set_slots(name, model, slots)


class Turn:
    """A slot at a backend, for one request. Whoever has it calls `end`, whatever happens."""

    __slots__ = ("_begun", "_complete", "_job", "_scheduler", "_usage", "interruption")

    def __init__(self, scheduler: Scheduler, job: Job) -> None:
        self._scheduler = scheduler
        self._job = job
        self._begun = False
        self._complete = False
        self._usage: Usage | None = None
        self.interruption: Interruption | None = None  # of a stream that may have to stop

    @property
    def backend(self) -> str:
        """Where it is."""
        assert self._job.lane is not None
        return self._job.lane

    @property
    def preemptions(self) -> int:
        """How often it has made way."""
        return self._job.preemptions

    @property
    def may_make_way(self) -> bool:
        """Whether it is for work that makes way for more urgent work, where it can be continued."""
        return self._job.level == BATCH

    async def allow_preemption(self, backend: Backend, request: ChatRequest) -> ChatRequest:
        """Have it make way when need be, if `backend` was proved to go on exactly; the request to send.

        What has to be found out is found out in this turn, and makes way as well. An answer in one piece is asked for
        as a stream: of that, what was said is not lost.
        """
        if self._job.preemptions >= MOST_PREEMPTIONS:
            return request
        self._job.preemptible = True
        self.interruption = Interruption()
        self._scheduler.on_preemption(self._job, self.interruption.give_way)
        if not await self.interruption.run(backend.resumes(request.model)):
            self._job.preemptible = False
            return request
        return request if request.stream else attrs.evolve(request, stream=True, source=None)

    def stay(self) -> None:
        """It has come to where it can be gone on with no more: it keeps its slot."""
        self._job.preemptible = False

    def saw(self, event: ChatEvent) -> None:
        """An event of the answer came."""
        if not self._begun:
            self._begun = True
            self._scheduler.answered(self._job)
        if event.usage is not None:
            self._usage = event.usage
        self._job.produced += event.pieces  # about one token, until the usage says how many

    def complete(self) -> None:
        """The answer is whole."""
        self._complete = True
        usage = self._usage
        if usage is not None:
            self._job.produced = max(usage.completion_tokens, self._job.before)
            self._job.prompt_used = max(0, usage.prompt_tokens - (usage.cached_tokens or 0))

    async def again(self, choices: Sequence[str]) -> None:
        """Wait for another turn, at one of `choices`. Raises `Overloaded`."""
        self._stop()
        self._job.avoid = frozenset(self._job.targets) - frozenset(choices)
        await self._scheduler.retake(self._job)

    async def make_way(self) -> None:
        """Give the slot to more urgent work, and wait for the next turn."""
        self._stop()
        await self._scheduler.retake(self._job, preempted=True)

    def end(self) -> None:
        """Give the slot back."""
        timings = None if self._usage is None else self._usage.timings
        load = None if timings is None else timings.load
        self._scheduler.done(self._job, complete=self._complete, load=load)

    def _stop(self) -> None:
        self._begun = False
        self._job.preemptible = False
        self.interruption = None
