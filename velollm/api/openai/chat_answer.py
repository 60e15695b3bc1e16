"""`chat.completion` and `chat.completion.chunk`: the answer of the chat endpoint, whole and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import orjson

from velollm.api.openai.identity import Identity, Minter, render_usage
from velollm.api.openai.logprobs import to_chat
from velollm.api.openai.stream import EventStream
from velollm.messages import ChatAnswer, ChatEvent, ChatRequest, Choice, ToolCall, ToolCallDelta

__all__ = ["ChatStream", "is_legacy", "render_chat"]

JSON: TypeAlias = dict[str, Any]

PREFIX = "chatcmpl-"


def is_legacy(request: ChatRequest) -> bool:
    """Whether the client speaks of `functions`, and so expects `function_call` in the answer."""
    return "functions" in request.extra


def _finish_word(reason: str | None, called: bool, legacy: bool) -> str | None:
    if called and reason == "stop":
        reason = "tool_calls"
    return "function_call" if legacy and reason == "tool_calls" else reason


def render_chat(request: ChatRequest, answer: ChatAnswer, mint: Minter) -> JSON:
    """The `chat.completion` object of a complete answer."""
    identity = Identity.of(request, answer.meta, PREFIX, mint)
    body: JSON = {
        **identity.head("chat.completion"),
        "choices": [_choice(choice, request, mint) for choice in answer.choices],
        "system_fingerprint": identity.fingerprint,
    }
    if answer.usage is not None:
        body["usage"] = render_usage(answer.usage)
    if request.context.trailer:
        body["velollm"] = request.context.trailer
    return body


def _choice(choice: Choice, request: ChatRequest, mint: Minter) -> JSON:
    legacy = is_legacy(request)
    calls = choice.tool_calls
    message: JSON = {"role": "assistant", "content": choice.text if choice.text or not calls else None, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if calls and legacy:
        message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
    elif calls:
        message["tool_calls"] = [_call(call, mint) for call in calls]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": to_chat(choice.logprobs),
        "finish_reason": _finish_word(choice.finish_reason, bool(calls), legacy),
    }


def _call(call: ToolCall, mint: Minter) -> JSON:
    return {
        "id": call.id or mint.name("call_"),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _merged(deltas: Sequence[ToolCallDelta]) -> Sequence[ToolCallDelta]:
    """The pieces of one event, those of the same call in one."""
    if len(deltas) < 2:
        return deltas
    merged: dict[int, ToolCallDelta] = {}
    for piece in deltas:
        call = merged.get(piece.index)
        merged[piece.index] = piece if call is None else attrs.evolve(
            call, id=call.id or piece.id, name=call.name or piece.name, arguments=call.arguments + piece.arguments
        )  # fmt: skip
    return list(merged.values())


class ChatStream(EventStream):
    """Renders chunks: a role first, then deltas, then an empty delta with the finish reason."""

    wire = "openai.chat"
    kind = "chat.completion.chunk"
    prefix = PREFIX

    def __init__(self, request: ChatRequest, mint: Minter) -> None:
        super().__init__(request, mint)
        self._legacy = is_legacy(request)
        self._started: set[int] = set()
        self._calls: dict[tuple[int, int], bool] = {}
        self._text_tail = b'},"logprobs":null,"finish_reason":null}]' + self._tail

    def note(self, event: ChatEvent) -> None:
        """Remember which choices and calls have begun, should rendered events follow."""
        self._started.add(event.index)
        for delta in event.tool_calls:
            self._calls[event.index, delta.index] = True

    def chunk(self, event: ChatEvent) -> bytes:
        """The frames of one event."""
        if not (event.text or event.reasoning or event.tool_calls or event.logprobs or event.finish_reason):
            return b""
        first = b"" if event.index in self._started else self._start(event.index)
        if event.text and not (event.reasoning or event.tool_calls or event.logprobs):
            return b'%b%b{"index":%d,"delta":{"content":%b%b' % (
                first, self.head(), event.index, orjson.dumps(event.text), self._text_tail,
            )  # fmt: skip
        delta = self._delta(event)
        frames = [first]
        if delta or event.logprobs:
            frames.append(self._frame(event.index, delta, event.logprobs, None))
        if not self._legacy:  # a frame for each call: there are clients that read the first of a frame only
            frames += [
                self._frame(event.index, {"tool_calls": [self._tool_call(event.index, call)]}, None, None)
                for call in _merged(event.tool_calls)
            ]
        return b"".join(frames)

    def finish(self, event: ChatEvent) -> bytes:
        """The frame with the finish reason."""
        called = any(index == event.index for index, _ in self._calls)
        return self._frame(event.index, {}, None, _finish_word(event.finish_reason, called, self._legacy))

    def _start(self, index: int) -> bytes:
        self._started.add(index)
        return self._frame(index, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def _frame(self, index: int, delta: JSON, logprobs: JSON | None, finish: str | None) -> bytes:
        return self.frame({"index": index, "delta": delta, "logprobs": to_chat(logprobs), "finish_reason": finish})

    def _delta(self, event: ChatEvent) -> JSON:
        delta: JSON = {}
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.text:
            delta["content"] = event.text
        if event.tool_calls and self._legacy:
            delta["function_call"] = self._function_call(event)
        return delta

    def _tool_call(self, choice: int, call: ToolCallDelta) -> JSON:
        if (choice, call.index) in self._calls:
            return {"index": call.index, "function": {"arguments": call.arguments}}
        self._calls[choice, call.index] = True
        return {
            "index": call.index,
            "id": call.id or self.mint.name("call_"),
            "type": "function",
            "function": {"name": call.name or "", "arguments": call.arguments},
        }

    def _function_call(self, event: ChatEvent) -> JSON:
        """The first call alone: the old form has room for one."""
        found: JSON = {}
        for call in event.tool_calls:
            if call.index == 0:
                self._calls[event.index, 0] = True
                found["arguments"] = found.get("arguments", "") + call.arguments
                if call.name:
                    found["name"] = call.name
        return found
