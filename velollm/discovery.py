"""Finds out what kind of engine answers at an address, and which engines run on this machine.

Only asks what any visitor may ask: `/health`, `/props`, `/api/version`, `/version` and the list of models.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

import attrs
import httpx
import orjson

from velollm.backend import Backend, Capabilities, HttpRequest, HttpResponse, Limits, open_backend
from velollm.continuation import Said
from velollm.errors import BackendUnreachable, ConfigError, VeloError
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, ModelInfo
from velollm.transport import Upstream

__all__ = ["ENGINES", "Found", "ProbedBackend", "find_engines", "identify", "ollama_address", "places"]

T = TypeVar("T")
Kind: TypeAlias = Literal["ollama", "llamacpp", "vllm", "openai", "velollm"]

# Where engines listen unless told otherwise, best first.
ENGINES: Mapping[str, str] = {
    "http://127.0.0.1:11434": "Ollama",
    "http://127.0.0.1:8080": "llama-server",
    "http://127.0.0.1:9931": "llama-server",
    "http://127.0.0.1:1234": "LM Studio",
    "http://127.0.0.1:8000": "vLLM",
    "http://127.0.0.1:30000": "SGLang",
}
logger = logging.getLogger("velollm.discovery")

PROBE_SECONDS = 0.8
PROBE_LIMITS = Limits(connect=PROBE_SECONDS, first_byte=PROBE_SECONDS, idle=PROBE_SECONDS, max_response=4 << 20)
SCHEMES: Mapping[str, str] = {"ollama": "ollama", "llamacpp": "llamacpp"}


@attrs.frozen(kw_only=True)
class Found:
    """An engine that answers: what it is, and where."""

    kind: Kind
    url: str

    @property
    def backend_url(self) -> str:
        """The URL for `open_backend`."""
        scheme, _, rest = self.url.partition("://")
        if scheme == "http" and self.kind in SCHEMES:
            return f"{SCHEMES[self.kind]}://{rest}"
        if self.kind == "ollama":
            return f"ollama+{self.url}"
        return f"openai+{self.url}/v1"


# ---- asking ----------------------------------------------------------------------------------------------------------


async def identify(
    url: str,
    *,
    api_key: str | None = None,
    headers: Mapping[str, str] = {},
    transport: httpx.AsyncBaseTransport | None = None,
    limits: Limits = PROBE_LIMITS,
) -> Found | None:
    """The engine at `url` (http or https; a final /v1 does not matter), or None when it cannot be told.

    Raises `BackendUnreachable` when nobody is there, `ConfigError` for what is no URL.
    """
    base = _base(url)
    sent = {**headers, "authorization": f"Bearer {api_key}"} if api_key else headers
    upstream = Upstream(base, name=urlsplit(base).netloc, limits=limits, headers=sent, transport=transport)
    try:
        health, props, ollama, version, models = await _all(
            _ask(upstream, path) for path in ("/health", "/props", "/api/version", "/version", "/v1/models")
        )
    finally:
        if transport is None:
            await upstream.aclose()
    if isinstance(models.error, BackendUnreachable):
        raise models.error
    kind = _kind(health, props, ollama, version, models)
    return Found(kind=kind, url=base) if kind is not None else None


async def find_engines(
    urls: Iterable[str] = tuple(ENGINES),
    *,
    ports_not: Collection[int] = (),
    seconds: float = PROBE_SECONDS,
    proxies: bool = False,
) -> list[Found]:
    """The engines that run at `urls`, in their order, asked all at once within `seconds`.

    `ports_not` are ports never asked (our own). Another VeloLLM is passed over, or comes last where `proxies` count.
    """
    wanted = [url for url in dict.fromkeys(urls) if urlsplit(url).port not in ports_not]
    found = await _all(_look(url, seconds) for url in wanted)
    engines = [engine for engine in found if engine is not None]
    ours = [engine for engine in engines if engine.kind == "velollm"]
    return [engine for engine in engines if engine not in ours] + (ours if proxies else [])


def places(environ: Mapping[str, str]) -> list[str]:
    """Where engines of this machine may listen: where Ollama is told to (`OLLAMA_HOST`), and where they usually do."""
    own = ollama_address(environ.get("OLLAMA_HOST", ""))
    return [own, *ENGINES] if own is not None else [*ENGINES]


def ollama_address(host: str) -> str | None:
    """The URL that Ollama's variable `OLLAMA_HOST` means, as its own clients read it; None when it means none."""
    scheme, sep, rest = host.strip().strip("\"'").rpartition("://")
    scheme = scheme if sep else "http"
    default = {"http": 80 if sep else 11434, "https": 443}.get(scheme)
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port or default
    except ValueError:
        return None
    if default is None or (not rest and not sep):
        return None
    name = parts.hostname or "127.0.0.1"
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)  # noqa: S104 -- where it listens is where it is asked
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


@attrs.frozen(kw_only=True)
class _Answer:
    """What came back from one path; `status` 0 stands for no answer, and then there is an `error`."""

    status: int = 0
    server: bytes = b""
    body: Any = None
    error: VeloError | None = None

    def get(self, key: str) -> Any:
        return self.body.get(key) if isinstance(self.body, dict) and self.status < 300 else None


async def _ask(upstream: Upstream, path: str) -> _Answer:
    try:
        response = await upstream.send("GET", path)
        async with response:
            body = await response.read()
    except VeloError as error:
        return _Answer(error=error)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    return _Answer(status=response.status, server=response.header(b"server") or b"", body=value)


