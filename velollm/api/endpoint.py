"""What a dialect has to offer the door: parse a request, render an answer, render a stream, render an error. No I/O."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from velollm.errors import VeloError
from velollm.messages import (
    ChatAnswer,
    ChatEvent,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    RequestContext,
)

__all__ = ["ChatEndpoint", "EmbedEndpoint", "StreamRenderer"]


class StreamRenderer(Protocol):
    """Renders one streamed answer; one is made for each request. Every method returns wire bytes, possibly none."""

    def event(self, event: ChatEvent) -> bytes:
        """The bytes for one event; `event.raw` as it is where `event.wire` is this renderer's own."""
        ...

    def end(self) -> bytes:
        """The bytes that end a good stream (usage chunk, `[DONE]`, `message_stop`, ...)."""
        ...

    def error(self, error: VeloError) -> bytes:
        """The dialect's error event, after which the stream is closed without `end`."""
        ...


class ChatEndpoint(Protocol):
    """One generating endpoint of a dialect, such as `POST /v1/chat/completions`."""

    wire: ClassVar[str]
    dialect: ClassVar[str]
    stream_type: ClassVar[str]

    def parse(self, payload: dict[str, Any], body: bytes, context: RequestContext) -> ChatRequest:
        """Validate and translate; raises `RequestError` with `param` naming the field. `body` is `payload` in bytes."""
        ...

    def render(self, request: ChatRequest, answer: ChatAnswer) -> dict[str, Any]:
        """The JSON of a complete answer."""
        ...

    def stream(self, request: ChatRequest) -> StreamRenderer:
        """A renderer for a streamed answer."""
        ...


class EmbedEndpoint(Protocol):
    """One embedding endpoint of a dialect."""

    dialect: ClassVar[str]

    def parse(self, payload: dict[str, Any], context: RequestContext) -> EmbedRequest:
        """Validate and translate; raises `RequestError`."""
        ...

    def render(self, request: EmbedRequest, payload: dict[str, Any], result: Embeddings) -> dict[str, Any]:
        """The JSON of the answer."""
        ...
