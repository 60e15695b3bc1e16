"""An Ollama over HTTP, through its native API, from version 0.6 on.

What its `/v1` ignores or refuses is done here: forced tool calls (by `format`), several choices (one after the other),
tools for models that know none, one call at a time, thinking only when asked, and a steady context size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import attrs
import httpx

from velollm.api.ollama.failures import failure
from velollm.api.ollama.lines import LineDecoder, decode_answer
from velollm.api.ollama.upstream import (
    encode_chat,
    encode_embed,
    encode_generate,
    encode_think,
    first_image,
    goes_as_it_came,
    request_body,
    wire_of,
)
from velollm.api.ollama.vectors import decode_embeddings
from velollm.backend import Backend, Capabilities, HttpRequest, HttpResponse, Limits
from velollm.continuation import Proofs, Said, go_on_by_prefill
from velollm.contrib.forced import ForcedCall, as_calls, forced_call
from velollm.contrib.ollama.contexts import Contexts
from velollm.contrib.ollama.facts import ModelFacts, full_name, loaded_context, read_facts, read_model
from velollm.contrib.toolless import has_tool_turns, tell_tools
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    ConfigError,
    RequestError,
    UnsupportedError,
    VeloError,
)
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    ModelInfo,
    ResponseFormat,
    Usage,
)
from velollm.transport import Upstream, UpstreamResponse
from velollm.transport.head import tracing_headers

__all__ = ["OllamaBackend"]

logger = logging.getLogger("velollm.ollama")

JSON: TypeAlias = dict[str, Any]
Request = TypeVar("Request", ChatRequest, EmbedRequest)

DEFAULT_PORT = 11434
FACTS_SECONDS = 300.0
PATHS = {"ollama.chat": "/api/chat", "ollama.generate": "/api/generate"}
CHANGING = frozenset({"/api/create", "/api/copy", "/api/delete", "/api/pull"})


class OllamaBackend(Backend):
    """The Ollama at `ollama://host:port` (`ollama+https://host` behind TLS).

    `api_key` is sent as a bearer token, which Ollama's own cloud and proxies want; the key of the client never is.
    """

    kind = "ollama"
    capabilities = Capabilities(
        dialects=frozenset({"ollama", "openai"}), json_schema=True, tools=True, tool_choice=True
    )

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        limits: Limits = Limits(),
        api_key: str | None = None,
        headers: Mapping[str, str] = {},
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        root = _root(url)
        self.name = name or urlsplit(root).netloc.rpartition("@")[2]
        sent = {**headers, "authorization": f"Bearer {api_key}"} if api_key else headers
        self.upstream = Upstream(root, name=self.name, limits=limits, headers=sent, transport=transport)
        self._proofs = Proofs()
        self._contexts = Contexts()
        self._facts: dict[str, tuple[float, ModelFacts]] = {}

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate. What needs no help goes straight through."""
        if request.n > 1:
            return self._in_turns(request)
        return self._once(request)

    async def resumes(self, model: str) -> bool:
        """Whether it goes on with answers exactly: tried once for each model, for that depends on its template."""
        return await self._proofs.ask(self, model)

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer behind its prompt, which Ollama renders, or else behind a last turn of the assistant.

        It counts no tokens: only answers without a limit can be gone on with.
        """
        rendered = await self._rendered(request)
        if rendered is not None:
            request = request.replace(messages=[], prompt=rendered, raw=True, think=None)
        async with aclosing(go_on_by_prefill(self.chat, request, said, merge=True)) as events:
            async for event in events:
                yield event

    async def models(self) -> list[ModelInfo]:
        """What `GET /api/tags` lists."""
        answer = await self.upstream.get_json("/api/tags")
        items = answer.get("models") if isinstance(answer, dict) else None
        if items is None and isinstance(answer, dict) and "models" in answer:
            items = []  # Go's way of writing an empty list
        if not isinstance(items, list):
            raise BackendProtocolError(f"{self.name} answered without a list of models", backend=self.name)
        named = [item for item in items if isinstance(item, dict) and isinstance(item.get("name"), str)]
        return [read_model(item, self._known_facts(item["name"])) for item in named]

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input."""
        _check_named(request)
        body = encode_embed(await self._steady(request))
        async with await self._post("/api/embed", body, request) as response:
            return decode_embeddings(await response.read(), len(request.inputs), request.dimensions, self.name)

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt, which the engine reads for it: it has no tokenizer to ask.

        The work is not lost, for the prompt stays in its prefix cache. Of a prompt longer than the context, only what
        fits is counted.
        """
        asked = request.replace(
            max_tokens=1, n=1, stream=True, echo=False, think=False, tool_choice=None, response_format=None
        )
        usage: Usage | None = None
        async with aclosing(self._once(asked)) as events:
            async for event in events:
                usage = event.usage or usage
        if usage is None or not usage.prompt_tokens:
            raise UnsupportedError(f"{self.name} did not count the tokens of the prompt")
        return usage.prompt_tokens

    async def context(self, model: str) -> int | None:
        """The context that the model is loaded with; None when it is not."""
        return loaded_context(await self.upstream.get_json("/api/ps"), full_name(model))

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """Pass on what lies below `/api` and `/v1`."""
        path = request.target.partition("?")[0]
        if not path.startswith(("/api/", "/v1/")):
            return await super().forward(request)
        if path in CHANGING:
            self._facts.clear()
        return await self.upstream.forward(request)

    async def ready(self) -> None:
        """Return when it answers."""
        await self.upstream.get_json("/api/version")

    def break_off(self, why: str) -> None:
        """End everything that is under way."""
        self.upstream.break_off(why)

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self.upstream.aclose()

    async def facts(self, model: str) -> ModelFacts:
        """What `model` can, asked again after some minutes. Raises `ModelNotFound`."""
        known = self._known_facts(model)
        if known is not None:
            return known
        async with await self._post("/api/show", {"model": model, "name": model}) as response:
            answer = await response.json()
        found = read_facts(answer if isinstance(answer, dict) else {})
        self._facts[full_name(model)] = (time.monotonic(), found)
        return found

    # ---- inside ----

    async def _rendered(self, request: ChatRequest) -> str | None:
        """The prompt as the model's template writes it; None from versions (before 0.12) that do not show it."""
        if request.raw:
            return None
        asked = request.replace(stream=False)
        encode = encode_chat if wire_of(asked) == "ollama.chat" else encode_generate
        body = {**encode(asked), "stream": False, "_debug_render_only": True, "options": {"num_predict": 1}}
        async with await self._post(PATHS[wire_of(asked)], body) as response:
            answer = await response.json()
        info = answer.get("_debug_info") if isinstance(answer, dict) else None
        text = info.get("rendered_template") if isinstance(info, dict) else None
        return text if isinstance(text, str) and text else None

    def _known_facts(self, model: str) -> ModelFacts | None:
        known = self._facts.get(full_name(model))
        return known[1] if known is not None and time.monotonic() - known[0] < FACTS_SECONDS else None

    async def _in_turns(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """One choice after the other; the prompt of the later ones is in the engine's cache."""
        usage: Usage | None = None
        for number in range(request.n):
            seed = None if request.seed is None else request.seed + number
            async with aclosing(self._once(request.replace(n=1, seed=seed))) as events:
                async for event in events:
                    if event.usage is not None:
                        usage = _sum(usage, event.usage)
                    yield attrs.evolve(
                        event,
                        index=number,
                        meta=event.meta if number == 0 else None,
                        usage=usage if number == request.n - 1 and event.usage is not None else None,
                        wire=None,
                        raw=None,
                    )

    async def _once(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """One choice."""
        _check_named(request)
        if request.echo and isinstance(request.prompt, str):
            yield ChatEvent(text=request.prompt)
        forced = forced_call(request)
        events = self._generate(await self._steady(await self._fitting(request, forced)))
        if forced is not None:
            events = as_calls(events, forced, self.name)
        alone = request.parallel_tool_calls is False
        async with aclosing(events):
            async for event in events:
                yield _first_call(event) if alone and event.tool_calls else event

    async def _generate(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        wire = wire_of(request)
        whole = goes_as_it_came(request) and not request.stream
        async with await self._post(PATHS[wire], request_body(request), request) as response:
            if whole:
                yield decode_answer(await response.read(), wire, self.name)
                return
            decoder = LineDecoder(wire, self.name)
            async with aclosing(response.chunks()) as pieces:
                async for piece in pieces:
                    for event in decoder.feed(piece):
                        yield event
                    if decoder.done:
                        break
            for event in decoder.end():
                yield event
        if decoder.skipped:
            logger.warning("%s sent %d lines that could not be read", self.name, decoder.skipped)

    async def _fitting(self, request: ChatRequest, forced: ForcedCall | None) -> ChatRequest:
        """The request as the model can take it: a forced call as the shape of its answer, tools in words where it knows
        none, thinking where it can; images only for a model that sees."""
        place = first_image(request)
        if place is not None and (await self.facts(request.model)).blind:
            raise UnsupportedError(f"the model {request.model!r} sees no images: send text", param=place)
        if request.tools and request.tool_choice is not None and request.tool_choice.mode == "none":
            request = request.replace(tools=[], tool_choice=None)
        if forced is not None:
            shape = ResponseFormat(kind="json_schema", schema=forced.schema)
            request = tell_tools(request).replace(response_format=shape)
        elif (request.tools or has_tool_turns(request)) and not await self._knows_tools(request.model):
            request = tell_tools(request)
        if request.think and not goes_as_it_came(request):
            facts = await self.facts(request.model)
            think = encode_think(request.think, thinks="thinking" in facts.capabilities, levels=facts.levels)
            request = request if think == request.think else request.replace(think=think)
        return request

    async def _knows_tools(self, model: str) -> bool:
        return "tools" in (await self.facts(model)).capabilities

    async def _steady(self, request: Request) -> Request:
        """The request with the context that keeps the model loaded."""
        asked = request.options.get("num_ctx")
        model = full_name(request.model)
        if type(asked) is int and asked > 0:
            loaded = loaded_context(await self.upstream.get_json("/api/ps"), model)
            limit = (await self.facts(request.model)).context_length
            chosen: int | None = self._contexts.asked(model, asked, time.monotonic(), loaded=loaded, limit=limit)
        else:
            chosen = self._contexts.unasked(model, time.monotonic())
        if chosen is None or chosen == asked:
            return request
        return attrs.evolve(request, options={**request.options, "num_ctx": chosen})

    async def _post(
        self, path: str, body: bytes | JSON, request: ChatRequest | EmbedRequest | None = None
    ) -> UpstreamResponse:
        headers = tracing_headers(request.context.client_headers if request is not None else {})
        try:
            return await self.upstream.post_json(path, body, headers=headers)
        except BackendRefused as error:
            raise _explained(error, self.name) from error


def _root(url: str) -> str:
    """`ollama://host:port` as the URL of its server."""
    scheme, sep, rest = url.partition("://")
    kind = {"ollama": "http", "ollama+http": "http", "ollama+https": "https", "http": "http", "https": "https"}
    parts = urlsplit(f"http://{rest or 'localhost'}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if not sep or scheme.lower() not in kind or not parts.hostname or port == -1:
        raise ConfigError(f"{url!r} is not the URL of an Ollama: ollama://host:port is wanted")
    place = parts.netloc
    if port is None and kind[scheme.lower()] == "http":
        place = f"{place}:{DEFAULT_PORT}"
    return f"{kind[scheme.lower()]}://{place}{parts.path.rstrip('/').removesuffix('/api').removesuffix('/v1')}"


def _explained(error: BackendRefused, name: str) -> VeloError:
    """The engine's refusal as the error it means, where its words leave no doubt."""
    meant = failure(error.message, error.status, name, error.retry_after)
    return error if isinstance(meant, BackendRefused) else meant


def _first_call(event: ChatEvent) -> ChatEvent:
    """The event without calls beyond the answer's first."""
    first = [delta for delta in event.tool_calls if delta.index == 0]
    return event if len(first) == len(event.tool_calls) else attrs.evolve(event, tool_calls=first, wire=None, raw=None)


def _sum(one: Usage | None, other: Usage) -> Usage:
    """Counts of two turns with the same prompt, which counts once."""
    if one is None:
        return other
    return attrs.evolve(other, completion_tokens=one.completion_tokens + other.completion_tokens)


def _check_named(request: ChatRequest | EmbedRequest) -> None:
    """Ollama has no model for a request that names none, and says so in ways that no client understands."""
    if not request.model:
        raise RequestError("model is required: name the model that is to answer", param="model")
