"""The event stream of a message.

    message_start ─▶ (content_block_start ─▶ content_block_delta … ─▶ content_block_stop) …
                  ─▶ message_delta ─▶ message_stop

Anthropic's blocks never interleave, while engines may mix the pieces of parallel tool calls. So blocks stand in a
queue: the first is open and streams, the others collect. It is closed when the next one waits and it has all it can
get: text and thoughts at once, a call when its arguments are a complete JSON object.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import orjson

from velollm.api.anthropic.answer import (
    Signer,
    message_head,
    render_usage,
    shows_thinking,
    stop_reason,
    tool_id,
)
from velollm.api.anthropic.errors import render_error
from velollm.api.openai import Minter
from velollm.errors import VeloError
from velollm.messages import ChatEvent, ChatRequest, FinishReason, ResponseMeta, ToolCallDelta, Usage

__all__ = ["MessageStream"]

JSON: TypeAlias = dict[str, Any]

TEXT = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":%b}}'
    b"\n\n"
)
STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool": ("input_json_delta", "partial_json"),
}
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class _Block:
    """One content block: what of it has been sent (`index` is -1 before that), and what waits."""

    __slots__ = ("call", "id", "index", "kind", "name", "pieces", "signer", "written")

    def __init__(self, kind: str, call: int = -1) -> None:
        self.kind = kind
        self.call = call
        self.id: str | None = None
        self.name = ""
        self.index = -1
        self.pieces: list[str] = []
        self.written: list[str] = []  # a call's arguments that were sent
        self.signer = Signer() if kind == "thinking" else None

    def complete(self) -> bool:
        """Whether nothing more can come: for a call whose pieces are all written, that they are a JSON object."""
        if self.kind != "tool":
            return True
        if not self.written or not self.written[-1].rstrip().endswith("}"):
            return False
        try:
            orjson.loads("".join(self.written))
        except orjson.JSONDecodeError:
            return False
        return True


class MessageStream:
    """Renders one streamed message. Events of Anthropic's own wire go out as they came."""

    def __init__(self, request: ChatRequest, mint: Minter) -> None:
        self._request = request
        self._mint = mint
        self._thinking = shows_thinking(request)
        self._meta: ResponseMeta | None = None
        self._usage: Usage | None = None
        self._finish: FinishReason | None = None
        self._stop_sequence: str | None = None
        self._queue: deque[_Block] = deque()
        self._calls: dict[int, _Block] = {}
        self._blocks = 0
        self._started = False
        self._finished_raw = False

    def event(self, event: ChatEvent) -> bytes:
        """The bytes for one event."""
        rendered = self._render(event)  # also for an event that goes out as it came: the next may not
        if event.raw is None or event.wire != "anthropic.messages":
            return rendered
        if event.finish_reason is not None:
            self._finished_raw = True
        return event.raw

    def _render(self, event: ChatEvent) -> bytes:
        if event.meta is not None and self._meta is None:
            self._meta = event.meta
        if event.usage is not None:
            self._usage = event.usage
        if event.finish_reason is not None:
            self._finish = event.finish_reason
        if event.stop_sequence is not None:
            self._stop_sequence = event.stop_sequence
        start = b"" if self._started else self._start()
        if event.text and self._streams_text(event):
            return start + TEXT % (self._queue[0].index, orjson.dumps(event.text))
        if event.reasoning and self._thinking:
            self._tail("thinking").pieces.append(event.reasoning)
        if event.text:
            self._tail("text").pieces.append(event.text)
        for delta in event.tool_calls:
            self._call(delta)
        return start + self._flush(last=False)

    def _streams_text(self, event: ChatEvent) -> bool:
        """Whether this is just one more piece of the text that is being sent."""
        queue = self._queue
        return (
            len(queue) == 1
            and queue[0].kind == "text"
            and queue[0].index >= 0
            and not (event.reasoning or event.tool_calls)
        )

    def _start(self) -> bytes:
        self._started = True
        message: JSON = {
            **message_head(self._request, self._meta, self._mint),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**render_usage(self._usage), "output_tokens": 0},
        }
        return _frame("message_start", {"message": message})

    # ---- blocks ----

    def _tail(self, kind: str) -> _Block:
        """The block that text of this kind belongs to: the last one, if it is of this kind."""
        if not self._queue or self._queue[-1].kind != kind:
            self._queue.append(_Block(kind))
        return self._queue[-1]

    def _call(self, delta: ToolCallDelta) -> None:
        block = self._calls.get(delta.index)
        if block is None:
            block = self._calls[delta.index] = _Block("tool", delta.index)
            self._queue.append(block)
        if delta.id and block.id is None:
            block.id = delta.id
        if delta.name and not block.name:
            block.name = delta.name
        if delta.arguments:  # of a call that is closed already, only space or rubbish behind the object can come
            block.pieces.append(delta.arguments)

    def _flush(self, last: bool) -> bytes:
        """Send what the first block has; go on to the next ones as long as those before them are complete."""
        frames = b""
        queue = self._queue
        while queue:
            block = queue[0]
            if block.index < 0:
                if block.kind == "tool" and not block.name and not last:
                    return frames  # its start needs the name
                frames += self._open(block)
            frames += self._send(block)
            if not last and (len(queue) == 1 or not block.complete()):
                return frames
            frames += self._close(block)
            queue.popleft()
        return frames

    def _open(self, block: _Block) -> bytes:
        block.index = self._blocks
        self._blocks += 1
        content: JSON = {"type": "text", "text": ""}
        if block.kind == "thinking":
            content = {"type": "thinking", "thinking": "", "signature": ""}
        elif block.kind == "tool":
            content = {"type": "tool_use", "id": tool_id(block.id, self._mint), "name": block.name, "input": {}}
        return _frame("content_block_start", {"index": block.index, "content_block": content})

    def _send(self, block: _Block) -> bytes:
        if not block.pieces:
            return b""
        text = "".join(block.pieces)
        block.pieces.clear()
        if block.kind == "tool":
            block.written.append(text)
        if block.signer is not None:
            block.signer.add(text)
        kind, field = DELTAS[block.kind]
        return _frame("content_block_delta", {"index": block.index, "delta": {"type": kind, field: text}})

    def _close(self, block: _Block) -> bytes:
        frames = b""
        if block.signer is not None:
            delta = {"type": "signature_delta", "signature": block.signer.signature()}
            frames = _frame("content_block_delta", {"index": block.index, "delta": delta})
        return frames + STOP % block.index

    # ---- the end ----

    def end(self) -> bytes:
        """What still waits, `message_delta` with stop reason and cumulative usage, `message_stop`."""
        if self._finished_raw:
            return b""
        frames = b"" if self._started else self._start()
        frames += self._flush(last=True)
        reason = stop_reason(self._finish, self._stop_sequence, bool(self._calls))
        sequence = self._stop_sequence if reason == "stop_sequence" else None
        body: JSON = {
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": render_usage(self._usage),
        }
        if self._request.context.trailer:
            body["velollm"] = self._request.context.trailer
        return frames + _frame("message_delta", body) + MESSAGE_STOP

    def error(self, error: VeloError) -> bytes:
        """The error event; the SDKs raise it."""
        return b"event: error\ndata: %b\n\n" % orjson.dumps(render_error(error, self._request.context.request_id))


def _frame(kind: str, body: JSON) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **body}))
