"""What an interrupted answer has said."""

from __future__ import annotations

import attrs

__all__ = ["Said"]


@attrs.frozen(kw_only=True)
class Said:
    """The text in the pieces in which it came (most engines send one token a piece), and the reasoning before it."""

    pieces: tuple[str, ...] = ()
    reasoning: str = ""

    @property
    def text(self) -> str:
        """The text in one."""
        return "".join(self.pieces)

    def __bool__(self) -> bool:
        return bool(self.pieces or self.reasoning)
