"""A vocabulary for engines whose answers must not end by themselves."""

from __future__ import annotations

__all__ = ["NoEnd"]


class NoEnd:
    """Tokens that never end an answer and stand for one byte each."""

    def piece(self, token: int) -> bytes:
        return b"x"

    def is_end(self, token: int) -> bool:
        return False
