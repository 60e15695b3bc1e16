"""The event stream of a message.

    message_start ─▶ (content_block_start ─▶ content_block_delta … ─▶ content_block_stop) …
                  ─▶ message_delta ─▶ message_stop

Its blocks never interleave: `velollm.api.blocks` puts what engines mix into order.
"""

from __future__ import annotations

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
from velollm.api.blocks import Block, BlockQueue
from velollm.api.openai import Minter
from velollm.errors import VeloError
from velollm.messages import ChatEvent, ChatRequest, FinishReason, ResponseMeta, Usage

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
    "reasoning": ("thinking_delta", "thinking"),
    "tool": ("input_json_delta", "partial_json"),
}
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class MessageStream:
    """Renders one streamed message. Events of Anthropic's own wire go out as they came."""

    def __init__(self, request: ChatRequest, mint: Minter) -> None:
        self._request = request
        self._mint = mint
        self._blocks = BlockQueue(reasoning=shows_thinking(request))
        self._signer = Signer()
        self._meta: ResponseMeta | None = None
        self._usage: Usage | None = None
        self._finish: FinishReason | None = None
        self._stop_sequence: str | None = None
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
        block = self._blocks.just_text(event)
        if block is not None:
            return TEXT % (block.index, orjson.dumps(event.text)) if event.text else b""
        self._blocks.add(event)
        return start + self._steps()

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

    def _steps(self, *, last: bool = False) -> bytes:
        frames = b""
        for step, block, text in self._blocks.steps(last=last):
            if step == "open":
                frames += self._open(block)
            elif step == "piece":
                frames += self._piece(block, text)
            else:
                frames += self._close(block)
        return frames

    def _open(self, block: Block) -> bytes:
        content: JSON = {"type": "text", "text": ""}
        if block.kind == "reasoning":
            self._signer = Signer()
            content = {"type": "thinking", "thinking": "", "signature": ""}
        elif block.kind == "tool":
            content = {"type": "tool_use", "id": tool_id(block.id, self._mint), "name": block.name, "input": {}}
        return _frame("content_block_start", {"index": block.index, "content_block": content})

    def _piece(self, block: Block, text: str) -> bytes:
        if block.kind == "reasoning":
            self._signer.add(text)
        kind, field = DELTAS[block.kind]
        return _frame("content_block_delta", {"index": block.index, "delta": {"type": kind, field: text}})

    def _close(self, block: Block) -> bytes:
        frames = b""
        if block.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": self._signer.signature()}
            frames = _frame("content_block_delta", {"index": block.index, "delta": delta})
        return frames + STOP % block.index

    # ---- the end ----

    def end(self) -> bytes:
        """What still waits, `message_delta` with stop reason and cumulative usage, `message_stop`."""
        if self._finished_raw:
            return b""
        frames = b"" if self._started else self._start()
        frames += self._steps(last=True)
        reason = stop_reason(self._finish, self._stop_sequence, self._blocks.called)
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
