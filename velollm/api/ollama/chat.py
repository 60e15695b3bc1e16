"""`POST /api/chat`."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from velollm.api.ollama.answer import Clock, render_whole
from velollm.api.ollama.conversation import read_messages
from velollm.api.ollama.options import SHARED, extra_fields, read_shared
from velollm.api.ollama.stream import LineStream
from velollm.api.openai.tools import parse_tooling
from velollm.api.values import get_bool
from velollm.messages import ChatAnswer, ChatRequest, RequestContext, Source

__all__ = ["Chat"]

JSON: TypeAlias = dict[str, Any]

KNOWN = SHARED | {"messages", "tools", "tool_choice", "parallel_tool_calls"}


class Chat:
    """The chat endpoint. `tool_choice` and `parallel_tool_calls` are understood as OpenAI spells them, though Ollama
    itself knows neither."""

    wire: ClassVar[str] = "ollama.chat"
    dialect: ClassVar[str] = "ollama"
    stream_type: ClassVar[str] = "application/x-ndjson"

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()

    def parse(self, payload: JSON, body: bytes, context: RequestContext) -> ChatRequest:
        """Validate and translate; without messages the request only loads the model."""
        tooling = parse_tooling({key: payload[key] for key in ("tools", "tool_choice") if key in payload})
        return ChatRequest(
            **read_shared(payload),
            messages=read_messages(payload),
            tools=tooling.tools,
            tool_choice=tooling.choice,
            parallel_tool_calls=get_bool(payload, "parallel_tool_calls"),
            extra=extra_fields(payload, KNOWN),
            source=Source(wire=self.wire, body=body, payload=payload),
            context=context,
        )

    def render(self, request: ChatRequest, answer: ChatAnswer) -> JSON:
        """The one object of a whole answer; its first choice, for there is never another."""
        return render_whole(request, answer, self._clock, chat=True)

    def stream(self, request: ChatRequest) -> LineStream:
        """A renderer of lines."""
        return LineStream(request, self.wire, self._clock)
