"""The state of one sequence as llama.cpp writes it, taken apart: cells can be left out, and states put together.

    magic, sequence id, number of streams, then for each stream its number of cells; where there are any:
    for each cell      position, 1, sequence id
    once               whether values are transposed, number of layers, two sizes of rotations
    for each layer     type, size of a row, the rows of all cells: first keys of all layers, then values

Source: `llama_kv_cache::state_write` of b11549. What is not laid out like this is refused, never guessed at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["EMPTY", "KvState"]

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int32]

MAGIC = 0xAF143CD8
HEAD = struct.Struct("<IiI")
COUNT = struct.Struct("<I")
CONSTANTS = struct.Struct("<IIII")
ROW = struct.Struct("<iQ")
CELL = 12


class _Piece(NamedTuple):
    """Cells with one row each in each of `rows`; these are parts of buffers of `base` cells."""

    positions: Positions
    rows: tuple[Bytes, ...]
    base: int

    def where(self, wanted: npt.NDArray[np.bool_]) -> _Piece | None:
        at = np.flatnonzero(wanted)
        count = len(at)
        if count in (0, len(wanted)):
            return self if count else None
        if 2 * count >= self.base and at[-1] - at[0] + 1 == count:
            part = slice(at[0], at[-1] + 1)
            return _Piece(self.positions[part], tuple(rows[part] for rows in self.rows), self.base)
        return _Piece(self.positions[at], tuple(rows[at] for rows in self.rows), count)  # lets go of the rest


class KvState:
    """What some positions of a sequence have in KV memory. It does not change; states may share their bytes."""

    __slots__ = ("_constants", "_pieces", "_rows")

    def __init__(self, pieces: tuple[_Piece, ...], constants: bytes, rows: tuple[bytes, ...]) -> None:
        self._pieces = pieces
        self._constants = constants
        self._rows = rows

    @classmethod
    def parse(cls, data: Bytes) -> KvState:
        """The state that `llama_state_seq_get_data` wrote. Raises `ValueError` when it is laid out in another way."""
        try:
            magic, _, streams = HEAD.unpack_from(data)
            at = HEAD.size
            for left in range(streams - 1, -1, -1):
                (count,) = COUNT.unpack_from(data, at)
                at += COUNT.size
                if count:
                    return cls._parse_cells(data, at, len(data) - left * COUNT.size, count)
        except struct.error as error:
            raise ValueError(f"the state of a sequence ends too soon: {error}") from error
        if magic != MAGIC or at != len(data):
            raise ValueError("this is no state of a sequence")
        return EMPTY

    @classmethod
    def _parse_cells(cls, data: Bytes, at: int, end: int, count: int) -> KvState:
        if CELL * count + CONSTANTS.size > end - at:
            raise ValueError("the state of a sequence ends too soon")
        cells = data[at : at + CELL * count].view(np.int32).reshape(count, 3)
        at += CELL * count
        constants = bytes(data[at : at + CONSTANTS.size])
        transposed, layers, _, _ = CONSTANTS.unpack(constants)
        at += CONSTANTS.size
        heads, rows = [], []
        while at < end:
            _, width = ROW.unpack_from(data, at)
            heads.append(bytes(data[at : at + ROW.size]))
            at += ROW.size
            if not 0 < width <= (end - at) // count:
                break
            rows.append(data[at : at + width * count].reshape(count, width))
            at += width * count
        if transposed or at != end or not layers <= len(rows) <= 2 * layers or (cells[:, 1] != 1).any():
            raise ValueError("the state of a sequence is laid out in another way")
        return cls((_Piece(cells[:, 0].copy(), tuple(rows), count),), constants, tuple(heads))

    @property
    def positions(self) -> Positions:
        """The positions of its cells."""
        return np.concatenate([piece.positions for piece in self._pieces]) if self._pieces else np.empty(0, np.int32)

    def __len__(self) -> int:
        return sum(len(piece.positions) for piece in self._pieces)

    def pack(self, sequence: int, streams: int) -> Bytes:
        """What `llama_state_seq_set_data` reads, in a context with so many streams."""
        count = len(self)
        widths = [ROW.unpack(row)[1] for row in self._rows]
        size = HEAD.size + COUNT.size * streams
        if count:
            size += CELL * count + CONSTANTS.size + sum(ROW.size + count * width for width in widths)
        data = np.zeros(size, np.uint8)
        HEAD.pack_into(data, 0, MAGIC, sequence, streams)
        COUNT.pack_into(data, HEAD.size, count)
        if not count:
            return data
        at = HEAD.size + COUNT.size
        cells = data[at : at + CELL * count].view(np.int32).reshape(count, 3)
        cells[:] = (0, 1, sequence)
        cells[:, 0] = self.positions
        at += CELL * count
        at = _put(data, at, self._constants)
        for number, row in enumerate(self._rows):
            at = _put(data, at, row)
            for piece in self._pieces:
                rows = piece.rows[number]
                data[at : at + rows.size].reshape(rows.shape)[:] = rows
                at += rows.size
        return data

    def where(self, wanted: Callable[[Positions], Any]) -> KvState:
        """The cells for whose positions `wanted` is true."""
        pieces = [piece.where(wanted(piece.positions)) for piece in self._pieces]
        return KvState(tuple(piece for piece in pieces if piece is not None), self._constants, self._rows)

    def at(self, wanted: npt.NDArray[np.bool_]) -> KvState:
        """The cells at the positions where `wanted` is true."""
        return self.where(lambda positions: wanted[positions])

    def between(self, start: int, end: int) -> KvState:
        """The cells from position `start` up to `end`."""
        return self.where(lambda positions: (positions >= start) & (positions < end))

    def without(self, start: int, end: int) -> KvState:
        """All cells but those from position `start` up to `end` (-1: to the last)."""
        return self.where(lambda positions: (positions < start) | ((end >= 0) & (positions >= end)))

    def __add__(self, other: KvState) -> KvState:
        """The cells of both."""
        one = self if self._pieces else other
        return KvState(self._pieces + other._pieces, one._constants, one._rows)


def _put(data: Bytes, at: int, part: bytes) -> int:
    data[at : at + len(part)] = np.frombuffer(part, np.uint8)
    return at + len(part)


EMPTY = KvState((), b"", ())
