"""An answer that is made again from the beginning, checked against what was said of it, and let through from there.

An answer that agrees with all that was said is its right continuation, sampled or not: of all answers that begin in
this way, it is one that the model gives as often as it would have gone on so.
"""

from __future__ import annotations

import attrs

from velollm.continuation.said import Said
from velollm.errors import BackendProtocolError
from velollm.messages import ChatEvent

__all__ = ["Diverged", "Retrace"]


class Diverged(BackendProtocolError):
    """The answer came out otherwise than it had begun: it cannot be continued."""


class Retrace:
    """Swallows what was said; `done` once all of it was said again."""

    __slots__ = ("_reasoning", "_text", "done")

    def __init__(self, said: Said) -> None:
        self._text = said.text
        self._reasoning = said.reasoning
        self.done = not said

    def feed(self, event: ChatEvent) -> ChatEvent | None:
        """The event without what was said before; None when nothing is left of it. Raises `Diverged`."""
        if self.done:
            return event
        reasoning, self._reasoning = _beyond(event.reasoning, self._reasoning)
        if event.text and self._reasoning:
            raise Diverged("the repeated answer reasons less than the first")
        text, self._text = _beyond(event.text, self._text)
        if reasoning and self._text:
            raise Diverged("the repeated answer reasons more than the first")
        self.done = not (self._text or self._reasoning)
        if not self.done and (event.finish_reason is not None or event.tool_calls):
            raise Diverged("the repeated answer is shorter than the first")
        if self.done or event.usage is not None:
            return attrs.evolve(event, text=text, reasoning=reasoning, wire=None, raw=None)
        return None


def _beyond(new: str, expected: str) -> tuple[str, str]:
    """What of `new` lies beyond `expected`, and what is still expected."""
    if len(new) <= len(expected):
        if not expected.startswith(new):
            raise Diverged("the repeated answer is not the first one")
        return "", expected[len(new) :]
    if not new.startswith(expected):
        raise Diverged("the repeated answer is not the first one")
    return new[len(expected) :], ""
