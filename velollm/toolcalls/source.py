"""The text being read, with the tools that may be called and a bound on wasted work."""

from __future__ import annotations

import re

from velollm.toolcalls.tools import ToolSet

__all__ = ["Source"]


class Source:
    """`fuel` pays for attempts that fail: each costs what it looked at, so that reading stays linear in the text."""

    __slots__ = ("_found", "_skipped", "cut", "fuel", "limit", "text", "tools")

    def __init__(self, text: str, tools: ToolSet, *, cut: bool = False) -> None:
        self.text = text
        self.limit = len(text)
        self.tools = tools
        self.cut = cut
        self.fuel = 6 * len(text) + 4096
        self._found: dict[re.Pattern[str], tuple[int, int]] = {}
        self._skipped = (-1, -1)

    def burn(self, amount: int) -> None:
        self.fuel -= amount + 16

    def next(self, pattern: re.Pattern[str], pos: int) -> int:
        """Where `pattern` matches next, from `pos` on; the end of the text where it does not. Looked up only once."""
        begin, found = self._found.get(pattern, (0, -1))
        if not begin <= pos <= found:
            match = pattern.search(self.text, pos, self.limit)
            found = match.start() if match else self.limit
            self._found[pattern] = (pos, found)
        return found

    def skip(self, pattern: re.Pattern[str], pos: int) -> int:
        """Behind a run of what `pattern` matches one by one; from within the last such run, its end at once."""
        begin, end = self._skipped
        if not begin <= pos < end:
            match = pattern.match(self.text, pos, self.limit)
            end = match.end() if match else pos
            self._skipped = (pos, end)
        return end

    @property
    def spent(self) -> bool:
        return self.fuel <= 0
