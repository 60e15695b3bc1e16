"""The fixer for streams: text that cannot begin a call flows at once; calls come out whole, when they are certain."""

from __future__ import annotations

from typing import Any

from attrs import define

from velollm.toolcalls.fixer import Mode, left_to_say, read_answer
from velollm.toolcalls.gate import Gate
from velollm.toolcalls.result import FixResult
from velollm.toolcalls.tools import compile_tools

__all__ = ["StreamEvent", "StreamFixer"]


@define(slots=True)
class StreamEvent:
    """Either `text`, or a piece of the call number `index`: `name` once, then `arguments`, fragments of JSON."""

    text: str | None = None
    index: int | None = None
    name: str | None = None
    arguments: str | None = None
    id: str | None = None


class StreamFixer:
    """`fix` for an answer that arrives in pieces: the same result, whatever the pieces.

    What flows is never taken back. A call comes out at `finish`, for only then is it known that it was not rehearsed
    in reasoning whose opening tag stood in the prompt.
    """

    def __init__(self, tools: Any, *, family: str | None = None, dedupe: bool = True, mode: Mode = "repair") -> None:
        self._tools = compile_tools(tools)
        self._gate = Gate(self._tools) if self._tools else None
        self._flowed: list[str] = []
        self._dedupe = dedupe
        self._mode: Mode = mode
        self.result: FixResult | None = None

    def feed(self, delta: str) -> list[StreamEvent]:
        """The events that `delta` settles."""
        if not delta:
            return []
        text = delta if self._gate is None else self._gate.feed(delta)
        if not text:
            return []
        self._flowed.append(text)
        return [StreamEvent(text=text)]

    def finish(self, finish_reason: str | None = None) -> list[StreamEvent]:
        """The rest of the events. `result` then holds what `fix` would have said."""
        flowed = "".join(self._flowed)
        if self._gate is None:
            self.result = FixResult(content=flowed or None)
            return []
        rest = self._gate.rest
        text = flowed + rest
        if not text:
            self.result = FixResult()
            return []
        result = read_answer(text, len(flowed), self._tools, finish_reason, dedupe=self._dedupe, mode=self._mode)
        self.result = result
        events: list[StreamEvent] = []
        more = left_to_say(result.content, flowed)
        if more:
            events.append(StreamEvent(text=more))
        for index, call in enumerate(result.calls):
            events.append(StreamEvent(index=index, name=call.name, arguments="", id=call.id))
            events.append(StreamEvent(index=index, arguments=call.arguments_json))
        return events
