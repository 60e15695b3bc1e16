"""One client's stream over several runs of an engine: what was said, and whether and how it goes on. No I/O.

engine:   [role "One" "Two" ✂]        ["Two'" "Three" finish usage]
client:    role "One" "Two"                    "Three" finish usage        one id, one role, one finish, one usage
"""

from __future__ import annotations

import attrs

from velollm.continuation.obstacles import obstacle
from velollm.continuation.said import Said
from velollm.continuation.seam import Seam
from velollm.messages import ChatEvent, ChatRequest

__all__ = ["Continuation"]


class Continuation:
    """Follows the answer to `request`. Every event of every run goes through `observe` before the client sees it.

    With `said`, it follows the answer from there on: another one has followed it so far.
    """

    __slots__ = ("_dynamic", "_meta_sent", "_pieces", "_reasoning", "_seam", "cuts", "finished", "request")

    def __init__(self, request: ChatRequest, said: Said | None = None) -> None:
        self.request = request
        self.finished = False  # the finish reason is out: there is nothing to continue
        self.cuts = 0  # how often it was interrupted
        self._pieces: list[str] = []
        self._reasoning: list[str] = []
        self._dynamic: str | None = None
        self._meta_sent = False
        self._seam: Seam | None = None
        if said is not None:
            self._pieces += said.pieces
            self._reasoning.append(said.reasoning)
            self.cut()

    @property
    def obstacle(self) -> str | None:
        """Why this answer cannot be continued, as far as it has come; None where nothing stands against it.

        A request that has said nothing yet can be sent again as it is: ask `said` first.
        """
        if self.finished:
            return "it has its finish reason"
        return self._dynamic or obstacle(self.request)

    @property
    def said(self) -> Said:
        """What the client has seen."""
        return Said(pieces=tuple(self._pieces), reasoning="".join(self._reasoning))

    def cut(self) -> None:
        """The stream was interrupted: the next event comes from another run."""
        self.cuts += 1
        self._seam = Seam("".join(self._pieces[-256:]), self.request.stop)

    def observe(self, event: ChatEvent) -> ChatEvent | None:
        """The event as the client is to see it; None when there is nothing in it for it."""
        if self.cuts:
            after = self._after_cut(event)
            if after is None:
                return None
            event = after
        if event.text:
            self._pieces.append(event.text)
        if event.reasoning:
            self._reasoning.append(event.reasoning)
        if event.meta is not None:
            self._meta_sent = True
        if event.tool_calls or event.logprobs or event.index:
            self._dynamic = "it has called tools" if event.tool_calls else "it is more than one text"
        if event.finish_reason is not None:
            self.finished = True
        return event

    def _after_cut(self, event: ChatEvent) -> ChatEvent | None:
        if self.finished and event.usage is None:
            return None  # a stop string across the seam has ended it
        text = "" if self.finished else event.text
        finish = None if self.finished else event.finish_reason
        stop = None
        seam = self._seam
        if seam is not None and not self.finished:
            text, stop = seam.feed(event.text)
            if stop is not None:
                finish = "stop"
            elif finish is not None:
                text += seam.end()
            if not seam.open:
                self._seam = None
        meta = None if self._meta_sent else event.meta
        if not (text or event.reasoning or event.tool_calls or finish or event.usage or meta):
            return None
        return attrs.evolve(
            event, text=text, finish_reason=finish, meta=meta, wire=None, raw=None,
            stop_sequence=stop if stop is not None else event.stop_sequence,
        )  # fmt: skip
