"""The token ids of a text that was generated piece by piece. No I/O.

A text can be cut into tokens in many ways, and a model goes on exactly only from the tokens that it made itself:

    pieces as they came     "Hel" "lo" " world"
    the whole, tokenised    "Hello"    " world"      -> "Hel", "lo" are to be tokenised one by one

Engines send a token as soon as it ends with a whole character. Where a piece ends, a token ends, and inside a piece
tokens end in the middle of characters only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

__all__ = ["Clear", "Token", "Unclear", "align", "ids_of_piece"]

Token: TypeAlias = tuple[int, bytes]  # the id and the bytes that it stands for


@attrs.frozen
class Clear:
    """One piece, and the ids of its tokens."""

    ids: list[int]


@attrs.frozen
class Unclear:
    """Pieces whose tokens have to be found one by one."""

    pieces: Sequence[str]


def align(pieces: Sequence[str], tokens: Sequence[Token]) -> list[Clear | Unclear]:
    """Bring the pieces and the tokens of the whole text together, in order; all is unclear when the texts differ."""
    encoded = [piece.encode("utf-8", "surrogatepass") for piece in pieces]
    if b"".join(encoded) != b"".join(raw for _, raw in tokens):
        return [Unclear(pieces)]
    parts: list[Clear | Unclear] = []
    first = token = 0
    while first < len(pieces):
        last, taken = _common(encoded, tokens, first, token)
        ids = ids_of_piece(pieces[first], tokens[token : token + taken]) if last - first == 1 else None
        parts.append(Unclear(pieces[first:last]) if ids is None else Clear(ids))
        first, token = last, token + taken
    return parts


def ids_of_piece(piece: str, tokens: Sequence[Token]) -> list[int] | None:
    """The ids of a piece's tokens, when these are the only ones that it can have come from."""
    so_far = b""
    for _, raw in tokens[:-1]:
        so_far += raw
        if _is_whole(so_far):
            return None  # it would have been a piece of its own
    if so_far + (tokens[-1][1] if tokens else b"") != piece.encode("utf-8", "surrogatepass"):
        return None
    return [number for number, _ in tokens]


def _common(encoded: Sequence[bytes], tokens: Sequence[Token], first: int, token: int) -> tuple[int, int]:
    """From a common boundary to the next one: the piece that begins there, and how many tokens lie between."""
    last, taken = first + 1, 0
    piece_end, token_end = len(encoded[first]), 0
    while token_end != piece_end:
        if token_end < piece_end:
            token_end += len(tokens[token + taken][1])
            taken += 1
        else:
            piece_end += len(encoded[last])
            last += 1
    return last, taken


def _is_whole(raw: bytes) -> bool:
    """Whether bytes end with a whole character."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