def _kind(health: _Answer, props: _Answer, ollama: _Answer, version: _Answer, models: _Answer) -> Kind | None:
    if health.get("service") == "velollm":
        return "velollm"
    if b"llama.cpp" in health.server or props.get("default_generation_settings") is not None:
        return "llamacpp"
    if isinstance(ollama.get("version"), str):
        return "ollama"
    lists = isinstance(models.get("data"), list)
    if lists and isinstance(version.get("version"), str):
        return "vllm"
    if lists or (models.status in (401, 403) and isinstance(models.body, dict)):
        return "openai"
    return None


async def _look(url: str, seconds: float) -> Found | None:
    limits = attrs.evolve(PROBE_LIMITS, connect=seconds, first_byte=seconds, idle=seconds)
    try:
        async with asyncio.timeout(seconds):
            return await identify(url, limits=limits)
    except (TimeoutError, VeloError):
        return None


async def _all(jobs: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
    return [task.result() for task in tasks]


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is not the URL of an engine: http://host:port is wanted")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


# ---- a backend of unknown kind ---------------------------------------------------------------------------------------


class ProbedBackend(Backend):
    """An engine that is asked what it is when it is first needed, and again after it could not be reached.

    `url` is `http://host:port`, or `auto`: the first engine found on this machine. `options` go to its adapter.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self._options = options
        self._limits: Limits = options.get("limits", Limits())
        if url != "auto":
            _base(url)
        self._name: str | None = options.get("name")
        self._inner: Backend | None = None
        self._stale = False
        self._found: Found | None = None
        self._asking: asyncio.Task[Backend] | None = None
        self._former: list[Backend] = []

    @property
    def name(self) -> str:  # type: ignore[override]
        """The given name, or the place."""
        return self._name or (self._inner.name if self._inner is not None else urlsplit(self.url).netloc or self.url)

    @property
    def kind(self) -> str | None:  # type: ignore[override]
        """What it was found to be; None before it was asked."""
        return self._found.kind if self._found is not None else None

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """Those of the engine; none before it was asked."""
        return self._inner.capabilities if self._inner is not None else Capabilities()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate."""
        inner = await self._engine()
        try:
            async with aclosing(inner.chat(request)) as events:
                async for event in events:
                    yield event
        except BackendUnreachable:
            self._stale = True
            raise

    async def resumes(self, model: str) -> bool:
        """Whether it was proved that `resume` is exact."""
        return await self._noting(lambda inner: inner.resumes(model))

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer that was interrupted."""
        inner = await self._engine()
        try:
            async with aclosing(inner.resume(request, said)) as events:
                async for event in events:
                    yield event
        except BackendUnreachable:
            self._stale = True
            raise

    async def models(self) -> list[ModelInfo]:
        """What it serves."""
        return await self._noting(lambda inner: inner.models())

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input."""
        return await self._noting(lambda inner: inner.embed(request))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt."""
        return await self._noting(lambda inner: inner.count_tokens(request))

    async def context(self, model: str) -> int | None:
        """The context of the model as it is loaded."""
        return await self._noting(lambda inner: inner.context(model))

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        return await self._noting(lambda inner: inner.tokenize(model, text, add_special=add_special))

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids."""
        return await self._noting(lambda inner: inner.detokenize(model, tokens))

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """Pass a request on as it is."""
        return await self._noting(lambda inner: inner.forward(request))

    async def slots(self, model: str) -> int | None:
        """How many requests it works on at once."""
        return await self._noting(lambda inner: inner.slots(model))

    async def start(self) -> None:
        """Find out what it is."""
        await (await self._engine()).start()

    async def ready(self) -> None:
        """Return when it answers."""
        await self._noting(lambda inner: inner.ready())

    def break_off(self, why: str) -> None:
        """End everything that is under way."""
        if self._inner is not None:
            self._inner.break_off(why)

    async def aclose(self) -> None:
        """Let go of the engine."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        engines = [*self._former, self._inner]
        self._former, self._inner, self._asking = [], None, None
        for engine in engines:
            if engine is not None:
                await engine.aclose()

    # ---- inside ----

    async def _noting(self, method: Callable[[Backend], Awaitable[T]]) -> T:
        inner = await self._engine()
        try:
            return await method(inner)
        except BackendUnreachable:
            self._stale = True
            raise

    async def _engine(self) -> Backend:
        if self._inner is not None and not self._stale:
            return self._inner
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._open())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._asking)

    async def _open(self) -> Backend:
        found = await self._identify()
        if self._inner is None or found != self._found:
            if self._inner is not None:
                self._former.append(self._inner)  # it may still be answering others
            self._inner = open_backend(found.backend_url, **self._options)
            self._found = found
        self._stale = False
        return self._inner

    async def _identify(self) -> Found:
        if self.url == "auto":
            engines = await find_engines()
            if not engines:
                places = ", ".join(f"{name} ({url.rpartition(':')[2]})" for url, name in ENGINES.items())
                raise BackendUnreachable(f"no engine runs on this machine; looked for {places}", retry_after=2)
            return engines[0]
        options = {key: self._options[key] for key in ("api_key", "headers", "transport") if key in self._options}
        connect = self._limits.connect
        limits = attrs.evolve(PROBE_LIMITS, connect=connect, first_byte=max(connect, 2.0), idle=max(connect, 2.0))
        found = await identify(self.url, limits=limits, **options)
        if found is None:
            logger.warning(
                "what answers at %s does not say what it is; it is taken for an OpenAI-compatible server "
                "(say it with ollama://, llamacpp:// or openai+http://host/v1)", self.url,
            )  # fmt: skip
            return Found(kind="openai", url=_base(self.url))
        return found
