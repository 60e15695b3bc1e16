"""One client's stream over several runs of an engine: what was said, and whether and how it goes on. No I/O.

engine:   [role "One" "Two" ✂]        ["Two'" "Three" finish usage]
client:    role "One" "Two"                    "Three" finish usage        one id, one role, one finish, one usage

What is interrupted behind its finish reason is gone on with for the sake of its usage: no word may come any more.
"""

from __future__ import annotations

import attrs

from velollm.continuation.obstacles import obstacle
from velollm.continuation.retrace import Diverged
from velollm.continuation.said import Said
from velollm.continuation.seam import Seam
from velollm.messages import ChatEvent, ChatRequest, FinishReason

__all__ = ["Continuation"]


class Continuation:
    """Follows the answer to `request`. Every event of every run goes through `observe` before the client sees it.

    With `said`, it follows the answer from there on: another one has followed it so far.
    """

    __slots__ = (
        "_dynamic", "_meta_sent", "_pieces", "_reasoning", "_seam", "_stopped", "_usage_sent", "cuts", "finish",
        "request",
    )  # fmt: skip

    def __init__(self, request: ChatRequest, said: Said | None = None) -> None:
        self.request = request
        self.finish: FinishReason | None = None  # what the client was told
        self.cuts = 0  # how often it was interrupted
        self._pieces: list[str] = []
        self._reasoning: list[str] = []
        self._dynamic: str | None = None
        self._meta_sent = False
        self._usage_sent = False
        self._stopped = False  # by a stop string across the last cut: the engine does not know
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
        return self._dynamic or obstacle(self.request)

    @property
    def may_be_cut(self) -> bool:
        """Whether a backend that goes on exactly could do so from here, so that it may be interrupted on purpose."""
        return self.finish is None and self._dynamic is None and not self._reasoning

    @property
    def said(self) -> Said:
        """What the client has seen."""
        return Said(pieces=tuple(self._pieces), reasoning="".join(self._reasoning))

    def cut(self) -> None:
        """The stream was interrupted: the next event comes from another run."""
        self.cuts += 1
        self._stopped = False
        self._seam = Seam("".join(self._pieces[-256:]), self.request.stop)

    def observe(self, event: ChatEvent) -> ChatEvent | None:
        """The event as the client is to see it; None when there is nothing in it for it."""
        if self.cuts:
            after = self._after_cut(event)
            if after is None:
                return None
            event = after
        if event.text:
            self._pieces += event.parts()
        if event.reasoning:
            self._reasoning.append(event.reasoning)
        if event.meta is not None:
            self._meta_sent = True
        if event.tool_calls or event.logprobs or event.index:
            self._dynamic = "it has called tools" if event.tool_calls else "it is more than one text"
        if event.finish_reason is not None:
            self.finish = event.finish_reason
        self._usage_sent = self._usage_sent or event.usage is not None
        return event

    def _after_cut(self, event: ChatEvent) -> ChatEvent | None:
        if self.finish is not None:
            return self._behind_finish(event)
        text, finish = event.text, event.finish_reason
        stop = None
        seam = self._seam
        if seam is not None:
            text, stop = seam.feed(event.text)
            if stop is not None:
                finish, self._stopped = "stop", True
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

    def _behind_finish(self, event: ChatEvent) -> ChatEvent | None:
        another = event.text or event.reasoning or event.tool_calls or event.finish_reason not in (None, self.finish)
        if another and not self._stopped:
            raise Diverged("the repeated answer ends otherwise than the first")
        if event.usage is None or self._usage_sent:
            return None
        return ChatEvent(usage=event.usage)
