"""The engine without thread or event loop: jobs in, steps, updates out.

job ──▶ one sequence a choice (forked when the prompt is computed) ──▶ step: schedule · execute · sample ──▶ updates
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Items
from time import perf_counter
from typing import Any, Literal, Protocol, TypeAlias

import attrs

from velollm.engine.blocks import BlockManager, root_hash
from velollm.engine.runner import Runner, RunnerError
from velollm.engine.sampling import Constraint, Draw, Logprob, NothingAllowed, Sampler, SamplingParams
from velollm.engine.scheduler import Chunk, Scheduler
from velollm.engine.sequence import Sequence, Status
from velollm.engine.text import TextStream
from velollm.errors import BackendError, Overloaded, VeloError

__all__ = ["EngineCore", "Job", "JobSpec", "Tokens", "Update"]

logger = logging.getLogger("velollm.engine")

Finish: TypeAlias = Literal["stop", "length"]


class Tokens(Protocol):
    """What the engine must know of a vocabulary."""

    def piece(self, token: int) -> bytes:
        """The bytes that the token stands for, empty for control tokens."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        ...


@attrs.frozen(kw_only=True)
class JobSpec:
    """What to generate: `n` continuations of `prompt`, each of at most `max_tokens` (None: what fits).

    `constrain` makes the constraint of one choice, on the engine's thread. Jobs share their KV cache only within one
    `tenant`. `priority` is a class, smaller is more urgent; by `deadline` the first token must be there, or the job
    fails (seconds of the engine's clock).
    """

    prompt: Items[int]
    sampling: SamplingParams = attrs.field(factory=SamplingParams)
    max_tokens: int | None = None
    n: int = 1
    stops: Items[str] = ()
    constrain: Callable[[], Constraint] | None = None
    priority: int = 0
    deadline: float | None = None
    tenant: str = ""


@attrs.define(kw_only=True)
class Update:
    """What one step added to choice `index`; `finish` is set with its last, `last` with the last of the whole job."""

    index: int
    tokens: list[int] = attrs.field(factory=list)
    text: str = ""
    logprobs: list[Logprob] = attrs.field(factory=list)
    finish: Finish | None = None
    stop_sequence: str | None = None
    last: bool = False


class Job:
    """A job in the engine. Times are readings of the engine's clock, in seconds."""

    def __init__(self, spec: JobSpec, listener: Any, arrival: float) -> None:
        self.spec = spec
        self.listener = listener
        self.arrival = arrival
        self.started: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self.num_cached = 0
        self.num_generated = 0
        self.error: VeloError | None = None
        self.choices: list[_Choice] = []

    @property
    def open(self) -> int:
        """Choices that are not finished."""
        return sum(choice.sequence.status is not Status.FINISHED for choice in self.choices)


class _Choice:
    __slots__ = ("index", "job", "sampler", "sequence", "text")

    def __init__(self, job: Job, index: int, sequence: Sequence, sampler: Sampler) -> None:
        self.job = job
        self.index = index
        self.sequence = sequence
        self.sampler = sampler
        self.text = TextStream(job.spec.stops)
        sequence.owner = self


