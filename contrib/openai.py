"""Any server that speaks OpenAI's API: vLLM, SGLang, LM Studio, LocalAI, llama-server's /v1, and the like."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

import attrs
import httpx

from velollm.api.openai.engine_words import is_too_long
from velollm.api.openai.upstream import (
    StreamDecoder,
    decode_answer,
    dump,
    encode_embed,
    encode_messages,
    encode_tools,
    request_body,
    wire_of,
)
from velollm.api.openai.vectors import decode_embeddings
from velollm.api.sse import SSEDecoder
from velollm.backend import Backend, Capabilities, HttpRequest, HttpResponse, Limits
from velollm.continuation import Proofs, Said, go_on_by_prefill
from velollm.contrib.obeyed import obeyed
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    ConfigError,
    ContextLengthExceeded,
    ModelNotFound,
    UnsupportedError,
    VeloError,
)
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, ModelInfo
from velollm.transport import Upstream, UpstreamResponse
from velollm.transport.head import tracing_headers

__all__ = ["OpenAIBackend"]

logger = logging.getLogger("velollm.openai")

JSON: TypeAlias = dict[str, Any]

PATHS = {"openai.chat": "/chat/completions", "openai.completions": "/completions"}
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


class OpenAIBackend(Backend):
    """A server with an OpenAI API at `url`: `openai+http://host:8000/v1`, or without the path where that is `/v1`.

    `api_key` is sent as a bearer token; the key of the client never is.
    """

    kind = "openai"
    capabilities = Capabilities(dialects=frozenset({"openai"}), json_schema=True, tools=True, tool_choice=True)
    insists: ClassVar[bool] = True  # on a demanded tool call, by asking once more where it does not come

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
        root, self.prefix = _root_and_prefix(url)
        self.name = name or urlsplit(root).netloc
        self._proofs = Proofs()
        sent = {**headers, "authorization": f"Bearer {api_key}"} if api_key else headers
        self.upstream = Upstream(root, name=self.name, limits=limits, headers=sent, transport=transport)

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate, through the chat or the completions endpoint."""
        if request.tool_choice is not None and self.insists:
            return obeyed(self._ask, request, self.name)
        return self._ask(request)

    async def _ask(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        if request.asks_nothing:  # the engine has loaded its model long since
            yield ChatEvent(finish_reason="stop")
            return
        wire = wire_of(request)
        response = await self._post(self.prefix + PATHS[wire], request_body(request), request)
        async with response:
            if not request.stream or _is_json(response):
                for event in decode_answer(await response.read(), wire, self.name):
                    if request.stream:
                        event.raw = None  # a body is no frame of a stream
                    yield event
                return
            decoder, frames = StreamDecoder(wire, self.name), SSEDecoder()
            while not decoder.done and (piece := await response.piece()):
                for event in decoder.read(frames.feed(piece)):
                    yield event
            for event in decoder.read(frames.end()):
                yield event
        if decoder.skipped:
            logger.warning("%s sent %d events that could not be read", self.name, decoder.skipped)
        decoder.close()

    async def resumes(self, model: str) -> bool:
        """Whether it goes on with answers exactly: tried once for each model."""
        return await self._proofs.ask(self, model)

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer by a last turn of the assistant that is not over, as vLLM and SGLang take it."""
        if request.frequency_penalty or request.presence_penalty:
            raise UnsupportedError("the answer cannot be continued: its own words count for its penalties")

        async def count(text: str) -> int:
            return len(await self.tokenize(request.model, text))

        merge = request.extra.get("continue_final_message") is True
        events = go_on_by_prefill(self.chat, request, said, count=count, merge=merge, extra=CONTINUE)
        async with aclosing(events):
            async for event in events:
                yield event

    async def models(self) -> list[ModelInfo]:
        """What `GET /v1/models` lists."""
        answer = await self.upstream.get_json(self.prefix + "/models")
        items = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(items, list):
            raise BackendProtocolError(f"{self.name} answered without a list of models", backend=self.name)
        return [_model(item) for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input. Without any (which Ollama's API allows, and OpenAI's does not) nothing is asked."""
        if not request.inputs:
            return Embeddings(vectors=[], model=request.model)
        response = await self._post(self.prefix + "/embeddings", dump(encode_embed(request)), request)
        async with response:
            return decode_embeddings(await response.read(), len(request.inputs), self.name, request.dimensions)

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt; only vLLM's `/tokenize` takes messages."""
        body: JSON = {"messages": encode_messages(request.messages), "add_generation_prompt": True}
        if isinstance(request.prompt, str):
            body = {"prompt": request.prompt}
        if request.model:
            body["model"] = request.model
        if request.tools:
            body["tools"] = encode_tools(request.tools)
        count = (await self._tokenizer("tokenize", body)).get("count")
        if not isinstance(count, int):
            raise UnsupportedError(f"{self.name} cannot count the tokens of a conversation")
        return count

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`, by vLLM's or llama-server's `/tokenize`."""
        body = {"prompt": text, "content": text, "add_special_tokens": add_special, "add_special": add_special}
        answer = await self._tokenizer("tokenize", {**body, **({"model": model} if model else {})})
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise BackendProtocolError(f"{self.name} answered without token ids", backend=self.name)
        return tokens

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids, by vLLM's or llama-server's `/detokenize`."""
        answer = await self._tokenizer("detokenize", {"tokens": tokens, **({"model": model} if model else {})})
        for key in ("prompt", "content", "text"):
            if isinstance(answer.get(key), str):
                return str(answer[key])
        raise BackendProtocolError(f"{self.name} answered without a text", backend=self.name)

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """Pass on what lies below `/v1`."""
        if not request.target.startswith("/v1/"):
            return await super().forward(request)
        return await self.upstream.forward(attrs.evolve(request, target=self.prefix + request.target[3:]))

    def break_off(self, why: str) -> None:
        """End everything that is under way."""
        self.upstream.break_off(why)

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self.upstream.aclose()

    # ---- inside ----

    async def _post(self, path: str, body: bytes, request: ChatRequest | EmbedRequest) -> UpstreamResponse:
        headers = tracing_headers(request.context.client_headers)
        try:
            return await self.upstream.post_json(path, body, headers=headers)
        except BackendRefused as error:
            raise _explained(error) from error

    async def _tokenizer(self, verb: str, body: JSON) -> JSON:
        """Ask `/tokenize` or `/detokenize`, which lie beside `/v1`, not below it."""
        try:
            response = await self.upstream.post_json(f"{self.prefix.removesuffix('/v1')}/{verb}", body)
        except BackendRefused as error:
            if error.status in (404, 405):
                raise UnsupportedError(f"{self.name} cannot {verb}") from error
            raise
        async with response:
            answer = await response.json()
        if not isinstance(answer, dict):
            raise BackendProtocolError(f"{self.name} answered with JSON that is not an object", backend=self.name)
        return answer


def _root_and_prefix(url: str) -> tuple[str, str]:
    parts = urlsplit(url.removeprefix("openai+"))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"{url!r} is not the URL of an OpenAI server: openai+http://host:port/v1 is wanted")
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/") or "/v1"


def _is_json(response: UpstreamResponse) -> bool:
    """Some engines answer a request for a stream in one piece, or with a bare error."""
    return (response.header(b"content-type") or b"").startswith(b"application/json")


def _explained(error: BackendRefused) -> VeloError:
    """The engine's refusal as the error it means, where its words leave no doubt."""
    if is_too_long(error.message, error.details or {}):
        return ContextLengthExceeded(error.message)
    if error.status == 404 and "model" in error.message.lower():
        return ModelNotFound(error.message, param="model")
    if error.status == 501 or "input is not supported" in error.message.lower():  # llama-server's words
        return UnsupportedError(error.message, param=error.param)
    return error


def _model(item: JSON) -> ModelInfo:
    meta = item.get("meta")
    found = meta if isinstance(meta, dict) else {}
    created, owner = item.get("created"), item.get("owned_by")
    context = item.get("max_model_len") or found.get("n_ctx_train")
    size = found.get("size")
    return ModelInfo(
        id=item["id"],
        created=created if type(created) is int else 0,
        owned_by=owner if isinstance(owner, str) else "",
        size=size if type(size) is int else 0,
        context_length=context if type(context) is int else None,
        capabilities=["embedding"] if "embed" in item["id"].lower() else ["completion", "tools"],
    )
