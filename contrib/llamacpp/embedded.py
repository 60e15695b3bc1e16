"""A GGUF file served by a llama-server of our own, in a child process that is started anew when it crashes."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import attrs
import httpx

from velollm.backend import Backend, Capabilities, HttpRequest, HttpResponse, Limits
from velollm.continuation import Said
from velollm.contrib.llamacpp.crashes import Crashes
from velollm.contrib.llamacpp.local_model import describe, locate, model_name
from velollm.contrib.llamacpp.plan import make_plan, this_machine
from velollm.contrib.llamacpp.process import LlamaProcess
from velollm.contrib.llamacpp.server import LlamaServerBackend
from velollm.errors import (
    BackendError,
    BackendProtocolError,
    BackendTimeout,
    BackendUnreachable,
    ConfigError,
    ModelNotFound,
)
from velollm.hardware.gguf import kv_bytes_per_token
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, ModelInfo
from velollm.models.gguf import GGUF, read_gguf
from velollm.models.hub import fetch_files, need_hub, parse_hub

__all__ = ["EmbeddedBackend", "from_hub"]

T = TypeVar("T")

START_SECONDS = 600.0
NOTICE_SECONDS = 0.3  # a broken connection is noticed before the end of the process that broke it
# A request that fails so soon was sent to a process that was dying already: it is sent once more, to the next.
DYING_SECONDS = 0.25
HEALTH_SECONDS = 3.0
LARGEST_SAVED = 512 * 1024 * 1024  # bytes of one slot in a file


class EmbeddedBackend(Backend):
    """The model `model`: a path to a GGUF file, the name of an installed model, or `hf:org/repo:quant`.

    `ctx` is the context of one conversation in tokens, `parallel` how many are answered at once (both by default what
    suits the model and the memory), `kv_type` the type of the KV cache. `unified` lets conversations share one pool of
    `ctx` tokens. With `replicate` what prompts share is computed once and carried from slot to slot. `aliases` are
    further names it answers to. Raises `ConfigError` when there is no such model, when the
    file is no usable GGUF, or when the extra is missing.
    """

    kind = "llamacpp"
    engine = "llama.cpp"  # what messages say of that which computes
    log = logging.getLogger("velollm.llamacpp")
    capabilities = Capabilities(
        dialects=frozenset({"openai"}),
        json_schema=True,
        grammar=True,
        tools=True,
        tool_choice=True,
        tokenize=True,
        slots=True,
    )

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        limits: Limits = Limits(),
        aliases: Iterable[str] = (),
        ctx: int | None = None,
        parallel: int | None = None,
        threads: int | None = None,
        kv_type: str = "f16",
        unified: bool = False,
        replicate: bool = True,
        folder: Path | None = None,
        start_timeout: float = START_SECONDS,
        api_key: str | None = None,
        headers: Mapping[str, str] = {},
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if api_key or headers:
            raise ConfigError(f"{model}: api_key and headers mean nothing to an embedded model")
        if find_spec("xllamacpp") is None:
            raise ConfigError('a GGUF file needs llama.cpp to run: pip install "velollm[llamacpp]"')
        self._wanted = model
        self._folder = folder
        self._limits = limits
        self._transport = transport
        self._start_timeout = start_timeout
        self._options: dict[str, Any] = {
            "ctx": ctx, "parallel": parallel, "threads": threads, "kv_type": kv_type, "unified": unified,
        }  # fmt: skip
        self.model = model_name(model)
        self.name = name or self.model
        self.aliases = frozenset(aliases)
        self._file: tuple[Path, GGUF] | None = None
        self._most_saved: int | None = None
        self._replicate = replicate
        if model.startswith("hf:"):
            parse_hub(model)
            need_hub()
        else:
            path = locate(model, folder)
            self._file = path, read_gguf(path)
        self._running: _Running | None = None
        self._starting: asyncio.Task[_Running] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._crashes = Crashes()

    # ---- what it answers ----

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate; starts the engine, or waits for its restart, when need be."""
        asked = self._named(request)
        loop = asyncio.get_running_loop()
        for attempt in (1, 2):
            running = await self._serving()
            sent, begun = loop.time(), False
            try:
                async with aclosing(running.server.chat(asked)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except (BackendProtocolError, BackendUnreachable) as error:
                quick = loop.time() - sent < DYING_SECONDS
                crash = await self._crash_behind(running)
                if crash is None:
                    raise
                if attempt == 2 or begun or not quick:
                    raise crash from error
            except BackendTimeout:
                await self._end_if_stuck(running)
                raise

    async def resumes(self, model: str) -> bool:
        """Whether it was proved that `resume` is exact."""
        self._check(model)
        return await self._ask(lambda server: server.resumes(self.model))

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer that was interrupted."""
        running = await self._serving()
        async with aclosing(running.server.resume(self._named(request), said)) as events:
            async for event in events:
                yield event

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input: by the pooling that the model was trained for, else the mean over its tokens."""
        self._check(request.model)
        return await self._ask(lambda server: server.embed(attrs.evolve(request, model=self.model)))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt as the model sees it."""
        asked = self._named(request)
        return await self._ask(lambda server: server.count_tokens(asked))

    async def context(self, model: str) -> int | None:
        """The context of one conversation."""
        self._check(model)
        return await self._ask(lambda server: server.context(self.model))

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        self._check(model)
        return await self._ask(lambda server: server.tokenize(self.model, text, add_special=add_special))

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids."""
        self._check(model)
        return await self._ask(lambda server: server.detokenize(self.model, tokens))

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """Pass on what lies below `/v1`."""
        return await self._ask(lambda server: server.forward(request))

    async def models(self) -> list[ModelInfo]:
        """The one model, from its file; the engine need not run."""
        path, header = await self._model_file()
        return [describe(self.model, path, header, self._plan(header).context)]

    async def slots(self, model: str) -> int | None:
        """How many conversations it answers at once."""
        return await self._ask(lambda server: server.slots(self.model))

    async def start(self) -> None:
        """Load the model."""
        await self._serving()

    async def ready(self) -> None:
        """Return when the model is loaded."""
        await self._ask(lambda server: server.ready())

    def break_off(self, why: str) -> None:
        """End everything that is under way."""
        if self._running is not None:
            self._running.server.break_off(why)

    async def aclose(self) -> None:
        """End the child process."""
        for task in (self._watching, self._starting):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        running, self._running = self._running, None
        self._watching = self._starting = None
        if running is not None:
            await running.server.aclose()
            await running.process.stop()

    # ---- what the child is ----

    def _plan(self, header: GGUF) -> Any:
        """How the model is loaded: a class of attrs, with its `context`."""
        return make_plan(header, this_machine(), **self._options)

    def _process(self, parameters: dict[str, Any]) -> LlamaProcess:
        """The child, not started yet."""
        replicates = self._replicate and parameters["slots"] > 1 and not parameters["unified"]
        return LlamaProcess(parameters, name=self.name, saves_slots=replicates)

    def _client(self, url: str, key: str) -> Backend:
        """What talks to the child that serves `url`."""
        return LlamaServerBackend(
            url,
            name=self.name,
            limits=self._limits,
            api_key=key,
            transport=self._transport,
            replicate=self._replicate,
            exclusive=True,
            most_tokens=self._most_saved,
        )

    # ---- its life ----

    async def _serving(self) -> _Running:
        """The running child. One start serves all who wait for it, and outlives those who leave."""
        running = self._running
        if running is not None and not running.process.ended.is_set():
            return running
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._launch())
            self._starting.add_done_callback(_note)
        return await asyncio.shield(self._starting)

    async def _launch(self) -> _Running:
        loop = asyncio.get_running_loop()
        self._crashes.check(loop.time(), self.name, self.engine)
        await asyncio.sleep(self._crashes.pause)
        if self._running is not None:
            await self._running.server.aclose()
            self._running = None
        path, header = await self._model_file()
        plan = self._plan(header)
        key = secrets.token_urlsafe(32)  # other users of this machine could reach its port
        names = [self.model]
        self._most_saved = int(LARGEST_SAVED / max(kv_bytes_per_token(header, self._options["kv_type"]), 1))
        process = self._process({**attrs.asdict(plan), "path": str(path), "names": names, "key": key})
        try:
            url = await process.start(self._start_timeout)
        except BackendError as error:
            self._crashes.add(loop.time(), error.message)
            raise
        self._running = _Running(process, self._client(url, key))
        self._watching = asyncio.create_task(self._restart_after(self._running))
        self.log.info("%s is loaded: %s", self.name, plan)
        return self._running

    async def _restart_after(self, running: _Running) -> None:
        """Wait for the end of the child, which nobody wanted, and start the next."""
        await running.process.ended.wait()
        ending = running.process.ending
        await running.process.stop()
        self.log.error("%s: %s %s; starting it again", self.name, self.engine, ending)
        self._crashes.add(asyncio.get_running_loop().time(), ending)
        try:
            await self._serving()
        except BackendError as error:
            self.log.error("%s", error.message)

    async def _crash_behind(self, running: _Running) -> BackendError | None:
        """What to say of a failure when the child has ended; None when it has not."""
        try:
            async with asyncio.timeout(NOTICE_SECONDS):
                await running.process.ended.wait()
        except TimeoutError:
            return None
        return BackendError(
            f"{self.name}: {self.engine} {running.process.ending}; it is being started again: repeat the request",
            backend=self.name,
            retry_after=1,
        )

    async def _end_if_stuck(self, running: _Running) -> None:
        """End a child that does not even say that it is alive; busy ones do."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await running.server.ready()
        except (BackendError, TimeoutError):
            self.log.error("%s: %s does not answer any more; ending it", self.name, self.engine)
            running.process.kill()

    async def _ask(self, method: Callable[[Backend], Awaitable[T]]) -> T:
        running = await self._serving()
        try:
            return await method(running.server)
        except (BackendProtocolError, BackendUnreachable) as error:
            crash = await self._crash_behind(running)
            raise crash or error from error.__cause__

    # ---- the model ----

    async def _model_file(self) -> tuple[Path, GGUF]:
        if self._file is None:
            files = await asyncio.to_thread(fetch_files, self._wanted)
            self._file = files[0], read_gguf(files[0])
        return self._file

    def _named(self, request: ChatRequest) -> ChatRequest:
        self._check(request.model)
        return request if request.model == self.model else request.replace(model=self.model)

    def _check(self, model: str) -> None:
        known = {"", self.model, f"{self.model}:latest", self._wanted} | self.aliases
        if model not in known:
            raise ModelNotFound(f"model {model!r} is not served here; {self.model!r} is", param="model")


@attrs.frozen
class _Running:
    process: LlamaProcess
    server: Backend


def from_hub(url: str, **options: Any) -> EmbeddedBackend:
    """The model `hf:org/repo:quant`, downloaded at the start if the hub's cache does not have it."""
    return EmbeddedBackend(url, **options)


def _note(task: asyncio.Task[Any]) -> None:
    """A start that failed is told to those who wait for it; if nobody does, that is no news either."""
    if not task.cancelled():
        task.exception()
