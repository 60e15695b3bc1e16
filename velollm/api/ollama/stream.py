"""The stream of an answer: one JSON object a line, the last with `"done": true`, counts and durations.

Lines of the same wire go out as they came. The last one is held back until the end: only then is known whether a
`velollm` object belongs into it, and after a failure it is not sent at all. A tool call comes in one piece, once it is
complete.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

from velollm.api.ollama.answer import (
    Clock,
    done_reason,
    head,
    metrics,
    render_calls,
    render_logprobs,
    render_said,
    shows_thinking,
)
from velollm.api.ollama.context import remember
from velollm.api.ollama.errors import render_error
from velollm.errors import VeloError
from velollm.messages import ChatEvent, ChatRequest, FinishReason, ResponseMeta, ToolCall, ToolCallDelta, Usage

__all__ = ["LineStream"]

JSON: TypeAlias = dict[str, Any]


class LineStream:
    """Renders one streamed answer of `wire` `ollama.chat` or `ollama.generate`."""

    def __init__(self, request: ChatRequest, wire: str, clock: Clock) -> None:
        self._request = request
        self._wire = wire
        self._clock = clock
        self._chat = wire == "ollama.chat"
        self._thinking = shows_thinking(request)
        self._meta: ResponseMeta | None = None
        self._usage: Usage | None = None
        self._finish: FinishReason | None = None
        self._first: float | None = None
        self._fields: JSON = {}
        self._before = b""
        self._calls = _Calls()
        self._held = b""
        self._said: list[str] = []

    def event(self, event: ChatEvent) -> bytes:
        """The bytes for one event."""
        if event.meta is not None and self._meta is None:
            self._meta = event.meta
        if event.usage is not None:
            self._usage = event.usage
        if self._first is None and (event.text or event.reasoning or event.tool_calls):
            self._first = self._clock.monotonic()
        if event.text and not self._chat and not event.index:
            self._said.append(event.text)
        if event.raw is not None and event.wire == self._wire and (self._thinking or not event.reasoning):
            return self._pass(event, event.raw)
        if event.index:
            return b""  # there is room for one answer
        if event.finish_reason is not None:
            self._finish = event.finish_reason
        lines = b""
        if event.reasoning or event.logprobs or event.tool_calls:
            lines = self._more(event)
        elif event.text:
            return self._waiting() + self._text(event.text)
        return lines

    def _pass(self, event: ChatEvent, raw: bytes) -> bytes:
        if event.finish_reason is None:
            return raw
        self._held = raw
        return b""

    def _text(self, text: str) -> bytes:
        if not self._before:
            place = b'"message":{"role":"assistant","content":' if self._chat else b'"response":'
            self._before = b"%b,%b" % (orjson.dumps(self._head())[:-1], place)
        return b'%b%b%b"done":false}\n' % (self._before, orjson.dumps(text), b"}," if self._chat else b",")

    def _more(self, event: ChatEvent) -> bytes:
        """Lines for an event that brings more than text."""
        lines = b""
        reasoning = event.reasoning if self._thinking else ""
        if event.text or reasoning or event.logprobs:
            lines = self._waiting() + self._line(event.text, reasoning, logprobs=event.logprobs)
        for delta in event.tool_calls:
            self._calls.add(delta)
        return lines

    def _waiting(self) -> bytes:
        """Calls that are complete when something else follows them."""
        return b"".join(self._called(call, index) for index, call in self._calls.take()) if self._calls.waiting else b""

    def _called(self, call: ToolCall, index: int) -> bytes:
        return self._line("", "", calls=render_calls([call], self._clock.mint, index))

    def _line(
        self, text: str, reasoning: str, *, calls: list[JSON] | None = None, logprobs: JSON | None = None
    ) -> bytes:
        said: JSON = {"thinking": reasoning} if reasoning else {}
        if calls:
            said["tool_calls"] = calls
        body = render_said(text, said, chat=self._chat)
        return orjson.dumps({**self._head(), **body, "done": False, **render_logprobs(logprobs)}) + b"\n"

    def _head(self) -> JSON:
        if not self._fields:
            self._fields = head(self._request, self._meta, self._clock)
        return self._fields

    # ---- the end ----

    def end(self) -> bytes:
        """Calls that still wait, and the line that says that and why the answer is done."""
        lines = b"".join(self._called(call, index) for index, call in self._calls.take(last=True))
        trailer = self._request.context.trailer
        if self._held and not trailer:
            return lines + self._held
        last = orjson.loads(self._held) if self._held else self._last()
        if trailer:
            last["velollm"] = trailer
        return b"%b%b\n" % (lines, orjson.dumps(last))

    def _last(self) -> JSON:
        last = {
            **self._head(),
            **render_said("", {}, chat=self._chat),
            "done": True,
            "done_reason": done_reason(self._request, self._finish),
            **metrics(self._usage, self._request, self._clock.monotonic(), self._first),
        }
        context = None if self._chat else remember(self._request, "".join(self._said))
        return last if context is None else {**last, "context": context}

    def error(self, error: VeloError) -> bytes:
        """The error line; an end that was held back is not sent any more."""
        return orjson.dumps(render_error(error, self._request.context.request_id)) + b"\n"


class _Calls:
    """Tool calls in the making, by the order in which they began."""

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[ToolCall, list[str]]] = {}
        self._count = 0

    def add(self, delta: ToolCallDelta) -> None:
        """Take in a piece of a call."""
        call, pieces = self.waiting.setdefault(delta.index, (ToolCall(id="", name="", arguments=""), []))
        call.id = delta.id or call.id
        call.name = delta.name or call.name
        pieces.append(delta.arguments)

    def take(self, *, last: bool = False) -> list[tuple[int, ToolCall]]:
        """The complete ones, each with its place in the answer; with `last` all that there are."""
        ready = []
        for index in list(self.waiting):
            call, pieces = self.waiting[index]
            call.arguments = "".join(pieces)
            if not last and not _complete(call.arguments):
                break
            del self.waiting[index]
            ready.append((self._count, call))
            self._count += 1
        return ready


def _complete(arguments: str) -> bool:
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False
