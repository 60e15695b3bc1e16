"""`benchmark()`: a workload asked of a server or a backend, and what came of it."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from random import Random
from typing import Any, TypeVar

import attrs

from velollm.backend import Backend
from velollm.bench.counters import difference
from velollm.bench.question import Question
from velollm.bench.result import Result, Step, client_facts, settings_of, warnings_of
from velollm.bench.runner import Progress, Run, run
from velollm.bench.schedule import Schedule, due_times
from velollm.bench.summary import PERCENTILES, summarise
from velollm.bench.target import Target, open_target
from velollm.bench.wires import Asking
from velollm.bench.workload import PROFILES, profile_name, questions
from velollm.errors import BackendError, ConfigError

__all__ = ["Plan", "benchmark", "benchmark_async"]

T = TypeVar("T")

USUAL_CONCURRENCY = 4
WARM_UP_TOKENS = 4
OTHER_SEED = 0x5EED  # of warm-ups: what they ask is asked by nobody else


@attrs.frozen(kw_only=True)
class Plan:
    """What is asked, and how. Without `max_concurrency` and `request_rate`, four clients ask in turns.

    `dataset` takes the place of the questions of `profile`. `goodput` are objectives in milliseconds (`ttft`, `tpot`,
    `e2el`). Without a `seed` every run asks something new, so that no cache of an earlier one answers; another `salt`
    makes the questions of a seed new to caches.
    """

    model: str | None = None
    profile: str = attrs.field(default="chat", converter=profile_name)
    dataset: Sequence[Question] | None = None
    num_prompts: int = 32
    max_concurrency: int | None = None
    request_rate: float = math.inf
    burstiness: float = 1.0
    input_len: int | None = None
    output_len: int | None = None
    seed: int | None = None
    salt: str = ""
    goodput: Mapping[str, float] = attrs.field(factory=dict)
    percentiles: Sequence[float] = PERCENTILES
    num_warmups: int = 1
    sweep: Sequence[int] = (1, 2, 4, 8, 16)
    completions: bool = False
    ignore_eos: bool = False
    temperature: float | None = 0.0
    extra_body: Mapping[str, Any] = attrs.field(factory=dict)
    headers: Mapping[str, str] = attrs.field(factory=dict)
    api_key: str = ""
    timeout: float = 600.0
    label: str = ""
    metadata: Mapping[str, str] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        unknown = self.goodput.keys() - {"ttft", "tpot", "e2el"}
        if unknown:
            raise ConfigError(f"there is no objective {min(unknown)!r}: ttft, tpot and e2el, in milliseconds")
        if any(not 0 <= percent <= 100 for percent in self.percentiles):
            raise ConfigError("percentiles lie between 0 and 100")
        if self.num_warmups < 0 or self.timeout <= 0 or any(one < 1 for one in self.sweep):
            raise ConfigError("warm-ups, timeout and the steps of a sweep must make sense")

    @property
    def schedule(self) -> Schedule:
        """When requests are sent."""
        concurrency = self.max_concurrency
        if concurrency is None and not math.isfinite(self.request_rate):
            concurrency = USUAL_CONCURRENCY
        return Schedule(rate=self.request_rate, burstiness=self.burstiness, concurrency=concurrency)


def benchmark(
    backend: str | Backend = "auto",
    *,
    progress: Callable[[Progress], None] = lambda state: None,
    **options: Any,
) -> Result:
    """Measure what answers at `backend`: an URL, `auto`, a GGUF file, an installed model, or a `Backend`.

    `options` are the fields of `Plan`. Raises `ConfigError` for options that make no sense or a model that is not
    served, `BackendUnreachable` when nobody is there, `BackendError` when no request was answered at all.
    """
    plan = Plan(**options)
    return run_quickly(benchmark_async(backend, plan, progress=progress))


async def benchmark_async(
    backend: str | Backend, plan: Plan, *, progress: Callable[[Progress], None] = lambda state: None
) -> Result:
    """The same in a running event loop, which should have little else to do meanwhile."""
    async with open_target(backend, headers=plan.headers, patience=plan.timeout, api_key=plan.api_key) as target:
        session = _Session(target, plan, progress)
        await session.prepare()
        return await session.sweep() if plan.profile == "sweep" and plan.dataset is None else await session.once()


class _Session:
    def __init__(self, target: Target, plan: Plan, progress: Callable[[Progress], None]) -> None:
        self._target = target
        self._plan = plan
        self._progress = progress
        self._seed = secrets.randbits(31) if plan.seed is None else plan.seed
        self._model = plan.model or ""
        self._embeds = plan.dataset is None and plan.profile in PROFILES and PROFILES[plan.profile].embeds

    async def prepare(self) -> None:
        """Choose a model, and see that it answers."""
        if not self._model:
            self._model = _chosen(await self._target.models(), embeds=self._embeds)
        if not self._model:
            raise ConfigError(f"{self._target.name} lists no model: install one, or say which with --model")
        await self._warm_up()

    async def once(self) -> Result:
        """One run."""
        schedule, plan = self._plan.schedule, self._plan
        asked = list(plan.dataset) if plan.dataset is not None else self._questions(plan.num_prompts, self._seed)
        done, figures = await self._measure(asked, schedule)
        return self._result(done, figures, schedule, len(asked))

    async def sweep(self) -> Result:
        """A run for each number of clients."""
        steps: list[Step] = []
        results: list[Result] = []
        for place, clients in enumerate(self._plan.sweep):
            count = max(2 * clients, min(self._plan.num_prompts, 4 * clients))
            schedule = Schedule(concurrency=clients)
            done, figures = await self._measure(self._questions(count, self._seed + place), schedule)
            steps.append(Step(concurrency=clients, rate=math.inf, figures=figures))
            results.append(self._result(done, figures, schedule, count))
        warnings = tuple(dict.fromkeys(word for result in results for word in result.warnings))
        return attrs.evolve(results[-1], steps=tuple(steps), warnings=warnings)

    async def _measure(self, asked: Sequence[Question], schedule: Schedule) -> tuple[Run, dict[str, Any]]:
        plan = self._plan
        due = due_times(schedule, len(asked), Random(self._seed))  # noqa: S311 -- no secret
        before = await self._target.counters()
        done = await run(self._asker(), asked, due, schedule, progress=self._progress)
        counted = difference(before, await self._target.counters())
        if not any(record.good for record in done.records):
            raise BackendError(
                f"none of {len(asked)} requests was answered by {self._target.name}: "
                f"{done.records[0].error if done.records else 'there were none'}"
            )
        figures = summarise(
            done.records,
            done.seconds,
            embeds=self._embeds,
            slos={name: value / 1000 for name, value in plan.goodput.items()},
            percentiles=plan.percentiles,
            queued=schedule.is_open and schedule.concurrency is not None,
        )
        return done, _counted(counted) | figures

    def _result(self, done: Run, figures: dict[str, Any], schedule: Schedule, count: int) -> Result:
        plan = self._plan
        client = client_facts(done.records, done.lag, schedule)
        settings = settings_of(
            backend=self._target.kind,
            model=self._model,
            profile="dataset" if plan.dataset is not None else plan.profile,
            count=count,
            schedule=schedule,
            seed=self._seed,
            now=datetime.now().astimezone(),
            label=plan.label,
            metadata=plan.metadata,
        )
        warnings = warnings_of(done.records, figures, client)
        return Result(settings=settings, figures=figures, records=done.records, client=client, warnings=warnings)

    def _questions(self, count: int, seed: int) -> list[Question]:
        plan = self._plan
        lengths = {"prompt": plan.input_len, "answer": plan.output_len}
        made = questions(plan.profile, count, seed=seed, salt=plan.salt, **lengths)
        if not plan.completions:
            return made
        return [attrs.evolve(one, messages=(), tools=(), prompt=one.text) for one in made]

    def _asker(self) -> Any:
        plan = self._plan
        return self._target.asker(
            Asking(
                model=self._model,
                temperature=plan.temperature,
                ignore_eos=plan.ignore_eos,
                extra=dict(plan.extra_body),
            )
        )

    async def _warm_up(self) -> None:
        """Ask something else first, which loads the model, and says at once what is wrong."""
        if not self._plan.num_warmups:
            return
        name = "embeddings" if self._embeds else "chat"
        asked = questions(name, self._plan.num_warmups, seed=self._seed ^ OTHER_SEED, answer=WARM_UP_TOKENS)
        done = await run(self._asker(), asked, [0.0] * len(asked), Schedule(concurrency=1))
        wrong = next((record for record in done.records if record.error), None)
        if wrong is not None:
            raise BackendError(
                f"{self._target.name} does not answer {self._model!r}: {wrong.error}{await self._hint()}"
            )

    async def _hint(self) -> str:
        try:
            served = await self._target.models()
        except (BackendError, ConfigError):
            return ""
        if not served or self._model in served:
            return ""
        return f" (it serves {', '.join(served[:8])}{', ...' if len(served) > 8 else ''})"


def _chosen(models: Sequence[str], *, embeds: bool) -> str:
    """The first that can do it, by its name."""
    fitting = [name for name in models if ("embed" in name.lower() or "minilm" in name.lower()) == embeds]
    return next(iter([*fitting, *models]), "")


def _counted(counters: Mapping[str, float]) -> dict[str, Any]:
    """What the server counted itself; figures from its answers take precedence."""
    found: dict[str, Any] = {}
    if counters.get("prefix_queries"):
        found["prefix_cached_tokens"] = int(counters.get("prefix_hits", 0))
        found["prefix_cache_hit_rate"] = counters.get("prefix_hits", 0.0) / counters["prefix_queries"]
    if counters.get("draft_tokens"):
        found["spec_decode_draft_tokens"] = int(counters["draft_tokens"])
        found["spec_decode_accepted_tokens"] = int(counters.get("accepted_tokens", 0))
        found["spec_decode_acceptance_rate"] = 100 * counters.get("accepted_tokens", 0.0) / counters["draft_tokens"]
        if counters.get("drafts"):
            found["spec_decode_num_drafts"] = int(counters["drafts"])
            found["spec_decode_acceptance_length"] = 1 + counters.get("accepted_tokens", 0.0) / counters["drafts"]
    return found


def run_quickly(job: Coroutine[Any, Any, T]) -> T:
    """Run `job` to its end on the quickest event loop there is, in a thread of its own where one runs already."""

    def go() -> T:
        with asyncio.Runner(loop_factory=_loop) as runner:
            return runner.run(job)

    if not _runs_already():
        return go()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(go).result()


def _runs_already() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows, PyPy
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
