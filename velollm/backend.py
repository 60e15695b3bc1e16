"""The one protocol inside the house: everything that can answer a request is a `Backend`, and so is every layer.

async with open_backend("ollama://localhost:11434") as backend:
    async for event in backend.chat(ChatRequest(model="qwen3:8b", messages=[Message(role="user", content="Hi")])):
        print(event.text, end="")
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, Protocol, Self, cast

import attrs

from velollm.continuation.said import Said
from velollm.errors import ConfigError, PathNotFound, UnsupportedError
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, ModelInfo

__all__ = ["Backend", "Capabilities", "HttpRequest", "HttpResponse", "Layer", "Limits", "layers", "open_backend"]

ENTRY_POINTS = "velollm.backends"

SCHEMES = {
    "ollama": "velollm.contrib.ollama:OllamaBackend",
    "ollama+https": "velollm.contrib.ollama:OllamaBackend",
    "llamacpp": "velollm.contrib.llamacpp:LlamaServerBackend",
    "gguf": "velollm.contrib.gguf:open_gguf",
    "hf": "velollm.contrib.gguf:open_gguf",
    "openai+http": "velollm.contrib.openai:OpenAIBackend",
    "openai+https": "velollm.contrib.openai:OpenAIBackend",
    "http": "velollm.discovery:ProbedBackend",
    "https": "velollm.discovery:ProbedBackend",
    "auto": "velollm.discovery:ProbedBackend",
}


@attrs.frozen(kw_only=True)
class Limits:
    """Patience with a backend: seconds to connect, to the first byte of an answer, between bytes; bytes at most."""

    connect: float = 2.0
    first_byte: float = 300.0
    idle: float = 60.0
    max_response: int = 32 * 1024 * 1024


@attrs.frozen(kw_only=True)
class Capabilities:
    """What a backend can do, as far as is known before it is asked.

    `dialects` are the wires it speaks itself (`openai`, `ollama`, `anthropic`): a path of such a dialect that the door
    does not know is forwarded untouched. `json_schema` and `grammar` say that output can be constrained; `tools` that
    it reads and writes tool calls natively; `tool_choice` that it obeys `required` and named choices.
    """

    dialects: frozenset[str] = frozenset()
    json_schema: bool = False
    grammar: bool = False
    tools: bool = False
    tool_choice: bool = False
    tokenize: bool = False
    slots: bool = False
    priority: bool = False


@attrs.define(kw_only=True)
class HttpRequest:
    """A request that is passed on as it is: the path with its query, headers worth passing, the body as it comes in."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    body: bytes | AsyncIterable[bytes] = b""


