"""A llama-server over HTTP. It speaks OpenAI's API, with gaps that are closed here:

forced tool calls (by `json_schema`, where it would take `tool_choice` for `auto` or answer in prose), tools for chat
templates that know none, log probabilities beside tools in a stream, and errors that say less than they mean.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx

from velollm.api.openai.upstream import encode_chat, wire_of
from velollm.backend import Capabilities, Limits
from velollm.continuation import Kept, Said, Token, check_resumable, ended, is_greedy, rest
from velollm.contrib.forced import as_calls, forced_call
from velollm.contrib.llamacpp.properties import ServerProperties, read_model, read_properties
from velollm.contrib.llamacpp.replication import Replicator, in_slot
from velollm.contrib.llamacpp.resumed import likely_tokens, rest_of, said_tokens
from velollm.contrib.openai import OpenAIBackend
from velollm.contrib.toolless import has_tool_turns, tell_tools
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    BackendUnreachable,
    ConfigError,
    ContextLengthExceeded,
    Overloaded,
    UnsupportedError,
    VeloError,
)
from velollm.messages import ChatEvent, ChatRequest, EmbedRequest, Message, ModelInfo, Part, TextPart, Usage
from velollm.transport import UpstreamResponse

__all__ = ["LlamaServerBackend"]

DEFAULT_PORT = 8080
PROPERTIES_SECONDS = 60.0  # so long they are believed: a server may be started anew with another model
RETRY_SECONDS = 2.0


class LlamaServerBackend(OpenAIBackend):
    """The llama-server at `llamacpp://host:port` (with `--api-path`, that path after it).

    It has one model and serves it under any name, unless it runs as a router. Where it may save its slots
    (`--slot-save-path`), conversations are placed on slots, and beginnings that they share are carried from one to the
    other (`replicate`), of no more than `most_tokens`; an `exclusive` server has no clients but this one.
    """

    kind = "llamacpp"
    insists = False
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
        url: str,
        *,
        name: str | None = None,
        limits: Limits = Limits(),
        api_key: str | None = None,
        headers: Mapping[str, str] = {},
        transport: httpx.AsyncBaseTransport | None = None,
        replicate: bool = True,
        exclusive: bool = False,
        most_tokens: int | None = None,
    ) -> None:
        super().__init__(
            _openai_url(url), name=name, limits=limits, api_key=api_key, headers=headers, transport=transport
        )
        self._properties: tuple[float, ServerProperties] | None = None
        self._replicates = replicate
        self._replication: dict[str, Any] = {"exclusive": exclusive, "most_tokens": most_tokens}
        self._replicator: Replicator | None = None

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate. What needs no help goes straight through."""
        if request.n > 1:
            return self._in_turns(request)
        plain = request.asks_nothing or request.suffix is not None or request.echo
        if plain or not self._replicates or "id_slot" in request.extra:
            return self._once(request)
        return self._in_its_slot(request)

    async def models(self) -> list[ModelInfo]:
        """The model that is loaded (of a router: those it can load)."""
        properties = await self.properties()
        answer = await self.upstream.get_json(self.prefix + "/models")
        items = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(items, list):
            raise BackendProtocolError(f"{self.name} answered without a list of models", backend=self.name)
        return [
            read_model(item, properties) for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)
        ]

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt as the model sees it, by `/apply-template` and `/tokenize`."""
        return len(await self._prompt(request))

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer, by the token ids of prompt and answer."""
        check_resumable(request, said)
        prompt = await self._prompt(request)

        async def pieces_of(text: str) -> list[Token]:
            return await self._pieces(request.model, text)

        known = await said_tokens(said.pieces, pieces_of, request.stop)
        if known.pieces < len(said.pieces) and not is_greedy(request):
            known = await likely_tokens(said.pieces, known, pieces_of)
        kept = Kept(pieces=known.pieces, tokens=len(known.ids), prompt=len(prompt))
        asked = rest_of(request, prompt, known)
        if asked.max_tokens is not None and asked.max_tokens <= 0:
            yield ended(kept)
            return
        async with aclosing(rest(super().chat(asked), request, said, kept)) as events:
            async for event in events:
                yield event

    async def context(self, model: str) -> int | None:
        """The context of one slot."""
        return (await self.properties()).context

    async def ready(self) -> None:
        """Return when the model is loaded; raise `BackendUnreachable` while it is not."""
        try:
            await self.upstream.get_json(self.prefix.removesuffix("/v1") + "/health")
        except BackendRefused as error:
            if error.status != 503:
                raise
            raise BackendUnreachable(
                f"{self.name} is still loading its model", backend=self.name, retry_after=RETRY_SECONDS
            ) from error

    async def slots(self, model: str) -> int | None:
        """How many it works on at once."""
        return (await self.properties()).slots

    async def properties(self) -> ServerProperties:
        """What `/props` says, asked again after a minute; the defaults where it says nothing."""
        known = self._properties
        if known is not None and time.monotonic() - known[0] < PROPERTIES_SECONDS:
            return known[1]
        try:
            answer = await self.upstream.get_json(self.prefix.removesuffix("/v1") + "/props")
        except BackendRefused as error:
            if error.status == 503:
                raise _meant(error, self.name) from error
            answer = {}
        found = read_properties(answer if isinstance(answer, dict) else {})
        self._properties = (time.monotonic(), found)
        return found

    # ---- inside ----

    async def _prompt(self, request: ChatRequest) -> list[int]:
        """The token ids of the prompt as the model sees it."""
        if isinstance(request.prompt, list):
            return request.prompt
        if request.raw and isinstance(request.prompt, str):
            return await self.tokenize(request.model, request.prompt, add_special=True)
        prompt = (await self._tokenizer("apply-template", encode_chat(await self._told(request)))).get("prompt")
        if not isinstance(prompt, str):
            raise BackendProtocolError(f"{self.name} answered without a prompt", backend=self.name)
        return await self.tokenize(request.model, prompt, add_special=True)

    async def _pieces(self, model: str, text: str) -> list[Token]:
        """The tokens of `text`, which is no beginning, with the bytes of each."""
        body = {"content": text, "with_pieces": True, "parse_special": False, "add_special": False}
        answer = await self._tokenizer("tokenize", {**body, **({"model": model} if model else {})})
        try:
            return [(int(token["id"]), _raw(token["piece"])) for token in answer["tokens"]]
        except (KeyError, TypeError, ValueError):
            raise UnsupportedError(f"{self.name} does not say which text its tokens stand for") from None

    def _once(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        begun = "" if request.stream or request.prompt is not None else _begun(request.messages)
        if begun:
            return _without(begun, self._plainly(request))
        return self._plainly(request)

    def _plainly(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        if request.top_logprobs is not None and not request.logprobs:  # 0, which says nothing, but would be refused
            request = request.replace(top_logprobs=None)
        if any(_refuses(part) for message in request.messages for part in _parts(message)):
            request = request.replace(messages=[_in_text(message) for message in request.messages])
        if request.tools or has_tool_turns(request) or request.suffix is not None or request.echo or request.logprobs:
            return self._helped(request)
        return super().chat(request)

    async def _in_its_slot(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate in a slot that has the beginning of the prompt, as far as any other has it."""
        async with (await self._slots()).place(request) as place:
            asked = request if place is None else in_slot(request, place.slot)
            async with aclosing(self._once(asked)) as events:
                async for event in events:
                    if place is not None and event.usage is not None:
                        place.judge(event.usage.cached_tokens)
                    yield event

    async def _slots(self) -> Replicator:
        if self._replicator is None:
            count = (await self.properties()).slots or 1
            root = self.prefix.removesuffix("/v1")
            made = Replicator(self.upstream, root, count, self._prompt, **self._replication)
            await made.probe()
            if self._replicator is None:
                self._replicator = made
        self._replicates = self._replicator.active
        return self._replicator

    async def _in_turns(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """As many choices at once as there are slots, for more are refused."""
        slots = (await self.properties()).slots or request.n
        usage: Usage | None = None
        for first in range(0, request.n, slots):
            turn = request
            if request.n > slots:
                seed = None if request.seed is None else request.seed + first
                turn = request.replace(n=min(slots, request.n - first), seed=seed)
            async with aclosing(self._once(turn)) as events:
                async for event in events:
                    if turn is request:
                        yield event
                        continue
                    usage = _sum(usage, event.usage)
                    last = first + slots >= request.n and event.usage is not None
                    meta = event.meta if first == 0 else None
                    yield attrs.evolve(
                        event, index=first + event.index, meta=meta, usage=usage if last else None, wire=None, raw=None
                    )

    async def _helped(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate what llama-server cannot do as it is asked."""
        wire = wire_of(request)
        if wire == "openai.completions" and (request.suffix is not None or request.echo):
            word = "suffix" if request.suffix is not None else "echo"
            raise UnsupportedError(f"{self.name} knows no {word} in completions: leave it out", param=word)
        forced = forced_call(request)
        asked = await self._told(request)
        if forced is not None:
            constraint = {**asked.extra, "json_schema": forced.schema}
            asked = asked.replace(tool_choice=None, parallel_tool_calls=None, response_format=None, extra=constraint)
        in_one_piece = request.stream and request.logprobs and bool(asked.tools)
        if in_one_piece:
            asked = asked.replace(stream=False)
        lone = request.logprobs and not request.top_logprobs  # it would send none at all, or 20 alternatives
        if lone:
            asked = asked.replace(top_logprobs=1)
        bare = in_one_piece or (wire == "openai.completions" and request.logprobs)
        async with aclosing(super().chat(asked)) as events:
            if forced is not None:
                async with aclosing(as_calls(events, forced, self.name)) as calls:
                    async for event in calls:
                        yield event
                return
            async for event in events:
                if lone and event.logprobs is not None:
                    event = attrs.evolve(event, logprobs=_alone(event.logprobs), wire=None, raw=None)
                yield attrs.evolve(event, wire=None, raw=None) if bare else event

    async def _told(self, request: ChatRequest) -> ChatRequest:
        """The request with its tools in words, where the chat template has none for them."""
        if not request.tools and not has_tool_turns(request):
            return request
        return request if (await self.properties()).template_tools else tell_tools(request)

    async def _post(self, path: str, body: bytes, request: ChatRequest | EmbedRequest) -> UpstreamResponse:
        try:
            return await super()._post(path, body, request)
        except (BackendRefused, ContextLengthExceeded) as error:
            meant = _meant(error, self.name)
            if meant is error:
                raise
            raise meant from error


def _parts(message: Message) -> list[Part]:
    return message.content if isinstance(message.content, list) else []


def _refuses(part: Part) -> bool:
    """Whether a part is what OpenAI calls a refusal, which llama-server does not know: the text of one."""
    return isinstance(part, TextPart) and part.extra.get("type") == "refusal"


def _in_text(message: Message) -> Message:
    parts = [TextPart(text=part.text) if isinstance(part, TextPart) else part for part in _parts(message)]
    return attrs.evolve(message, content=parts) if parts else message


def _begun(messages: list[Message]) -> str:
    """The beginning of the answer, where the client gave one: a last turn of the assistant."""
    return messages[-1].text if messages and messages[-1].role == "assistant" else ""


async def _without(begun: str, events: AsyncGenerator[ChatEvent, None]) -> AsyncGenerator[ChatEvent, None]:
    """Whole answers without their given beginning, which llama-server repeats in these and leaves out of streams."""
    async with aclosing(events):
        async for event in events:
            if event.text.startswith(begun):
                event = attrs.evolve(event, text=event.text.removeprefix(begun), wire=None, raw=None)
            yield event


def _alone(logprobs: dict[str, Any]) -> dict[str, Any]:
    """Log probabilities without alternatives."""
    content = logprobs.get("content")
    return {**logprobs, "content": [{**entry, "top_logprobs": []} for entry in content or ()]}


def _raw(piece: str | list[int]) -> bytes:
    """The bytes of a token; llama-server lists them where they are no whole characters."""
    return piece.encode() if isinstance(piece, str) else bytes(piece)


def _openai_url(url: str) -> str:
    """`llamacpp://host:port/path` as the URL of its OpenAI API."""
    scheme, sep, rest = url.partition("://")
    parts = urlsplit(f"http://{rest}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if not sep or scheme.lower() not in ("llamacpp", "http", "https") or not parts.hostname or port == -1:
        raise ConfigError(f"{url!r} is not the URL of a llama-server: llamacpp://host:port is wanted")
    kind = scheme.lower() if scheme.lower() != "llamacpp" else "http"
    place = parts.netloc.rpartition("@")[2]
    if port is None and kind == "http":
        place = f"{place}:{DEFAULT_PORT}"
    return f"{kind}://{place}{parts.path.rstrip('/').removesuffix('/v1')}/v1"


def _sum(one: Usage | None, other: Usage | None) -> Usage | None:
    """Counts of two turns with the same prompt, which counts once."""
    if one is None or other is None:
        return one or other
    return attrs.evolve(one, completion_tokens=one.completion_tokens + other.completion_tokens)


def _meant(error: BackendRefused | ContextLengthExceeded, name: str) -> VeloError:
    """The refusal as the error that it means."""
    words = error.message.lower()
    if "context size has been exceeded" in words:  # of all slots together; one prompt alone is refused in other words
        return Overloaded(
            f"the conversations that {name} holds need more context together than it has; fewer at a time, or a "
            "larger context, would do",
            retry_after=RETRY_SECONDS,
        )
    if isinstance(error, ContextLengthExceeded):
        return error
    if error.status == 503 and "loading" in words:
        return Overloaded(f"{name} is still loading its model", code="model_loading", retry_after=RETRY_SECONDS)
    if "too large to process" in words:
        return ContextLengthExceeded(error.message, param=error.param)
    return error
