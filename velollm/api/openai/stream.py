"""The event stream of OpenAI's two generating endpoints: what they share.

Frames of the same wire go out as they came. The frame that finishes a choice is held until the next one (or the end)
comes: only then is known whether it is the last, which carries the `velollm` object, and after a failure it is not
sent at all, so that a broken answer never looks finished.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

from velollm.api.openai.errors import render_error
from velollm.api.openai.identity import Identity, Minter, render_usage
from velollm.errors import VeloError
from velollm.messages import ChatEvent, ChatRequest, ResponseMeta, Usage

__all__ = ["DONE", "EventStream"]

JSON: TypeAlias = dict[str, Any]

DONE = b"data: [DONE]\n\n"


class EventStream:
    """Base of the stream renderers; a subclass renders the deltas of its kind of chunk (`chunk`, `finish`)."""

    wire = ""
    kind = ""
    prefix = ""

    def __init__(self, request: ChatRequest, mint: Minter) -> None:
        self.request = request
        self.mint = mint
        self.identity: Identity | None = None
        self._meta: ResponseMeta | None = None
        self._keeps_id = False
        self._usage: Usage | None = None
        self._usage_sent = False
        self._held = b""
        self._head = b""
        self._tail = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"

    # ---- for subclasses ----

    def chunk(self, event: ChatEvent) -> bytes:
        """The frames for all of `event` but its finish reason."""
        raise NotImplementedError

    def finish(self, event: ChatEvent) -> bytes:
        """The frame that says why the choice ended."""
        raise NotImplementedError

    def note(self, event: ChatEvent) -> None:
        """Take notice of an event whose frame goes out as it came."""

    def head(self) -> bytes:
        """The beginning of every chunk, up to the choices."""
        if not self._head:
            prefix = "" if self._keeps_id else self.prefix
            self.identity = identity = Identity.of(self.request, self._meta, prefix, self.mint)
            fields = {**identity.head(self.kind), "system_fingerprint": identity.fingerprint}
            self._head = b"data: " + orjson.dumps(fields)[:-1] + b',"choices":['
        return self._head

    def frame(self, choice: JSON) -> bytes:
        """One chunk with one choice."""
        return b"%b%b]%b" % (self.head(), orjson.dumps(choice), self._tail)

    # ---- the protocol ----

    def event(self, event: ChatEvent) -> bytes:
        """The bytes for one event."""
        if event.meta is not None and self._meta is None:
            self._meta = event.meta
            # Frames that pass untouched carry the engine's own id, whatever it looks like.
            self._keeps_id = event.wire == self.wire and event.meta.id != ""
        if event.raw is not None and event.wire == self.wire:
            return self._pass(event, event.raw)
        if event.usage is not None:
            self._usage = event.usage
        sent = self.chunk(event)
        if event.finish_reason is None:
            return self._release(sent) if sent else b""
        released = self._release(sent)
        self._held = self.finish(event)
        return released

    def _pass(self, event: ChatEvent, raw: bytes) -> bytes:
        self.note(event)
        if self.request.include_usage and raw and b'"usage":' not in raw:  # in texts, its quotes would be escaped
            raw = raw.replace(b"}\n\n", self._tail)  # of each frame, when several came at once
        if event.finish_reason is None and event.usage is None:
            return self._release(raw) if self._held else raw
        if event.text or event.reasoning or event.tool_calls:
            return self._release(raw)
        if event.finish_reason is None:
            if not self.request.include_usage:
                self._usage = event.usage
                return b""
            self._usage_sent = True
        released = self._release(b"")
        self._held = raw
        return released

    def _release(self, frame: bytes) -> bytes:
        held, self._held = self._held, b""
        return held + frame

    def end(self) -> bytes:
        """The usage chunk where it was asked for, the `velollm` object in the last chunk, and `[DONE]`."""
        frames = b""
        if self.request.include_usage and self._usage is not None and not self._usage_sent:
            frames = self._release(b"")
            usage = orjson.dumps(render_usage(self._usage))
            self._held = b'%b],"usage":%b}\n\n' % (self.head(), usage)
        return frames + self._with_trailer(self._release(b"")) + DONE

    def _with_trailer(self, frame: bytes) -> bytes:
        trailer = self.request.context.trailer
        if not trailer:
            return frame
        if not frame:
            frame = self.head() + b"]" + self._tail
        brace = frame.rindex(b"}")
        return b'%b,"velollm":%b%b' % (frame[:brace], orjson.dumps(trailer), frame[brace:])

    def error(self, error: VeloError) -> bytes:
        """The error event; a finish that was held back is not sent any more."""
        self._held = b""
        return b"data: %b\n\n" % orjson.dumps(render_error(error, self.request.context.request_id))
