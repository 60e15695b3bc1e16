"""One block after the other: events of an answer put into the order of dialects whose blocks never interleave.

Engines may mix the pieces of parallel tool calls; Anthropic's messages and OpenAI's responses have one open block at a
time. So blocks stand in a queue:

    [open, streams] ◀─ [collects] ◀─ [collects] ◀─ new ones

The first is closed when another waits and it has all it can get: text and reasoning at once, a call when its arguments
are a complete JSON object; at the end of the answer all are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import orjson

from velollm.messages import ChatEvent, ToolCallDelta

__all__ = ["Block", "BlockQueue", "Kind", "Step"]

Kind: TypeAlias = Literal["text", "reasoning", "tool"]


class Block:
    """A stretch of text, of reasoning, or one tool call (`id` and `name`, and its arguments as text).

    `index` is its place in the answer, -1 until it is open. `written` is what has been handed out, `logprobs` the
    entries (in the shape of chat completions) that belong to the text since the last step.
    """

    __slots__ = ("id", "index", "kind", "logprobs", "name", "waiting", "written")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.index = -1
        self.id: str | None = None
        self.name = ""
        self.waiting: list[str] = []
        self.written: list[str] = []
        self.logprobs: list[Any] = []

    @property
    def text(self) -> str:
        """All that has been handed out."""
        return "".join(self.written)

    def take(self) -> str:
        """What has come since the last step."""
        text = "".join(self.waiting)
        self.waiting.clear()
        if text:
            self.written.append(text)
        return text

    def complete(self) -> bool:
        """Whether nothing more can come once all is handed out."""
        if self.kind != "tool":
            return True
        if not self.written or not self.written[-1].rstrip().endswith("}"):
            return False
        try:
            orjson.loads(self.text)
        except orjson.JSONDecodeError:
            return False
        return True


Step: TypeAlias = tuple[Literal["open", "piece", "close"], Block, str]


class BlockQueue:
    """Takes events in and gives steps out: open a block, a piece of it, close it. Reasoning is dropped on demand."""

    __slots__ = ("_calls", "_count", "_queue", "_reasoning")

    def __init__(self, *, reasoning: bool = True) -> None:
        self._queue: deque[Block] = deque()
        self._calls: dict[int, Block] = {}
        self._count = 0
        self._reasoning = reasoning

    @property
    def called(self) -> bool:
        """Whether the answer has a tool call."""
        return bool(self._calls)

    @property
    def empty(self) -> bool:
        """Whether no block has been opened yet."""
        return self._count == 0

    @property
    def alone(self) -> bool:
        """Whether no block waits behind the open one."""
        return len(self._queue) <= 1

    def just_text(self, event: ChatEvent) -> Block | None:
        """The open block of text if all that `event` says is one more piece of it, which needs no further steps."""
        queue = self._queue
        if len(queue) != 1 or event.reasoning or event.tool_calls or event.logprobs:
            return None
        block = queue[0]
        return block if block.kind == "text" and block.index >= 0 else None

    def add(self, event: ChatEvent) -> None:
        """Take one event in."""
        if event.reasoning and self._reasoning:
            self._last("reasoning").waiting.append(event.reasoning)
        if event.text:
            block = self._last("text")
            block.waiting.append(event.text)
            if event.logprobs and isinstance(event.logprobs.get("content"), list):
                block.logprobs += event.logprobs["content"]
        for delta in event.tool_calls:
            self._call(delta)

    def _last(self, kind: Kind) -> Block:
        if not self._queue or self._queue[-1].kind != kind:
            self._queue.append(Block(kind))
        return self._queue[-1]

    def _call(self, delta: ToolCallDelta) -> None:
        block = self._calls.get(delta.index)
        if block is None:
            block = self._calls[delta.index] = Block("tool")
            self._queue.append(block)
        block.id = block.id or delta.id
        block.name = block.name or delta.name or ""
        if delta.arguments:  # of a call that is closed already, only space or rubbish behind the object can come
            block.waiting.append(delta.arguments)

    def steps(self, *, last: bool = False) -> Iterator[Step]:
        """What is to be sent now; with `last` everything, for the answer is over. To be iterated to its end."""
        queue = self._queue
        while queue:
            block = queue[0]
            if block.index < 0:
                if block.kind == "tool" and not block.name and not last:
                    return  # it cannot be opened without its name
                block.index = self._count
                self._count += 1
                yield "open", block, ""
            if text := block.take():
                yield "piece", block, text
            if not last and (len(queue) == 1 or not block.complete()):
                return
            yield "close", block, ""
            queue.popleft()
