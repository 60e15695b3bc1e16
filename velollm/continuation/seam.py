"""Stop strings that begin before an interruption and end after it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Seam"]


class Seam:
    """Watches the first characters after an interruption; whoever goes on looks for stop strings in its own text only.

    `before` is what was said up to the seam.
    """

    __slots__ = ("_begin", "_held", "_seen", "_stops", "_window", "open")

    def __init__(self, before: str, stops: Sequence[str]) -> None:
        longest = max((len(stop) for stop in stops), default=0)
        self._begin = before[-(longest - 1) :] if longest > 1 else ""
        self._stops = stops
        self._window = self._begin
        self._held = ""
        self._seen = 0
        self.open = bool(self._begin)  # while a stop string may still lie across

    def feed(self, text: str) -> tuple[str, str | None]:
        """New text: what of it may be sent now, and the stop string that ends the answer, if one does."""
        if not self.open:
            return text, None
        self._window += text
        self._held += text
        begin = len(self._begin)
        waiting = False
        for start in range(begin):
            rest = self._window[start:]
            for stop in self._stops:
                if len(stop) <= begin - start:
                    continue  # it would lie before the seam
                if rest.startswith(stop):
                    self.open = False
                    return "", stop
                waiting = waiting or stop.startswith(rest)
        if waiting:
            return "", None
        self.open = False
        return self.end(), None

    def end(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held
