"""Where a text can be cut so that its beginning has the same tokens alone as it had in the whole. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["safe_boundary"]


def safe_boundary(pieces: Sequence[str]) -> int:
    """How many of `pieces` to keep: up to the last one that begins a word, which is left out; 0 when there is none.

    Tokenizers split at the beginning of words first: what stands before is cut up alike, whatever follows.
    """
    for number in range(len(pieces) - 1, 0, -1):
        before, piece = pieces[number - 1], pieces[number]
        if piece[:1] == " " and piece.strip() and before and not before[-1].isspace():
            return number
    return 0
