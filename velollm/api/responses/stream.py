"""The event stream of a response.

    response.created ─▶ response.in_progress ─▶ item* ─▶ response.completed | response.incomplete
                                                       └▶ response.failed ─▶ error
    item = output_item.added ─▶ [part added] ─▶ delta… ─▶ done ─▶ [part done] ─▶ output_item.done

Every event carries the next `sequence_number`. Items never interleave (`velollm.api.blocks`).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

from velollm.api.blocks import Block, BlockQueue
from velollm.api.openai import Minter
from velollm.api.openai.errors import render_error
from velollm.api.responses.answer import (
    Envelope,
    call_item,
    failure,
    logprob_entries,
    message_item,
    output_text,
    reasoning_item,
    wants_summary,
)
from velollm.errors import VeloError
from velollm.messages import ChatEvent, ChatRequest, FinishReason, ResponseMeta, ToolCall, Usage

__all__ = ["ResponseStream"]

JSON: TypeAlias = dict[str, Any]

PREFIX = {"text": "msg_", "reasoning": "rs_", "tool": "fc_"}
CHANNELS = {
    "text": "response.output_text",
    "reasoning": "response.reasoning_text",
    "summary": "response.reasoning_summary_text",
    "tool": "response.function_call_arguments",
}
TEXT = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,%b'


class ResponseStream:
    """Renders one streamed response. Events of this wire go out as they came."""

    def __init__(self, request: ChatRequest, mint: Minter) -> None:
        self._request = request
        self._mint = mint
        self._summary = wants_summary(request)
        self._blocks = BlockQueue(reasoning=request.think is not False)
        self._meta: ResponseMeta | None = None
        self._usage: Usage | None = None
        self._finish: FinishReason | None = None
        self._envelope: Envelope | None = None
        self._number = 0
        self._item: _Item | None = None
        self._output: list[JSON] = []
        self._finished_raw = False

    # ---- the protocol ----

    def event(self, event: ChatEvent) -> bytes:
        """The bytes for one event."""
        rendered = self._render(event)  # also for an event that goes out as it came: the next may not
        if event.raw is None or event.wire != "openai.responses":
            return rendered
        if event.finish_reason is not None:
            self._finished_raw = True
        return event.raw

    def end(self) -> bytes:
        """What still waits, and the last event with the complete response."""
        if self._finished_raw:
            return b""
        frames = self._begin() + self._steps(last=True)
        if self._blocks.empty:  # an answer has a message, be it an empty one
            frames += self._empty_message()
        response = self._opened().final(self._finish, self._output, self._usage, self._mint)
        if self._request.context.trailer:
            response["velollm"] = self._request.context.trailer
        return frames + self._frame(f"response.{response['status']}", response=response)

    def error(self, error: VeloError) -> bytes:
        """`response.failed`, and the `error` event, which SDKs raise (by its `error`) or read (the rest)."""
        frames = self._begin()
        output = self._output
        if self._item is not None:
            output = [*output, self._item.render("incomplete")]
        response = self._opened().render("failed", output, self._usage, error=failure(error))
        details = render_error(error, self._request.context.request_id)["error"]
        flat = {key: details[key] for key in ("code", "message", "param")}
        return frames + self._frame("response.failed", response=response) + self._frame("error", **flat, error=details)

    # ---- one event ----

    def _render(self, event: ChatEvent) -> bytes:
        if event.meta is not None and self._meta is None:
            self._meta = event.meta
        if event.usage is not None:
            self._usage = event.usage
        if event.finish_reason is not None:
            self._finish = event.finish_reason
        block = self._blocks.just_text(event)
        if block is not None and self._item is not None:
            return self._more_text(block, self._item, event.text)
        start = self._begin()
        self._blocks.add(event)
        return start + self._steps()

    def _more_text(self, block: Block, item: _Item, text: str) -> bytes:
        if not text:
            return b""
        block.written.append(text)
        self._number += 1
        return b'%b"delta":%b,"logprobs":[]}\n\n' % (TEXT % (self._number - 1, item.place), orjson.dumps(text))

    def _begin(self) -> bytes:
        if self._envelope is not None:
            return b""
        response = self._opened().render("in_progress", [])
        return self._frame("response.created", response=response) + self._frame(
            "response.in_progress", response=response
        )

    def _opened(self) -> Envelope:
        if self._envelope is None:
            self._envelope = Envelope.of(self._request, self._meta, self._mint)
        return self._envelope

    def _frame(self, kind: str, **fields: Any) -> bytes:
        body = orjson.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    # ---- items ----

    def _steps(self, *, last: bool = False) -> bytes:
        frames = b""
        for step, block, text in self._blocks.steps(last=last):
            if step == "open":
                frames += self._open(block)
            elif self._item is None:
                continue
            elif step == "piece":
                frames += self._piece(block, self._item, text)
            else:
                frames += self._close(self._item)
        return frames

    def _empty_message(self) -> bytes:
        block = Block("text")
        block.index = 0
        frames = self._open(block)
        return frames + (self._close(self._item) if self._item is not None else b"")

    def _open(self, block: Block) -> bytes:
        item = self._item = _Item(block, self._summary, self._mint)
        return self._frame(
            "response.output_item.added", output_index=block.index, item=item.render("in_progress", empty=True)
        ) + self._part(item, "added", item.part("", []))

    def _part(self, item: _Item, verb: str, part: JSON | None) -> bytes:
        """The event that opens or closes the part of an item; a call has none."""
        if part is None:
            return b""
        kind = "response.reasoning_summary_part" if item.kind == "summary" else "response.content_part"
        return self._frame(f"{kind}.{verb}", **item.where, part=part)

    def _piece(self, block: Block, item: _Item, text: str) -> bytes:
        more: JSON = {}
        if item.kind == "text":
            entries = logprob_entries(block.logprobs)
            block.logprobs = []
            item.logprobs += entries
            more = {"logprobs": entries}
        return self._frame(f"{item.channel}.delta", **item.where, delta=text, **more)

    def _close(self, item: _Item) -> bytes:
        self._item = None
        text = item.block.text
        more: JSON = {"arguments": text, "name": item.call.name} if item.kind == "tool" else {"text": text}
        if item.kind == "text":
            more["logprobs"] = item.logprobs
        cut = self._finish in ("length", "content_filter") and self._blocks.alone
        rendered = item.render("incomplete" if cut else "completed")
        self._output.append(rendered)
        return (
            self._frame(f"{item.channel}.done", **item.where, **more)
            + self._part(item, "done", item.part(text, item.logprobs))
            + self._frame("response.output_item.done", output_index=item.block.index, item=rendered)
        )


class _Item:
    """The output item that is open: which it is, and where its events say that they belong."""

    __slots__ = ("block", "call", "channel", "id", "kind", "logprobs", "place", "where")

    def __init__(self, block: Block, summary: bool, mint: Minter) -> None:
        self.block = block
        self.id = mint.name(PREFIX[block.kind])
        self.kind = "summary" if summary and block.kind == "reasoning" else str(block.kind)
        self.channel = CHANNELS[self.kind]
        self.logprobs: list[JSON] = []
        self.where: JSON = {"item_id": self.id, "output_index": block.index}
        if self.kind == "summary":
            self.where["summary_index"] = 0
        elif self.kind != "tool":
            self.where["content_index"] = 0
        self.place = orjson.dumps(self.where)[1:-1] + b","
        call_id = block.id or (mint.name("call_") if block.kind == "tool" else "")
        self.call = ToolCall(id=call_id, name=block.name, arguments="")

    def part(self, text: str, logprobs: list[JSON]) -> JSON | None:
        """The part that holds the text; None for a call."""
        if self.kind == "text":
            return output_text(text, logprobs)
        if self.kind == "summary":
            return {"type": "summary_text", "text": text}
        return {"type": "reasoning_text", "text": text} if self.kind == "reasoning" else None

    def render(self, status: str, *, empty: bool = False) -> JSON:
        """The item; `empty` as it is when it is added."""
        text = "" if empty else self.block.text
        if self.kind == "text":
            return message_item(self.id, status, [] if empty else [output_text(text, self.logprobs)])
        if self.kind == "tool":
            call = ToolCall(id=self.call.id, name=self.call.name, arguments=text)
            return call_item(self.id, status, call)
        return reasoning_item(self.id, status, None if empty else text, self.kind == "summary")
