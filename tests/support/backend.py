"""A backend whose answers a test dictates, and which remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from velollm.backend import Backend, Capabilities, HttpRequest, HttpResponse
from velollm.errors import ModelNotFound, VeloError
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    ModelInfo,
    ResponseMeta,
    Usage,
)


class ScriptedBackend(Backend):
    """Says `words`, one event each, `pause` seconds apart; fails with `error` after `fail_after` of them."""

    name = "scripted"

    def __init__(
        self,
        words: Sequence[str] = ("Hello", " ", "world"),
        *,
        pause: float = 0.0,
        error: VeloError | Exception | None = None,
        fail_after: int = 0,
        dialects: frozenset[str] = frozenset(),
    ) -> None:
        self.words = words
        self.pause = pause
        self.error = error
        self.fail_after = fail_after
        self.capabilities = Capabilities(dialects=dialects)
        self.requests: list[ChatRequest] = []
        self.forwarded: list[tuple[str, str, bytes]] = []
        self.replies: list[tuple[int, bytes]] = []  # to what is forwarded: status and body, one after the other
        self.running = 0
        self.cancelled = 0
        self.closed = 0

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.requests.append(request)
        self.running += 1
        try:
            async for event in self._events(request):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _events(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        if request.model == "missing":
            raise ModelNotFound("model 'missing' is not served here", param="model")
        for number, word in enumerate(self.words):
            if self.error is not None and number == self.fail_after:
                raise self.error
            await asyncio.sleep(self.pause)
            meta = ResponseMeta(id="answer-1", model=request.model, created=1_700_000_000) if number == 0 else None
            yield ChatEvent(text=word, meta=meta)
        if self.error is not None and self.fail_after >= len(self.words):
            raise self.error
        usage = Usage(prompt_tokens=5, completion_tokens=len(self.words), cached_tokens=2)
        yield ChatEvent(finish_reason="stop", usage=usage)

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id="tiny", created=1_700_000_000, owned_by="tests", context_length=4096)]

    async def embed(self, request: EmbedRequest) -> Embeddings:
        vectors = [[float(number), 0.5, -1.0] for number, _ in enumerate(request.inputs)]
        return Embeddings(vectors=vectors, model=request.model, prompt_tokens=3 * len(vectors))

    async def count_tokens(self, request: ChatRequest) -> int:
        return sum(len(message.text.split()) for message in request.messages)

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        return ([1] if add_special else []) + [len(word) for word in text.split()]

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        return " ".join("x" * token for token in tokens)

    async def forward(self, request: HttpRequest) -> HttpResponse:
        body = request.body if isinstance(request.body, bytes) else b"".join([piece async for piece in request.body])
        self.forwarded.append((request.method, request.target, body))
        if self.replies:
            status, reply = self.replies.pop(0)
            return HttpResponse(status=status, headers=[(b"content-length", b"%d" % len(reply))], body=_said(reply))
        return HttpResponse(status=200, headers=[(b"content-type", b"application/x-ndjson")], body=_progress())

    async def aclose(self) -> None:
        self.closed += 1


async def _said(reply: bytes) -> AsyncGenerator[bytes, None]:
    yield reply


async def _progress() -> AsyncGenerator[bytes, None]:
    yield b'{"status":"pulling"}\n'
    yield b'{"status":"success"}\n'
