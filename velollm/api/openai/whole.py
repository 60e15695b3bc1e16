"""Answers in one piece, of engines that speak OpenAI, as typed events. No I/O."""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

from velollm.api.openai.call_index import CallIndex
from velollm.api.openai.engine_words import (
    AS_THEY_ARE,
    finish_reason,
    has_identity,
    in_band_error,
    read_meta,
    read_usage,
    stop_string,
    text_of,
)
from velollm.api.openai.logprobs import from_legacy
from velollm.errors import BackendProtocolError
from velollm.messages import ChatEvent

__all__ = ["decode_answer", "json_object"]

JSON: TypeAlias = dict[str, Any]

KINDS = {"openai.chat": "chat.completion", "openai.completions": "text_completion"}


def decode_answer(body: bytes, wire: str, backend: str) -> list[ChatEvent]:
    """The events of an answer in one piece: one for each choice. The first carries the body's bytes, with the nulls
    that OpenAI's schema asks for and engines leave out.

    Raises `BackendProtocolError` when `body` is no such answer, `BackendRefused` when it is an error.
    """
    answer = json_object(body, backend)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BackendProtocolError(f"{backend} answered without choices", backend=backend)
    reader = _AnswerReader(wire, backend)
    try:
        events = [reader.choice(choice, number) for number, choice in enumerate(choices)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackendProtocolError(f"{backend} answered with malformed choices", backend=backend) from error
    events[0].meta = read_meta(answer)
    events[-1].usage = read_usage(answer)
    if reader.faithful and has_identity(answer, KINDS[wire]):
        for event in events:
            event.wire = wire
            event.raw = b""
        events[0].raw = orjson.dumps(answer) if reader.added else body
    return events


def json_object(body: bytes, backend: str) -> JSON:
    """A body that must be a JSON object and no error; raises as `decode_answer` does."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BackendProtocolError(f"{backend} answered with something that is not JSON", backend=backend) from None
    if not isinstance(answer, dict):
        raise BackendProtocolError(f"{backend} answered with JSON that is not an object", backend=backend)
    if answer.get("error"):
        raise in_band_error(answer["error"], backend)
    return answer


class _AnswerReader:
    """Reads the choices of a whole answer."""

    def __init__(self, wire: str, backend: str) -> None:
        self.faithful = True
        self.added = False
        self._chat = wire == "openai.chat"
        self._backend = backend

    def choice(self, choice: JSON, number: int) -> ChatEvent:
        word = choice["finish_reason"]
        finish = finish_reason(word, self._backend)
        if finish is None:
            raise ValueError("finish_reason")
        self.faithful = self.faithful and word in AS_THEY_ARE and "index" in choice
        event = ChatEvent(index=choice.get("index", number), finish_reason=finish, stop_sequence=stop_string(choice))
        if type(event.index) is not int:
            raise ValueError("index")
        logprobs = self._nullable(choice, "logprobs")
        if isinstance(logprobs, dict) and logprobs:
            event.logprobs = logprobs if self._chat else from_legacy(logprobs)
            self.faithful = self.faithful and (self._chat or event.logprobs is not logprobs)
        if self._chat:
            self._message(choice["message"], event)
        else:
            event.text = text_of(choice["text"])
        return event

    def _message(self, message: JSON, event: ChatEvent) -> None:
        content, refusal = self._nullable(message, "content"), self._nullable(message, "refusal")
        event.text = text_of(content) or text_of(refusal)
        event.reasoning = text_of(message.get("reasoning_content")) or text_of(message.get("reasoning"))
        self.faithful = self.faithful and message.get("role") == "assistant"
        calls = list(message.get("tool_calls") or ())
        if isinstance(message.get("function_call"), dict):
            calls.append({"function": message["function_call"]})
        if calls:
            known = CallIndex()
            event.tool_calls = [known.delta({**call, "index": place}) for place, call in enumerate(calls)]
            self.faithful = self.faithful and known.faithful

    def _nullable(self, holder: JSON, name: str) -> Any:
        """A field that must be there, if only as null."""
        if name not in holder:
            holder[name] = None
            self.added = True
        return holder[name]
