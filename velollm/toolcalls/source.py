"""The text being read, with the tools that may be called and a bound on wasted work."""

from __future__ import annotations

from velollm.toolcalls.tools import ToolSet

__all__ = ["Source"]


class Source:
    """`fuel` pays for attempts that fail: each costs what it looked at, so that reading stays linear in the text."""

    __slots__ = ("cut", "fuel", "limit", "text", "tools")

    def __init__(self, text: str, tools: ToolSet, *, cut: bool = False) -> None:
        self.text = text
        self.limit = len(text)
        self.tools = tools
        self.cut = cut
        self.fuel = 6 * len(text) + 4096

    def burn(self, amount: int) -> None:
        self.fuel -= amount + 16

    @property
    def spent(self) -> bool:
        return self.fuel <= 0
