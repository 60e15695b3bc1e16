"""The door: takes an HTTP request in a client's dialect, has the backend answer it, and renders what comes back.

    path ─▶ endpoint.parse ─▶ ChatRequest ─▶ backend.chat ─▶ ChatEvents ─▶ endpoint.stream / endpoint.render

Until the first byte of an answer has left, a failure becomes an HTTP error; after that, an error event in the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from velollm.api import anthropic, ollama, openai, responses
from velollm.api.endpoint import ChatEndpoint, EmbedEndpoint
from velollm.api.tokens import parse_detokenize, parse_tokenize
from velollm.asgi import Bodies, ClientLeft, DisconnectWatch, Receive, Scope, Send
from velollm.backend import Backend
from velollm.collector import Collector
from velollm.errors import (
    BackendProtocolError,
    MethodNotAllowed,
    ModelNotFound,
    PathNotFound,
    RequestError,
    VeloError,
    let_go,
)
from velollm.exchange import Exchange
from velollm.forward import forward, forward_known, forward_unknown
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, ModelInfo, RequestContext
from velollm.prompts import answer_prompts
from velollm.stages import next_stage

__all__ = ["ROUTES", "Door"]

logger = logging.getLogger("velollm.door")

HEARTBEAT = b": the model is still reading\n\n"
SSE = "text/event-stream"


class Door:
    """Serves every dialect in front of one backend (which may be a stack of layers).

    `max_body` bounds each request body, `max_bodies` all that are being received together, in bytes. `forward_unknown`
    passes paths under /v1 and /api that the door does not know on to a backend that speaks their dialect. `heartbeat`
    is the silence before the first token, in seconds, after which an event stream is opened with a comment, so that
    nobody in between gives up on a long prefill.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_body: int = 16 << 20,
        max_bodies: int = 1 << 30,
        forward_unknown: bool = True,
        heartbeat: float = 15.0,
    ) -> None:
        self.backend = backend
        self.bodies = Bodies(max_body, max_bodies)
        self.forward_unknown = forward_unknown
        self.heartbeat = heartbeat
        self._inside = 0  # chats that are being answered

    def knows(self, method: str, path: str) -> bool:
        """Whether a request is the door's to answer."""
        if self.forward_unknown and (path in ROUTES or path.startswith(("/v1/", "/api/"))):
            return True
        return _find(method, path) is not None

    async def serve(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer one request; `path` is relative to where the door is mounted."""
        exchange = Exchange(scope, receive, send, path)
        try:
            handler = _find(scope["method"], path) or self._unknown(scope["method"], path)
            await handler(self, exchange)
        except ClientLeft:
            return
        except VeloError as error:
            await self._fail(exchange, error)
        except Exception:
            logger.exception("request %s failed inside VeloLLM", exchange.context.request_id)
            await self._fail(exchange, VeloError("an internal error; the log of VeloLLM has the details"))

    async def _fail(self, exchange: Exchange, error: VeloError) -> None:
        let_go(error)
        if exchange.respond.started:  # too late for a status: breaking off is the only honest sign left
            raise error
        await exchange.fail(error)

    def _unknown(self, method: str, path: str) -> Handler:
        if path in ROUTES:
            raise MethodNotAllowed(path, method, ROUTES[path])
        if not self.forward_unknown:
            raise PathNotFound(f"{path} is not served here")
        return forward_unknown

    async def chat(self, exchange: Exchange, endpoint: ChatEndpoint) -> None:
        """Generate, streamed or whole."""
        await exchange.read(self.bodies)
        request = endpoint.parse(exchange.payload, exchange.body, exchange.context)
        self._inside += 1
        try:
            if self._inside > 1:
                await next_stage()
            with DisconnectWatch(exchange.scope, exchange.receive):
                if request.stream:
                    await self._stream(exchange, endpoint, request)
                else:
                    await self._whole(exchange, endpoint, request)
        finally:
            self._inside -= 1

    async def _whole(self, exchange: Exchange, endpoint: ChatEndpoint, request: ChatRequest) -> None:
        events = [event async for event in answer_prompts(self.backend, request)]
        if self._inside > 1:
            await next_stage()
        raw = _untouched(events, endpoint.wire)
        if raw is not None and not request.context.trailer:
            await exchange.json(raw)
            return
        collector = Collector()
        for event in events:
            collector.add(event)
        answer = collector.answer()
        if not answer.complete:
            raise BackendProtocolError(f"{self.backend.name} ended its answer without a finish reason")
        await exchange.json(endpoint.render(request, answer))

    async def _stream(self, exchange: Exchange, endpoint: ChatEndpoint, request: ChatRequest) -> None:
        respond = exchange.respond
        renderer = endpoint.stream(request)
        events = answer_prompts(self.backend, request)
        opening = _Opening(exchange, endpoint.stream_type, self.heartbeat)
        try:
            async for event in events:
                if not respond.started:
                    await opening.now()
                data = renderer.event(event)
                if data:
                    await respond.write(data)
            if not respond.started:
                await opening.now()
            await respond.end(renderer.end())
        except VeloError as error:
            if not respond.started:
                raise
            logger.info("request %s broke off: %s", exchange.context.request_id, error.message)
            let_go(error)
            await respond.end(renderer.error(error))
        finally:
            opening.close()
            await events.aclose()

    async def embed(self, exchange: Exchange, endpoint: EmbedEndpoint) -> None:
        """Embed texts."""
        await exchange.read(self.bodies)
        request = endpoint.parse(exchange.payload, exchange.context)
        with DisconnectWatch(exchange.scope, exchange.receive):
            result = await self._embedded(request)
        await exchange.json(endpoint.render(request, exchange.payload, result))

    async def _embedded(self, request: EmbedRequest) -> Embeddings:
        if request.inputs:
            return await self.backend.embed(request)
        return Embeddings(vectors=[], model=(await self.find_model(request.model)).id)

    async def find_model(self, name: str) -> ModelInfo:
        """The served model of this name, with or without Ollama's `:latest`; raises `ModelNotFound`."""
        served = await self.backend.models()
        for wanted in (name, f"{name}:latest", name.removesuffix(":latest")):
            for model in served:
                if model.id == wanted:
                    return model
        names = ", ".join(sorted(model.id for model in served)[:20]) or "none"
        raise ModelNotFound(f"model {name!r} is not served here; served are: {names}", param="model")


class _Opening:
    """Sends the head of a stream: with the first event, or earlier, with a comment, when that takes too long."""

    __slots__ = ("_beats", "_every", "_exchange", "_task", "_timer", "_type")

    def __init__(self, exchange: Exchange, content_type: str, every: float) -> None:
        self._exchange = exchange
        self._type = content_type
        self._every = every
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if content_type.startswith(SSE):
            self._timer = asyncio.get_running_loop().call_later(every, self._late)

    def _late(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            if not self._exchange.respond.started:
                await self._head()
            await self._exchange.respond.write(HEARTBEAT)
            await asyncio.sleep(self._every)

    async def _head(self) -> None:
        headers = self._exchange.headers((b"content-type", self._type.encode()))
        headers.append((b"cache-control", b"no-cache"))
        await self._exchange.respond.start(200, headers)

    async def now(self) -> None:
        """The first event is here."""
        self.close()
        await self._head()

    def close(self) -> None:
        """No more heartbeats."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


def _untouched(events: list[ChatEvent], wire: str) -> bytes | None:
    """The upstream's own JSON body, when it says exactly this answer in the client's wire."""
    if not events or events[0].wire != wire or not events[0].raw or not events[0].raw.startswith(b"{"):
        return None
    if len(events) > 1 and any(event.raw != b"" for event in events[1:]):
        return None
    return events[0].raw


# ---- the paths -------------------------------------------------------------------------------------------------------

Handler: TypeAlias = Callable[[Door, Exchange], Awaitable[None]]


def _chat(endpoint: ChatEndpoint) -> Mapping[str, Handler]:
    return {"POST": lambda door, exchange: door.chat(exchange, endpoint)}


def _embed(endpoint: EmbedEndpoint) -> Mapping[str, Handler]:
    return {"POST": lambda door, exchange: door.embed(exchange, endpoint)}


def _get(handler: Handler) -> Mapping[str, Handler]:
    return {"GET": handler, "HEAD": handler}


async def _models(door: Door, exchange: Exchange) -> None:
    served = await door.backend.models()
    dialect = anthropic if "anthropic-version" in exchange.context.client_headers else openai
    await exchange.json(dialect.render_models(served))


async def _model(door: Door, exchange: Exchange) -> None:
    model = await door.find_model(exchange.path.removeprefix("/v1/models/"))
    dialect = anthropic if "anthropic-version" in exchange.context.client_headers else openai
    await exchange.json(dialect.render_model(model))


def _count(
    parse: Callable[[dict[str, Any], bytes, RequestContext], ChatRequest], render: Callable[[int], dict[str, Any]]
) -> Mapping[str, Handler]:
    async def count_tokens(door: Door, exchange: Exchange) -> None:
        await exchange.read(door.bodies)
        request = parse(exchange.payload, exchange.body, exchange.context)
        with DisconnectWatch(exchange.scope, exchange.receive):
            count = await door.backend.count_tokens(request)
        await exchange.json(render(count))

    return {"POST": count_tokens}


async def _tokenize(door: Door, exchange: Exchange) -> None:
    await exchange.read(door.bodies)
    asked = parse_tokenize(exchange.payload)
    tokens = await door.backend.tokenize(asked.model, asked.text, add_special=asked.add_special)
    await exchange.json({"tokens": tokens, "count": len(tokens)})


async def _detokenize(door: Door, exchange: Exchange) -> None:
    await exchange.read(door.bodies)
    asked = parse_detokenize(exchange.payload)
    text = await door.backend.detokenize(asked.model, asked.tokens)
    await exchange.json({"content": text, "prompt": text})


async def _tags(door: Door, exchange: Exchange) -> None:
    await exchange.json(ollama.render_tags(await door.backend.models()))


async def _show(door: Door, exchange: Exchange) -> None:
    await exchange.read(door.bodies)
    name = exchange.payload.get("model") or exchange.payload.get("name")
    if not isinstance(name, str):
        raise RequestError("model is missing: send the name of the model to show", param="model")
    if await _speaks_ollama(door) and await forward_known(door, exchange):
        return
    await exchange.json(ollama.render_show(await door.find_model(name)))


async def _ps(door: Door, exchange: Exchange) -> None:
    if await _speaks_ollama(door):
        await forward(door, exchange)
    else:
        await exchange.json(ollama.render_ps(await door.backend.models()))


async def _version(door: Door, exchange: Exchange) -> None:
    if await _speaks_ollama(door):
        await forward(door, exchange)
    else:
        await exchange.json(ollama.render_version())


async def _manage(door: Door, exchange: Exchange) -> None:
    if not await _speaks_ollama(door):
        raise PathNotFound(
            f"{exchange.path}: no Ollama is behind this server, and only that changes models while it runs; "
            "`velollm models install` brings others"
        )
    await forward(door, exchange)


async def _speaks_ollama(door: Door) -> bool:
    await door.backend.start()
    return "ollama" in door.backend.capabilities.dialects


ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "/v1/chat/completions": _chat(openai.ChatCompletions()),
    "/v1/completions": _chat(openai.Completions()),
    "/v1/responses": _chat(responses.Responses()),
    "/v1/responses/input_tokens": _count(responses.Responses().parse, responses.render_input_tokens),
    "/v1/messages": _chat(anthropic.Messages()),
    "/v1/messages/count_tokens": _count(anthropic.parse_count_tokens, anthropic.render_count_tokens),
    "/v1/embeddings": _embed(openai.Embeddings()),
    "/v1/models": _get(_models),
    "/api/chat": _chat(ollama.Chat()),
    "/api/generate": _chat(ollama.Generate()),
    "/api/embed": _embed(ollama.Embed()),
    "/api/embeddings": _embed(ollama.LegacyEmbeddings()),
    "/api/tags": _get(_tags),
    "/api/show": {"POST": _show},
    "/api/ps": _get(_ps),
    "/api/version": _get(_version),
    "/api/pull": {"POST": _manage},
    "/api/push": {"POST": _manage},
    "/api/create": {"POST": _manage},
    "/api/copy": {"POST": _manage},
    "/api/delete": {"DELETE": _manage},
    "/tokenize": {"POST": _tokenize},
    "/detokenize": {"POST": _detokenize},
}


def _find(method: str, path: str) -> Handler | None:
    methods = ROUTES.get(path)
    if methods is not None:
        return methods.get(method)
    if path.startswith("/v1/models/") and method in ("GET", "HEAD"):
        return _model
    if path.startswith("/api/blobs/") and method in ("POST", "HEAD"):
        return forward
    return None