class EngineCore:
    """Runs jobs on `runner`. `salt` keeps the cache of this engine from meeting that of another; `host_tokens` of it
    may lie on the host. The other `options` are those of `Scheduler`. Used by one thread.
    """

    def __init__(
        self,
        runner: Runner,
        tokens: Tokens,
        *,
        salt: bytes = b"",
        clock: Callable[[], float] = perf_counter,
        **options: Any,
    ) -> None:
        limits = runner.limits
        host_tokens = options.pop("host_tokens", 0)
        self.runner = runner
        self.blocks = BlockManager(
            limits.num_blocks,
            limits.block_size,
            slots=limits.slots,
            sharing=limits.sharing,
            host_tokens=host_tokens if limits.swapping else 0,
        )
        options["token_budget"] = min(options.get("token_budget", 256), limits.batch)
        options["max_running"] = min(options.get("max_running", 64), limits.slots)
        options["context"] = min(options.get("context") or limits.context, limits.context)
        if not limits.swapping:
            options["swap_tokens"] = 0
        if not limits.idle_costs:
            options.setdefault("idle", limits.num_blocks)
        self.scheduler = Scheduler(self.blocks, **options)
        self._tokens = tokens
        self._salt = salt
        self._clock = clock
        self._numbers = 0
        self._jobs: set[Job] = set()

    @property
    def idle(self) -> bool:
        """Nothing is left to do."""
        return not self._jobs and not self.blocks.events

    def add(self, spec: JobSpec, listener: Any = None) -> Job:
        """Take a job in. Raises `VeloError` when it can never run, or its constraint makes no sense."""
        job = Job(spec, listener, self._clock())
        constraint = spec.constrain() if spec.constrain is not None else None
        sequence = self._sequence(job, list(spec.prompt))
        self.scheduler.add(sequence)
        job.choices.append(_Choice(job, 0, sequence, Sampler(spec.sampling, constraint)))
        self._jobs.add(job)
        return job

    def abort(self, job: Job) -> None:
        """Nobody waits for it any more: what it holds is free at once."""
        for choice in job.choices:
            self.scheduler.finish(choice.sequence)
        job.ended = job.ended or self._clock()
        self._jobs.discard(job)

    def fail(self, job: Job, error: VeloError) -> None:
        """End a job with an error."""
        job.error = error
        self.abort(job)

    def fail_all(self, error: VeloError) -> list[Job]:
        """End everything with an error."""
        failed = list(self._jobs)
        for job in failed:
            self.fail(job, error)
        return failed

    def step(self) -> list[tuple[Job, Update | VeloError]]:
        """Compute one step; what it added to which job."""
        out: list[tuple[Job, Update | VeloError]] = []
        now = self._clock()
        for sequence in self.scheduler.overdue(now):
            self._lose(sequence.owner.job, _too_late(), out)
        step = self.scheduler.schedule()
        if not step.chunks:
            self.runner.apply(step.events)
            return out
        for chunk in step.chunks:
            job = chunk.sequence.owner.job
            if job.started is None:
                job.started, job.num_cached = now, chunk.sequence.num_cached
        try:
            self.runner.apply(step.events)
            tokens, logits = self._compute(step.chunks)
        except RunnerError as error:
            logger.error("%s", error)
            for chunk in step.chunks:
                self._lose(chunk.sequence.owner.job, BackendError(f"the engine could not compute: {error}"), out)
            return out
        self.scheduler.commit(step)
        self._sample([chunk.sequence.owner for chunk in step.chunks if chunk.sample], tokens, logits, out)
        return out

    def _compute(self, chunks: list[Chunk]) -> tuple[list[int | None], Any]:
        """For each row that is sampled: its token where that is chosen already, and its logits."""
        wanted = [chunk.sequence.owner for chunk in chunks if chunk.sample]
        choose = getattr(self.runner, "choose", None)
        if choose is not None:
            return choose(chunks, [_draw(choice) for choice in wanted])  # type: ignore[no-any-return]
        logits = self.runner.execute(chunks)
        best = logits.argmax(axis=1).tolist() if wanted else []
        greedy = (choice.sampler.constraint is None and choice.sampler.params.greedy for choice in wanted)
        return [token if taken else None for token, taken in zip(best, greedy, strict=True)], logits

    def _sample(
        self,
        wanted: list[_Choice],
        tokens: list[int | None],
        logits: Any,
        out: list[tuple[Job, Update | VeloError]],
    ) -> None:
        for row, choice in enumerate(wanted):
            choices = [choice]
            if choice.job.spec.n > len(choice.job.choices):
                choices += self._fork(choice)
            for one in choices:
                if one.sequence.status is not Status.RUNNING:
                    continue  # a fork that found no room, and waits; or its job failed just now
                token = tokens[row]
                try:
                    if token is None:
                        token = one.sampler.sample(logits[row], one.sequence.tokens, one.sequence.num_prompt)
                except NothingAllowed:
                    self._end(one, Update(index=one.index, text=one.text.finish()), "stop", out)
                    continue
                except VeloError as error:
                    self._lose(one.job, error, out)
                    continue
                self._take(one, token, logits[row], out)

    def _fork(self, choice: _Choice) -> list[_Choice]:
        job = choice.job
        made = []
        for number in range(len(job.choices), job.spec.n):
            sequence = self._sequence(job, choice.sequence.tokens)
            sequence.deadline = None  # the job's first token is there
            fork = _Choice(job, number, sequence, choice.sampler.fork(number))
            self.scheduler.fork(choice.sequence, sequence)
            job.choices.append(fork)
            made.append(fork)
        return made

    def _take(self, choice: _Choice, token: int, logits: Any, out: list[tuple[Job, Update | VeloError]]) -> None:
        job, sequence, spec = choice.job, choice.sequence, choice.job.spec
        sequence.tokens.append(token)
        job.num_generated += 1
        if job.first_token is None:
            job.first_token = self._clock()
        update = Update(index=choice.index, tokens=[token])
        if self._tokens.is_end(token):
            update.text = choice.text.finish()
            return self._end(choice, update, "stop", out)
        if spec.sampling.logprobs is not None:
            update.logprobs.append(choice.sampler.logprob(logits, token))
        update.text = choice.text.feed(self._tokens.piece(token))
        constraint = choice.sampler.constraint
        count = len(sequence) - sequence.num_prompt
        if choice.text.stopped is not None:
            update.stop_sequence = choice.text.stopped
            return self._end(choice, update, "stop", out)
        if constraint is not None and constraint.done:
            update.text += choice.text.finish()
            return self._end(choice, update, "stop", out)
        if count == spec.max_tokens or len(sequence) >= self.scheduler.limit:
            update.text += choice.text.finish()
            return self._end(choice, update, "length", out)
        out.append((job, update))
        return None

    def _end(self, choice: _Choice, update: Update, finish: Finish, out: list[tuple[Job, Update | VeloError]]) -> None:
        job = choice.job
        self.scheduler.finish(choice.sequence)
        update.finish = finish
        if not job.open and len(job.choices) == job.spec.n:
            job.ended = self._clock()
            self._jobs.discard(job)
            update.last = True
        out.append((job, update))

    def _lose(self, job: Job, error: VeloError, out: list[tuple[Job, Update | VeloError]]) -> None:
        if job in self._jobs:
            self.fail(job, error)
            out.append((job, error))

    def _sequence(self, job: Job, tokens: list[int]) -> Sequence:
        self._numbers += 1
        spec = job.spec
        return Sequence(
            self._numbers,
            tokens,
            priority=spec.priority,
            arrival=job.arrival,
            deadline=spec.deadline,
            root=root_hash(self._salt, spec.tenant),
        )


def _draw(choice: _Choice) -> Draw | None:
    """How its token is drawn where the logits lie; the first of several choices share logits, and need them."""
    job = choice.job
    return choice.sampler.draw(len(choice.sequence)) if len(job.choices) == job.spec.n else None


def _too_late() -> Overloaded:
    return Overloaded("the first token could not be there by the deadline", code="deadline_unreachable")
