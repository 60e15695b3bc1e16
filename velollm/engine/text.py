"""From the bytes of tokens to text that can be sent: no character in two pieces, nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["TextStream"]


class TextStream:
    """Takes the bytes of one token at a time. What may yet become a stop string, or a character, is held back."""

    __slots__ = ("_decoder", "_held", "_longest", "_stops", "stopped")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped: str | None = None

    def feed(self, data: bytes) -> str:
        """The text that is certain now. Once `stopped` is set, to the stop string that came, there is no more."""
        text = self._decoder.decode(data)
        if not self._stops or self.stopped is not None:
            return "" if self.stopped is not None else text
        self._held += text
        found = [(at, -len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, _, self.stopped = min(found)
            text, self._held = self._held[:at], ""
            return text
        keep = self._partial()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def finish(self) -> str:
        """What was held back for a stop string that did not come; half a character is dropped."""
        text, self._held = self._held, ""
        return text

    def _partial(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
