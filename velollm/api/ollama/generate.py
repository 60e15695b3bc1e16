"""`POST /api/generate`: one prompt, with the model's template around it, or `raw` without."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from velollm.api.ollama.answer import Clock, render_whole
from velollm.api.ollama.context import forget, recall
from velollm.api.ollama.conversation import read_images
from velollm.api.ollama.options import SHARED, extra_fields, read_shared
from velollm.api.ollama.stream import LineStream
from velollm.api.values import fail, get_bool, get_int_list, get_str
from velollm.messages import ChatAnswer, ChatRequest, Message, RequestContext, Source, TextPart

__all__ = ["Generate"]

JSON: TypeAlias = dict[str, Any]

KNOWN = SHARED | {"prompt", "suffix", "system", "raw", "images", "template", "context"}


class Generate:
    """The generate endpoint. `template` and an engine's own `context` travel among the request's extra fields, for
    Ollama alone has them; empty ones, as Go's client sends them, are none. A `context` of ours is read into turns."""

    wire: ClassVar[str] = "ollama.generate"
    dialect: ClassVar[str] = "ollama"
    stream_type: ClassVar[str] = "application/x-ndjson"

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()

    def parse(self, payload: JSON, body: bytes, context: RequestContext) -> ChatRequest:
        """Validate and translate; without a prompt the request only loads the model."""
        system = get_str(payload, "system")
        messages = [Message(role="system", content=system)] if system else []
        prompt: str | None = get_str(payload, "prompt") or ""
        images = read_images(payload)
        engines = get_int_list(payload, "context", low=0)
        turns = _recall(engines) if engines and prompt else None
        if turns is not None:
            engines = None
            messages = forget(turns, system)
        if not prompt:
            messages = []  # only a prompt asks for an answer
        elif images or turns is not None:
            messages.append(Message(role="user", content=[TextPart(text=prompt), *images] if images else prompt))
            prompt = None
        own = {"template": get_str(payload, "template"), "context": engines}
        extra = extra_fields(payload, KNOWN)
        extra.update({key: value for key, value in own.items() if value})
        return ChatRequest(
            **read_shared(payload),
            messages=messages,
            prompt=prompt,
            suffix=get_str(payload, "suffix") or None,
            raw=bool(prompt) and (get_bool(payload, "raw") or False),
            extra=extra,
            source=None if turns is not None else Source(wire=self.wire, body=body, payload=payload),
            context=context,
        )

    def render(self, request: ChatRequest, answer: ChatAnswer) -> JSON:
        """The one object of a whole answer."""
        return render_whole(request, answer, self._clock, chat=False)

    def stream(self, request: ChatRequest) -> LineStream:
        """A renderer of lines."""
        return LineStream(request, self.wire, self._clock)


def _recall(numbers: list[int]) -> list[Message] | None:
    try:
        return recall(numbers)
    except ValueError:
        fail("context", "is damaged: send it back as it came, or leave it out")
