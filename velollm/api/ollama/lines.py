"""Answers of an Ollama, whole or line by line, as typed events. No I/O.

bytes ─▶ LineDecoder.feed ─▶ ChatEvents ··· until "done": true ─▶ LineDecoder.end
"""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

from velollm.api.ollama.failures import failure
from velollm.errors import BackendProtocolError
from velollm.messages import ChatEvent, FinishReason, ResponseMeta, Timings, ToolCallDelta, Usage

__all__ = ["LineDecoder", "decode_answer"]

JSON: TypeAlias = dict[str, Any]

SECOND = 1_000_000_000
TOKEN = frozenset({"role", "content"})


class LineDecoder:
    """Reads one streamed answer of `wire` `ollama.chat` or `ollama.generate`.

    `done` is true once the last line came; `skipped` counts lines that were no JSON object of the kind.
    """

    def __init__(self, wire: str, backend: str) -> None:
        self.done = False
        self.skipped = 0
        self._wire = wire
        self._backend = backend
        self._chat = wire == "ollama.chat"
        self._rest = b""
        self._pending: list[bytes] = []
        self._begun = False
        self._calls = 0

    def feed(self, data: bytes) -> list[ChatEvent]:
        """The events of the lines that `data` completes. Raises the error that the engine sent in-band."""
        head, newline, tail = data.rpartition(b"\n")
        if not newline:
            self._pending.append(data)
            return []
        if self._pending:
            head = b"".join([*self._pending, head])
            self._pending.clear()
        if tail:
            self._pending.append(tail)
        return self._read(head.split(b"\n"))

    def end(self) -> list[ChatEvent]:
        """The events of what is left without a line break. Raises `BackendProtocolError` unless the answer is whole."""
        events = self._read([b"".join(self._pending)])
        self._pending.clear()
        if not self.done:
            note = f"; {self.skipped} lines of the stream could not be read" if self.skipped else ""
            raise BackendProtocolError(f"{self._backend} broke off its answer{note}", backend=self._backend)
        return events

    def _read(self, lines: list[bytes]) -> list[ChatEvent]:
        events = []
        for line in lines:
            if self.done or not line or line.isspace():
                continue
            event = self._line(line)
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> ChatEvent | None:
        try:
            answer = orjson.loads(line)
            if answer["done"] is False and self._begun and "logprobs" not in answer:
                text = self._lone_text(answer)
                if text is not None:
                    return ChatEvent(text, wire=self._wire, raw=line + b"\n")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            answer = _object(line)
        if answer is None:
            self.skipped += 1
            return None
        if answer.get("error"):
            raise failure(answer["error"], 502, self._backend)
        try:
            event = read_answer(answer, self._wire, self._backend, self._calls)
        except (KeyError, TypeError, ValueError, AttributeError):
            self.skipped += 1
            return None
        if self._begun:
            event.meta = None
        self._begun = True
        self._calls += len(event.tool_calls)
        if event.finish_reason is not None:
            self.done = True
        event.wire = self._wire
        event.raw = line.rstrip(b"\r") + b"\n"
        return event

    def _lone_text(self, answer: JSON) -> str | None:
        """The text of a line that brings nothing else."""
        if self._chat:
            message = answer["message"]
            text = message["content"] if message.keys() <= TOKEN else None
        else:
            text = None if answer.get("thinking") else answer["response"]
        return text if type(text) is str else None


def decode_answer(body: bytes, wire: str, backend: str) -> ChatEvent:
    """The one event of an answer in one piece. Raises as `LineDecoder` does."""
    answer = _object(body)
    if answer is None:
        raise BackendProtocolError(f"{backend} answered with something that is no JSON object", backend=backend)
    if answer.get("error"):
        raise failure(answer["error"], 502, backend)
    try:
        event = read_answer(answer, wire, backend, 0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackendProtocolError(f"{backend} answered with a malformed message", backend=backend) from error
    if event.finish_reason is None:
        raise BackendProtocolError(f"{backend} ended its answer before it was done", backend=backend)
    event.wire, event.raw = wire, body
    return event


def read_answer(answer: JSON, wire: str, backend: str, calls: int) -> ChatEvent:
    """The event of one object; `calls` is the number of calls that came before. Raises on a wrong shape."""
    if wire == "ollama.chat":
        message = answer["message"]
        text, thinking, called = message.get("content"), message.get("thinking"), message.get("tool_calls")
    else:
        text, thinking, called = answer["response"], answer.get("thinking"), answer.get("tool_calls")
    event = ChatEvent(_text(text), _text(thinking))
    event.tool_calls = [_call(call, calls + place) for place, call in enumerate(called or ())]
    logprobs = answer.get("logprobs")
    if isinstance(logprobs, list) and logprobs:
        event.logprobs = {"content": [_logprob(entry) for entry in logprobs]}
    model = answer.get("model")
    event.meta = ResponseMeta(model=model if isinstance(model, str) else "")
    if answer["done"] is True:
        event.finish_reason = _finish(answer.get("done_reason"), calls + len(event.tool_calls) > 0)
        event.usage = _usage(answer)
    return event


def _object(line: bytes) -> JSON | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        raise TypeError("text")
    return value


def _call(call: JSON, index: int) -> ToolCallDelta:
    function = call["function"]
    name, arguments, call_id = function["name"], function.get("arguments"), call.get("id")
    if not isinstance(name, str) or not isinstance(arguments, dict | str | None):
        raise TypeError("tool_calls")
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
    return ToolCallDelta(index, call_id if isinstance(call_id, str) and call_id else None, name, text)


def _logprob(entry: JSON) -> JSON:
    """An entry as chat completions have it: with its bytes, and with alternatives even where there are none."""
    tops = entry.get("top_logprobs") or []
    return {**_token(entry), "top_logprobs": [_token(top) for top in tops]}


def _token(entry: JSON) -> JSON:
    token = entry["token"]
    given = entry.get("bytes")
    return {
        "token": token,
        "logprob": entry["logprob"],
        "bytes": given if isinstance(given, list) else list(token.encode("utf-8", "replace")),
    }


def _finish(word: Any, called: bool) -> FinishReason:
    if word == "length":
        return "length"
    return "tool_calls" if called else "stop"


def _usage(answer: JSON) -> Usage:
    return Usage(
        prompt_tokens=_count(answer, "prompt_eval_count"),
        completion_tokens=_count(answer, "eval_count"),
        timings=Timings(
            load=_seconds(answer, "load_duration"),
            prefill=_seconds(answer, "prompt_eval_duration"),
            decode=_seconds(answer, "eval_duration"),
            total=_seconds(answer, "total_duration"),
        ),
    )


def _count(source: JSON, key: str) -> int:
    value = source.get(key)
    return value if type(value) is int and value > 0 else 0


def _seconds(source: JSON, key: str) -> float | None:
    value = source.get(key)
    return value / SECOND if type(value) is int else None
