"""Streamed answers of engines that speak OpenAI, chunk by chunk as typed events. No I/O.

    bytes ─▶ SSEDecoder ─▶ frames ─▶ StreamDecoder.read ─▶ ChatEvents ··· until [DONE] ─▶ StreamDecoder.close

Texts that came at once become one event: when the proxy is behind, it has less to do for each of them.

What cannot be read is skipped and counted; what was read but is not as the schema wants it (no `index`, no
`finish_reason`, another id than the first chunk, usage beside choices) loses its bytes, so that a renderer writes it
anew, correctly. llama-server stamps every chunk with a time of its own: all of them get that of the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

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
from velollm.api.sse import SSEFrame
from velollm.errors import BackendProtocolError
from velollm.messages import ChatEvent, FinishReason

__all__ = ["StreamDecoder"]

JSON: TypeAlias = dict[str, Any]

KINDS = {"openai.chat": "chat.completion.chunk", "openai.completions": "text_completion"}
PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')  # stands in a JSON string as it is
PROBE = b"probe of a text"
MALFORMED = (KeyError, TypeError, ValueError, AttributeError)


class StreamDecoder:
    """Reads one streamed answer of `wire` `openai.chat` or `openai.completions`.

    `done` is true once `[DONE]` came; `skipped` counts frames that were no JSON object of the kind.
    """

    def __init__(self, wire: str, backend: str) -> None:
        self.wire = wire
        self.done = False
        self.skipped = 0
        self._backend = backend
        self._chat = wire == "openai.chat"
        self._reader = _ChunkReader(self._chat, backend)
        self._begun = self._reader.begun
        self._meta_sent = False
        self._head: tuple[Any, ...] = ()
        self._created: Any = None
        self._pattern: Pattern | None = None  # of the last chunk that brought a text and nothing else

    def read(self, frames: Iterable[SSEFrame]) -> Iterator[ChatEvent]:
        """The events of frames that came at once. Raises `BackendRefused` for an error that the engine sent in-band,
        when the events before it are out."""
        pattern = self._pattern
        texts: list[str] = []
        passed: list[bytes] = []
        for frame in frames:
            found = None if pattern is None else pattern.match(frame)
            if found is not None:
                texts.append(found[0])
                passed.append(found[1])
                continue
            if texts and pattern is not None:
                yield self._joined(pattern, texts, passed)
                texts, passed = [], []
            yield from self.frame(frame.data, frame.raw, frame.event)
            pattern = self._pattern
        if texts and pattern is not None:
            yield self._joined(pattern, texts, passed)

    def _joined(self, pattern: Pattern, texts: list[str], passed: list[bytes]) -> ChatEvent:
        if len(texts) == 1:
            return ChatEvent(texts[0], index=pattern.index, wire=self.wire, raw=passed[0])
        text, raw = "".join(texts), b"".join(passed)
        return ChatEvent(text, index=pattern.index, wire=self.wire, raw=raw, pieces=len(texts), texts=texts)

    def frame(self, data: bytes, raw: bytes, event: str = "") -> Sequence[ChatEvent]:
        """The events of one server-sent event."""
        if self.done or not data:
            return ()
        try:
            chunk = orjson.loads(data)
            choices = chunk["choices"]
        except MALFORMED:
            return self._unusual(data, event)
        if chunk.get("error"):
            raise in_band_error(chunk["error"], self._backend)
        if type(choices) is list and len(choices) == 1 and chunk.get("usage") is None:
            choice = choices[0]
            try:
                if choice["finish_reason"] is None and not choice.get("logprobs") and choice["index"] in self._begun:
                    text = self._lone_text(choice)
                    if text is not None:
                        passed = self._bytes(chunk, data, raw)
                        if passed is not None:
                            self._pattern = Pattern.of(data, passed, text, choice["index"])
                        return (ChatEvent(text, index=choice["index"], wire=self.wire, raw=passed),)
            except MALFORMED:
                pass
        return self._whole(chunk, data, raw)

    def close(self) -> None:
        """Call when the body has ended: raises `BackendProtocolError` unless the answer is complete."""
        if not self.done:
            self._broken("ended its stream without [DONE]")
        if not self._begun or self._begun != self._reader.finished:
            self._broken("ended its answer without a finish reason")

    def _broken(self, problem: str) -> NoReturn:
        note = f"; {self.skipped} events of the stream could not be read" if self.skipped else ""
        raise BackendProtocolError(f"{self._backend} {problem}{note}", backend=self._backend)

    def _lone_text(self, choice: JSON) -> str | None:
        """The text of a chunk that brings nothing else."""
        if not self._chat:
            text = choice["text"]
            return text if type(text) is str else None
        delta = choice["delta"]
        if len(delta) == 1:
            text = delta.get("content")
            return text if type(text) is str else None
        return None

    def _unusual(self, data: bytes, event: str) -> Sequence[ChatEvent]:
        """`[DONE]`, an error, or what is no chunk at all."""
        if data.strip() == b"[DONE]":
            self.done = True
            self._pattern = None  # nothing behind it is looked at
            return ()
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict) and (value.get("error") or event == "error"):
            raise in_band_error(value.get("error") or value, self._backend)
        if event == "error":
            raise in_band_error(None, self._backend)
        self.skipped += 1
        return ()

    def _whole(self, chunk: JSON, data: bytes, raw: bytes) -> Sequence[ChatEvent]:
        """Any chunk, at leisure."""
        choices = chunk["choices"]
        try:
            events, faithful = self._reader.events(choices)
        except MALFORMED:
            self.skipped += 1
            return ()
        if not events:
            events = [ChatEvent()]
        usage = read_usage(chunk)
        if usage is not None:
            events[-1].usage = usage
        if not self._meta_sent:
            self._meta_sent = True
            events[0].meta = read_meta(chunk)
            if has_identity(chunk, KINDS[self.wire]):
                self._head = _head_of(chunk)
                self._created = chunk["created"]
        passed = self._bytes(chunk, data, raw) if faithful and not (choices and chunk.get("usage")) else None
        for event in events:
            event.wire = self.wire
            event.raw = None if passed is None else b""
        events[0].raw = passed
        return events

    def _bytes(self, chunk: JSON, data: bytes, raw: bytes) -> bytes | None:
        """The frame as a client may get it; None when it says that it belongs to another answer than the first."""
        if _head_of(chunk) != self._head:
            return None
        created = chunk.get("created")
        if created != self._created:
            stamp = b'"created":%d'
            if type(created) is not int or data.count(stamp % created) != 1:
                return None
            data = raw = data.replace(stamp % created, stamp % self._created)
        return _canonical(data, raw)


class Pattern:
    """What is around the text in a chunk that brings nothing else; most chunks of an answer differ in nothing more."""

    __slots__ = ("_after", "_before", "_least", "_sent", "index")

    def __init__(self, before: bytes, after: bytes, sent: tuple[bytes, bytes] | None, index: int) -> None:
        self._before = before
        self._after = after
        self._least = len(before) + len(after)
        self._sent = sent
        self.index = index

    @classmethod
    def of(cls, data: bytes, passed: bytes, text: str, index: int) -> Pattern | None:
        """The pattern of a chunk, of which `passed` is sent on; None when its text stands there in other characters."""
        literal = b'"%b"' % text.encode()
        around, sent = data.split(literal), passed.split(literal)
        if not PLAIN.fullmatch(literal[1:-1]) or len(around) != 2 or len(sent) != 2:
            return None
        before, after = around[0] + b'"', b'"' + around[1]
        if not _holds_text(before + PROBE + after):
            return None  # it was another string that reads like the text
        same = passed == b"data: %b\n\n" % data
        return cls(before, after, None if same else (sent[0] + b'"', b'"' + sent[1]), index)

    def match(self, frame: SSEFrame) -> tuple[str, bytes] | None:
        """The text of a chunk of this pattern, and what to send on."""
        _, data, raw = frame
        before, after = self._before, self._after
        if not (data.startswith(before) and data.endswith(after)) or len(data) < self._least:
            return None
        middle = data[len(before) : len(data) - len(after)]
        if not PLAIN.fullmatch(middle):
            return None
        try:
            text = middle.decode()
        except UnicodeDecodeError:
            return None
        if self._sent is not None:
            return text, b"%b%b%b" % (self._sent[0], middle, self._sent[1])
        return text, _canonical(data, raw)


def _holds_text(data: bytes) -> bool:
    """Whether the text of this chunk is the probe."""
    choice = orjson.loads(data)["choices"][0]
    text = choice["text"] if "text" in choice else choice["delta"].get("content")
    return bool(text == PROBE.decode())


class _ChunkReader:
    """Reads the choices of chunks, and knows which have `begun` and which have `finished`."""

    def __init__(self, chat: bool, backend: str) -> None:
        self.begun: set[int] = set()
        self.finished: set[int] = set()
        self._chat = chat
        self._backend = backend
        self._calls: dict[int, CallIndex] = {}
        self._faithful = True

    def events(self, choices: Any) -> tuple[list[ChatEvent], bool]:
        """The events of one chunk, and whether its bytes may go on as they are. Raises one of `MALFORMED`."""
        if not isinstance(choices, list):
            raise TypeError("choices")
        self._faithful = True
        events = [self._choice(choice) for choice in choices]
        for event in events:
            self.begun.add(event.index)
            if event.finish_reason is not None:
                self.finished.add(event.index)
        return events, self._faithful

    def _choice(self, choice: JSON) -> ChatEvent:
        index = choice.get("index", 0)
        if type(index) is not int or index < 0:
            raise ValueError("index")
        if "index" not in choice:
            self._faithful = False
        event = ChatEvent(index=index, finish_reason=self._finish(choice), stop_sequence=stop_string(choice))
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict) and logprobs:
            event.logprobs = logprobs if self._chat else from_legacy(logprobs)
            self._faithful = self._faithful and (self._chat or event.logprobs is not logprobs)
        if self._chat:
            self._delta(choice.get("delta") or {}, event)
        else:
            event.text = text_of(choice.get("text"))
        return event

    def _delta(self, delta: JSON, event: ChatEvent) -> None:
        event.text = text_of(delta.get("content")) or text_of(delta.get("refusal"))
        event.reasoning = text_of(delta.get("reasoning_content")) or text_of(delta.get("reasoning"))
        if event.index not in self.begun and "role" not in delta:
            self._faithful = False
        pieces = delta.get("tool_calls")
        if not pieces and isinstance(delta.get("function_call"), dict):
            pieces = [{"function": delta["function_call"]}]
        if pieces:
            calls = self._calls.setdefault(event.index, CallIndex())
            event.tool_calls = [calls.delta(piece) for piece in pieces]
            self._faithful = self._faithful and calls.faithful

    def _finish(self, choice: JSON) -> FinishReason | None:
        word = choice.get("finish_reason")
        if word not in AS_THEY_ARE and (word is not None or "finish_reason" not in choice):
            self._faithful = False
        return finish_reason(word, self._backend)


def _head_of(chunk: JSON) -> tuple[Any, ...]:
    """What all chunks of one answer have in common."""
    return chunk.get("id"), chunk.get("object"), chunk.get("model")


def _canonical(data: bytes, raw: bytes) -> bytes:
    """The frame in its plainest form: comments, ids, event names and line breaks of the engine's own stay here."""
    if len(raw) == len(data) + 8 and raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
        return raw
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")  # in JSON they stand between tokens only
    return b"data: %b\n\n" % data
