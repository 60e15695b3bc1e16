"""Cached blocks whose contents lie on the host: found like the others, and brought back before they are used.

Whatever lies in a runner's memory costs every step, even when nobody runs on it: attention goes over all of it and
masks it out. So what is only cached is laid aside in parcels, and the oldest is forgotten when there is no more room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from velollm.engine.events import Discard, Event

__all__ = ["Aside", "Parcel"]


class Parcel(NamedTuple):
    """Blocks that came out of one slot: their depths, ascending, and their hashes. `key` is below 0."""

    key: int
    depths: tuple[int, ...]
    hashes: tuple[bytes, ...]


class Aside:
    """Room for `room` blocks. Parcels that are forgotten are discarded by `events`."""

    def __init__(self, room: int, events: list[Event]) -> None:
        self.room = room
        self.count = 0
        self._events = events
        self._parcels: dict[int, Parcel] = {}  # the oldest first
        self._found: dict[bytes, Parcel] = {}
        self._last = 0

    def add(self, depths: Sequence[int], hashes: Sequence[bytes]) -> int | None:
        """The key under which their contents are to be exported; None when they are more than there is room for."""
        if len(hashes) > self.room:
            return None
        while self.count + len(hashes) > self.room:
            oldest = next(iter(self._parcels.values()))
            self.take(oldest)
            self._events.append(Discard(oldest.key))
        self._last -= 1
        parcel = Parcel(self._last, tuple(depths), tuple(hashes))
        self._parcels[parcel.key] = parcel
        self._found.update(dict.fromkeys(parcel.hashes, parcel))
        self.count += len(hashes)
        return parcel.key

    def find(self, key: bytes) -> Parcel | None:
        """The parcel with the block of this hash."""
        return self._found.get(key)

    def take(self, parcel: Parcel) -> None:
        """The parcel is no longer there."""
        del self._parcels[parcel.key]
        self.count -= len(parcel.hashes)
        for key in parcel.hashes:
            if self._found.get(key) is parcel:
                del self._found[key]

    def check_integrity(self) -> None:
        """The counts agree, and nothing is found that is not there."""
        assert self.count == sum(len(parcel.hashes) for parcel in self._parcels.values()) <= self.room
        assert all(self._parcels[parcel.key] is parcel for parcel in self._found.values())
