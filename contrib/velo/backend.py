"""A GGUF file answered by the engine in this process: `EngineBackend`. A crash of llama.cpp would end this process;
`ServedEngine` runs the same in a child."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import attrs

from velollm.backend import Backend, Limits
from velollm.continuation import Kept, Proofs, Said, Token, check_resumable, ended, is_greedy, rest
from velollm.contrib.llamacpp.local_model import describe, locate, model_name
from velollm.contrib.llamacpp.plan import this_machine
from velollm.contrib.llamacpp.resumed import likely_tokens, rest_of, said_tokens
from velollm.contrib.velo.answer import ChoiceWriter
from velollm.contrib.velo.capabilities import CAPABILITIES, kind_of
from velollm.contrib.velo.plan import GPU_TYPES, EnginePlan, make_plan
from velollm.contrib.velo.reading import PRIORITIES, Meant, read_prompt, read_request
from velollm.contrib.velo.template import ChatTemplate
from velollm.engine.constraints import Grammars
from velollm.engine.core import Job, JobSpec
from velollm.engine.embedder import Embedder
from velollm.engine.engine import Engine
from velollm.engine.llama_runner import LlamaCppRunner, LlamaModel
from velollm.engine.runner import Runner
from velollm.errors import ConfigError, ModelNotFound, RequestError, UnsupportedError
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    ModelInfo,
    ResponseMeta,
    Timings,
    Usage,
)
from velollm.models.gguf import GGUF, read_gguf

__all__ = ["EngineBackend"]

logger = logging.getLogger("velollm.engine")

LONG_TEXT = 20_000  # characters from which a prompt is read on a thread, so that the loop goes on


class EngineBackend(Backend):
    """The model `model`: a path to a GGUF file, or the name of an installed model.

    `ctx` is the longest conversation in tokens, `parallel` how many are computed at once, `kv_type` the type of the KV
    cache, `num_blocks` its size in blocks of 16 tokens, `batch` the largest step in tokens: by default what suits model
    and machine. `kv_layout` "unified" keeps the cache in one piece. With a `device` the kernels of velollm.gpu compute
    on that GPU. `plan` is a plan that was made already; `aliases` are further names it answers to. `on_gpu_failure` is
    called when the GPU fails. Raises `ConfigError` when there is no such model, the file is no usable GGUF, the extra
    is missing, or memory does not suffice.
    """

    capabilities = CAPABILITIES

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        limits: Limits = Limits(),
        aliases: Iterable[str] = (),
        folder: Path | None = None,
        plan: Mapping[str, Any] | None = None,
        on_gpu_failure: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> None:
        self._wanted = model
        self.model = model_name(model)
        self.name = name or self.model
        self.aliases = frozenset(aliases)
        self.path = locate(model, folder)
        self.header: GGUF = read_gguf(self.path)
        self.plan = EnginePlan(**plan) if plan else make_plan(self.header, this_machine(), **options)
        self.kind = kind_of(self.plan.device)
        self._on_gpu_failure = on_gpu_failure
        self._proofs = Proofs()
        self._loaded: _Loaded | None = None
        self._loading: asyncio.Task[_Loaded] | None = None

    # ---- what it answers ----

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate; loads the model when need be."""
        self._check(request.model)
        loaded = await self._ready_model()
        if request.asks_nothing:  # but for the model, which is there now
            yield ChatEvent(finish_reason="stop")
            return
        if not loaded.model.generates:
            raise UnsupportedError(f"{self.model} embeds text, and does not generate any", param="model")
        meant = await loaded.read(request)
        spec = self._spec(request, meant)
        writers = [ChoiceWriter(index, meant, loaded.model.vocabulary, self.name) for index in range(request.n)]
        meta: ResponseMeta | None = ResponseMeta(model=self.model, created=int(time.time()))
        async with aclosing(loaded.engine.generate(spec)) as updates:
            async for job, update in updates:
                event = writers[update.index].feed(update)
                if event is None:
                    continue
                event.meta, meta = meta, None
                if update.last:
                    event.usage = _usage(job, len(meant.prompt))
                yield event

    async def resumes(self, model: str) -> bool:
        """Whether it goes on with answers exactly: tried once."""
        return await self._proofs.ask(self, self.model)

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer behind the tokens of its prompt and those that were said, of which most are cached."""
        check_resumable(request, said)
        self._check(request.model)
        loaded = await self._ready_model()
        meant = await loaded.read(request)
        if meant.thinking or (meant.thinking is False and loaded.template.thinks and request.think is not False):
            raise UnsupportedError("the answer cannot be continued: it may have begun to reason")
        known = await said_tokens(said.pieces, loaded.tokens_of, request.stop)
        if known.pieces < len(said.pieces) and not is_greedy(request):
            known = await likely_tokens(said.pieces, known, loaded.tokens_of)
        kept = Kept(pieces=known.pieces, tokens=len(known.ids), prompt=len(meant.prompt))
        asked = rest_of(request, meant.prompt, known)
        if asked.max_tokens is not None and asked.max_tokens <= 0:
            yield ended(kept)
            return
        async with aclosing(rest(self.chat(asked), request, said, kept)) as events:
            async for event in events:
                yield event

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector of length 1 an input: by the pooling that the model was trained for, else the mean."""
        self._check(request.model)
        loaded = await self._ready_model()
        vocabulary = loaded.model.vocabulary
        vectors, count = [], 0
        for given in request.inputs:
            tokens = list(given) if not isinstance(given, str) else vocabulary.encode(given, add_special=True)
            if not tokens or not all(0 <= token < vocabulary.size for token in tokens):
                raise RequestError("an input is empty, or has ids that are no tokens of this model", param="input")
            vectors.append(await loaded.embed(tokens, request))
            count += len(tokens)
        return Embeddings(vectors=vectors, model=self.model, prompt_tokens=count)

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt, exactly."""
        self._check(request.model)
        loaded = await self._ready_model()
        return len(read_prompt(request, loaded.template, loaded.model.vocabulary)[0])

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        self._check(model)
        return (await self._ready_model()).model.vocabulary.encode(text, add_special=add_special, parse_special=True)

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids."""
        self._check(model)
        return (await self._ready_model()).model.vocabulary.decode(tokens)

    async def models(self) -> list[ModelInfo]:
        """The one model, from its file; it need not be loaded."""
        return [describe(self.model, self.path, self.header, self.plan.context)]

    async def slots(self, model: str) -> int | None:
        """How many conversations are computed at once; more wait in the engine."""
        return self.plan.max_running

    async def start(self) -> None:
        """Load the model."""
        await self._ready_model()

    async def ready(self) -> None:
        """Return when the model is loaded."""
        await self._ready_model()

    async def pulse(self) -> None:
        """Return when the engine is between two steps."""
        loaded = await self._ready_model()
        await loaded.engine.call(lambda: None)

    async def aclose(self) -> None:
        """Free the model. The next request loads it again."""
        if self._loading is not None:
            await asyncio.wait({self._loading})
            self._loading = None
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            await asyncio.to_thread(loaded.close)

    def stats(self) -> dict[str, int]:
        """What the scheduler counted since the model was loaded."""
        return attrs.asdict(self._loaded.engine.core.scheduler.counters) if self._loaded is not None else {}

    # ---- inside ----

    async def _ready_model(self) -> _Loaded:
        """The loaded model. One load serves all who wait for it, and outlives those who leave."""
        if self._loaded is None:
            if self._loading is None or self._loading.done():
                self._loading = asyncio.create_task(_load_apart(self.path, self.plan, self._on_gpu_failure))
                self._loading.add_done_callback(self._note)
            await asyncio.shield(self._loading)
        assert self._loaded is not None
        return self._loaded

    def _note(self, task: asyncio.Task[_Loaded]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._loaded = task.result()
            logger.info("%s is loaded: %s", self.name, self.plan)

    def _spec(self, request: ChatRequest, meant: Meant) -> JobSpec:
        context = request.context
        return JobSpec(
            prompt=meant.prompt,
            sampling=meant.sampling,
            max_tokens=request.max_tokens,
            n=request.n,
            stops=tuple(request.stop),
            constrain=meant.constrain,
            priority=PRIORITIES.get(context.priority or "normal", 0),
            deadline=context.deadline,
            tenant=context.salt or context.tenant,
        )

    def _check(self, model: str) -> None:
        known = {"", self.model, f"{self.model}:latest", self._wanted} | self.aliases
        if model not in known:
            raise ModelNotFound(f"model {model!r} is not served here; {self.model!r} is", param="model")


class _Loaded:
    """A model with its engine."""

    def __init__(self, model: LlamaModel, plan: EnginePlan, runner: Runner) -> None:
        self.model = model
        self.plan = plan
        vocabulary = model.vocabulary
        words = [vocabulary.name(token).decode("utf-8", "replace") for token in (vocabulary.bos, vocabulary.eos)]
        self.template = ChatTemplate(model.header.chat_template, bos=words[0], eos=words[1])
        self.grammars = Grammars(model.library, vocabulary)
        self.engine = Engine(
            runner,
            vocabulary,
            salt=secrets.token_bytes(16),
            clock=time.monotonic,
            context=plan.context,
            token_budget=plan.batch,
            max_running=plan.max_running,
            swap_tokens=plan.swap_tokens,
            host_tokens=plan.host_tokens,
        )
        self._embedder: Embedder | None = None

    async def read(self, request: ChatRequest) -> Meant:
        size = sum(len(message.text) for message in request.messages) + len(request.prompt or "")
        if size < LONG_TEXT:
            return read_request(request, self.template, self.model.vocabulary, self.grammars)
        return await asyncio.to_thread(read_request, request, self.template, self.model.vocabulary, self.grammars)

    async def tokens_of(self, text: str) -> list[Token]:
        """The tokens of `text`, which is no beginning, with the bytes of each."""
        vocabulary = self.model.vocabulary
        return [(token, vocabulary.piece(token)) for token in vocabulary.encode(text)]

    async def embed(self, tokens: list[int], request: EmbedRequest) -> list[float]:
        if self.plan.device is not None:
            raise UnsupportedError("the engine cuda computes no embeddings: velo and llama-server do", param="model")

        def work() -> list[float]:
            if self._embedder is None:
                self._embedder = Embedder(self.model, threads=self.plan.threads)
            wanted = tokens[: self._embedder.longest] if request.truncate else tokens
            vector = self._embedder.embed(wanted)
            if request.dimensions is not None and request.dimensions < len(vector):
                vector = vector[: request.dimensions]
                vector = vector / max(float((vector**2).sum()) ** 0.5, 1e-12)
            numbers: list[float] = vector.tolist()
            return numbers

        return await self.engine.call(work)

    def close(self) -> None:
        self.engine.close()
        if self._embedder is not None:
            self._embedder.close()
        self.model.close()


async def _load_apart(path: Path, plan: EnginePlan, on_gpu_failure: Callable[[], object]) -> _Loaded:
    """Load the model on a thread that ends then.

    OpenMP keeps threads for every one that has called it, as long as that lives; and where there are more of them
    than cores, none waits awake for the others, which is what makes them quick.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="velollm-load")
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, _load, path, plan, on_gpu_failure)
    finally:
        pool.shutdown(wait=False)


def _load(path: Path, plan: EnginePlan, on_gpu_failure: Callable[[], object]) -> _Loaded:
    """On a GPU llama.cpp loads nothing but the vocabulary."""
    model = LlamaModel(path, vocabulary_only=plan.device is not None)
    try:
        return _Loaded(model, plan, _runner(path, model, plan, on_gpu_failure))
    except ConfigError:
        model.close()
        raise


def _runner(path: Path, model: LlamaModel, plan: EnginePlan, on_gpu_failure: Callable[[], object]) -> Runner:
    if plan.device is None:
        return LlamaCppRunner(
            model,
            plan.num_blocks,
            batch=plan.batch,
            threads=plan.threads,
            kv_type=plan.kv_type,
            streams=plan.streams,
        )
    from velollm.engine.cuda_runner import CudaRunner
    from velollm.gpu.executor import CudaExecutor

    return CudaRunner(
        path,
        plan.num_blocks or None,
        scalar=GPU_TYPES[plan.kv_type],
        context=plan.context,
        batch=plan.batch,
        graph_rows=plan.max_running,
        on=CudaExecutor(plan.device),
        on_failure=on_gpu_failure,
    )


def _usage(job: Job, prompt_tokens: int) -> Usage:
    first, started, ended = job.first_token or job.arrival, job.started or job.arrival, job.ended or job.arrival
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=job.num_generated,
        cached_tokens=job.num_cached,
        timings=Timings(prefill=first - started, decode=ended - first, total=ended - job.arrival),
    )
