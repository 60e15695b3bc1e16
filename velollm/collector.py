"""The events of an answer put together into the whole. No I/O."""

from __future__ import annotations

from typing import Any, TypeAlias

from velollm.messages import (
    ChatAnswer,
    ChatEvent,
    Choice,
    FinishReason,
    ResponseMeta,
    ToolCall,
    ToolCallDelta,
    Usage,
)

__all__ = ["Collector"]

JSON: TypeAlias = dict[str, Any]


class Collector:
    """Turns a stream of events into a `ChatAnswer`, in time linear in the size of the answer."""

    __slots__ = ("_choices", "_meta", "_usage")

    def __init__(self) -> None:
        self._choices: dict[int, _Pieces] = {}
        self._usage: Usage | None = None
        self._meta: ResponseMeta | None = None

    def add(self, event: ChatEvent) -> None:
        """Take one event in, in order."""
        if event.meta is not None:
            self._meta = event.meta
        if event.usage is not None:
            self._usage = event.usage
        if event.text or event.reasoning or event.tool_calls or event.finish_reason or event.logprobs:
            pieces = self._choices.get(event.index)
            if pieces is None:
                pieces = self._choices[event.index] = _Pieces()
            pieces.add(event)

    def answer(self) -> ChatAnswer:
        """What came so far."""
        return ChatAnswer(
            choices=[self._choices[index].choice(index) for index in sorted(self._choices)],
            usage=self._usage,
            meta=self._meta or ResponseMeta(),
        )


class _Pieces:
    """The parts of one choice before they are joined."""

    __slots__ = ("arguments", "calls", "finish_reason", "logprobs", "reasoning", "stop_sequence", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, ToolCall] = {}
        self.arguments: dict[int, list[str]] = {}
        self.logprobs: JSON | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_sequence: str | None = None

    def add(self, event: ChatEvent) -> None:
        if event.text:
            self.text.append(event.text)
        if event.reasoning:
            self.reasoning.append(event.reasoning)
        for delta in event.tool_calls:
            self._add_call(delta)
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
        if event.stop_sequence is not None:
            self.stop_sequence = event.stop_sequence
        if event.logprobs is not None:
            self._add_logprobs(event.logprobs)

    def _add_call(self, delta: ToolCallDelta) -> None:
        call = self.calls.get(delta.index)
        if call is None:
            call = self.calls[delta.index] = ToolCall(id="", name="", arguments="")
            self.arguments[delta.index] = []
        if delta.id:
            call.id = delta.id
        if delta.name:
            call.name = delta.name
        self.arguments[delta.index].append(delta.arguments)

    def _add_logprobs(self, new: JSON) -> None:
        if self.logprobs is None:
            self.logprobs = {}
        for key, value in new.items():
            if isinstance(value, list):
                known = self.logprobs.get(key)
                if isinstance(known, list):
                    known.extend(value)
                else:
                    self.logprobs[key] = list(value)
            else:
                self.logprobs.setdefault(key, value)

    def choice(self, index: int) -> Choice:
        for number, call in self.calls.items():
            call.arguments = "".join(self.arguments[number])
        return Choice(
            index=index,
            text="".join(self.text),
            reasoning="".join(self.reasoning),
            tool_calls=[self.calls[number] for number in sorted(self.calls)],
            finish_reason=self.finish_reason,
            stop_sequence=self.stop_sequence,
            logprobs=self.logprobs,
        )