@attrs.define(kw_only=True)
class HttpResponse:
    """The answer to an `HttpRequest`; `body` must be iterated to its end or closed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: AsyncGenerator[bytes, None]


class Backend(Protocol):
    """Answers requests. `chat` and `models` are what every backend has; the rest says no until it is overridden.

    All errors are `velollm.errors.VeloError`. Methods may be called concurrently. Cancelling the task that iterates
    `chat`, or closing the generator, ends the work upstream.
    """

    name: str = "backend"
    kind: str | None = None  # what engine it is (`ollama`, `llamacpp`, ...), as far as it is known
    capabilities: Capabilities = Capabilities()

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate; the last event of each choice carries its `finish_reason`, the last of all the usage.

        A stream that ends without a finish reason for every choice raised an error before.
        """
        ...

    async def models(self) -> list[ModelInfo]:
        """What is served."""
        ...

    async def resumes(self, model: str) -> bool:
        """Whether it was proved that `resume` goes on with answers of `model` exactly."""
        return False

    def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer that was interrupted when it had `said` something: its rest, and the usage of the whole.

        Raises `UnsupportedError` before the first event where that is not possible exactly; see `velollm.continuation`.
        """
        raise UnsupportedError(f"{self.name} cannot go on with an answer")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input."""
        raise UnsupportedError(f"{self.name} cannot embed")

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt as the model would see it, template and tools included."""
        raise UnsupportedError(f"{self.name} cannot count tokens")

    async def context(self, model: str) -> int | None:
        """Tokens of context that a conversation with `model` has, as it is loaded; None where that is not known."""
        return None

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        raise UnsupportedError(f"{self.name} cannot tokenize")

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids."""
        raise UnsupportedError(f"{self.name} cannot detokenize")

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """Pass a request on as it is."""
        raise PathNotFound(f"{request.target.partition('?')[0]} is not known here, nor to {self.name}")

    async def slots(self, model: str) -> int | None:
        """How many requests for `model` the engine works on at once; None where it does not say."""
        return None

    async def start(self) -> None:
        """Make ready (connect, probe, start a child process). May be called again; `chat` does it when needed."""
        return  # with an empty body, type checkers would take it for abstract

    async def ready(self) -> None:
        """Return when the engine answers, raise a `BackendError` when it does not."""
        await self.models()

    def break_off(self, why: str) -> None:
        """End everything that is under way with a `BackendTimeout`, where that is possible: the engine hangs."""
        return

    async def aclose(self) -> None:
        """Let go of connections, processes and memory."""
        return

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Layer(Backend):
    """A backend around another one. A subclass overrides what it changes; the rest goes straight through."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the backend below."""
        return self.inner.name

    @property
    def kind(self) -> str | None:  # type: ignore[override]
        """The kind of the backend below."""
        return self.inner.kind

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What the backend below can do."""
        return self.inner.capabilities

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        return self.inner.chat(request)

    async def resumes(self, model: str) -> bool:
        return await self.inner.resumes(model)

    def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        return self.inner.resume(request, said)

    async def models(self) -> list[ModelInfo]:
        return await self.inner.models()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await self.inner.embed(request)

    async def count_tokens(self, request: ChatRequest) -> int:
        return await self.inner.count_tokens(request)

    async def context(self, model: str) -> int | None:
        return await self.inner.context(model)

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        return await self.inner.tokenize(model, text, add_special=add_special)

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        return await self.inner.detokenize(model, tokens)

    async def forward(self, request: HttpRequest) -> HttpResponse:
        return await self.inner.forward(request)

    async def slots(self, model: str) -> int | None:
        return await self.inner.slots(model)

    async def start(self) -> None:
        await self.inner.start()

    async def ready(self) -> None:
        await self.inner.ready()

    def break_off(self, why: str) -> None:
        self.inner.break_off(why)

    async def aclose(self) -> None:
        await self.inner.aclose()


def layers(backend: Backend) -> Iterator[Layer]:
    """The layers of a stack, the outermost first; none where it is an engine."""
    while isinstance(backend, Layer):
        yield backend
        backend = backend.inner


def open_backend(url: str, **options: Any) -> Backend:
    """The backend behind `url`; nothing is connected or started before `start`, `async with` or the first request.

    `ollama://host:11434`, `llamacpp://host:8080`, `openai+http://host/v1`, `http://host:port` (asked what it is),
    `auto` (whatever runs here), a path to a `.gguf` file, `hf:org/repo:quant`, or the name of an installed model.
    Installed packages add schemes through the entry-point group `velollm.backends`. `options` go to the backend:
    `name`, `limits`, `api_key`, `headers`, `transport` (an `httpx.AsyncBaseTransport`), and its own.

    Raises `ConfigError` when the scheme is unknown or the model is not installed.
    """
    scheme = _scheme(url)
    factory = _factory(scheme)
    if factory is None:
        known = ", ".join(sorted({*SCHEMES, *_plugins()} - {"gguf"}))
        raise ConfigError(f"no backend for {url!r}: the scheme {scheme!r} is none of {known}")
    return factory(url, **options)


def _scheme(url: str) -> str:
    if url == "auto":
        return "auto"
    head, sep, _ = url.partition("://")
    if sep:
        return head.lower()
    if url.startswith("hf:"):
        return "hf"
    return "gguf"


def _plugins() -> Mapping[str, Callable[..., Backend]]:
    return {point.name: cast("Callable[..., Backend]", point.load) for point in entry_points(group=ENTRY_POINTS)}


def _factory(scheme: str) -> Callable[..., Backend] | None:
    if scheme in SCHEMES:
        module, _, attribute = SCHEMES[scheme].partition(":")
        return cast("Callable[..., Backend]", getattr(import_module(module), attribute))
    for point in entry_points(group=ENTRY_POINTS, name=scheme):
        return cast("Callable[..., Backend]", point.load())
    return None
