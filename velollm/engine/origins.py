"""Which cells of which slots are the same: who computed them. What was copied apart can be shared again by it.

Equal names at the same position mean equal contents. A name stands for one slot from its first cell to its last.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["Origins"]

Names = npt.NDArray[np.int64]

NOBODY = -1


class Origins:
    """For each slot the names of its cells, by position."""

    def __init__(self) -> None:
        self._names: dict[int, Names] = {}
        self._own: dict[int, int] = {}
        self._next = count()

    def computed(self, slot: int, start: int, end: int) -> None:
        """The slot has computed the cells from `start` up to `end`, or got them from elsewhere."""
        if slot not in self._own:
            self._own[slot] = next(self._next)
        self._row(slot, end)[start:end] = self._own[slot]

    def copied(self, source: int, target: int, start: int, end: int) -> None:
        """`target` has the cells of `source` from `start` up to `end` as well."""
        given = self._names.get(source, NONE)[start:end]
        self._row(target, end)[start : start + len(given)] = given

    def dropped(self, slot: int, start: int = 0, end: int = -1) -> None:
        """The slot has no cells from `start` up to `end` (-1: to the last); what it computes there is new."""
        self._own.pop(slot, None)
        if (start, end) == (0, -1):
            self._names.pop(slot, None)
        elif slot in self._names:
            self._names[slot][start : end if end >= 0 else None] = NOBODY

    def slots(self) -> list[int]:
        """Those that have cells, or had some."""
        return list(self._names)

    def positions(self, slot: int) -> npt.NDArray[np.intp]:
        """Where the slot has cells."""
        return np.flatnonzero(self._names.get(slot, NONE) != NOBODY)

    def shares(self, slots: list[int]) -> Iterator[tuple[int, npt.NDArray[np.bool_], list[tuple[int, int, int]]]]:
        """How to put `slots` into one memory, one after the other, without having anything twice.

        For each: the slot, by position whether its own contents must be written, and (owner, start, end) of what those
        before it have.
        """
        longest = max((len(self._names.get(slot, NONE)) for slot in slots), default=0)
        homes: dict[int, Names] = {}
        for slot in slots:
            names = self._names.get(slot, NONE)
            owners = np.full(len(names), NOBODY)
            for name in np.unique(names[names != NOBODY]).tolist():
                home = homes.setdefault(name, np.full(longest, NOBODY))[: len(names)]
                same = names == name
                owners[same] = home[same]
                home[same & (home == NOBODY)] = slot
            yield slot, (names != NOBODY) & (owners == NOBODY), _runs(owners)

    def _row(self, slot: int, size: int) -> Names:
        row = self._names.get(slot, NONE)
        if len(row) < size:
            row = np.concatenate((row, np.full(max(size, 2 * len(row)) - len(row), NOBODY)))
            self._names[slot] = row
        return row


NONE: Names = np.empty(0, np.int64)


def _runs(owners: Names) -> list[tuple[int, int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]
    runs = [(int(owners[start]), start, end) for start, end in pairwise(edges) if start < end]
    return [run for run in runs if run[0] != NOBODY]
