"""Tickets of a write-behind store: taken at `put`, settled by the writer, waited for by whoever needs durability."""

from __future__ import annotations

import threading

__all__ = ["Tickets"]

_REMEMBERED = 10_000


class Tickets:
    """Numbers from 1. The writer settles them nearly in order; failures are remembered for a bounded while."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0
        self._open: set[int] = set()
        self._failed: dict[int, None] = {}

    def take(self) -> int:
        """A new ticket."""
        with self._changed:
            self._taken += 1
            self._open.add(self._taken)
            return self._taken

    def settle(self, tickets: list[int], *, done: bool) -> None:
        """Mark tickets as written, or as given up."""
        with self._changed:
            self._open.difference_update(tickets)
            if not done:
                self._failed.update(dict.fromkeys(tickets))
                while len(self._failed) > _REMEMBERED:
                    del self._failed[next(iter(self._failed))]
            self._changed.notify_all()

    def wait(self, ticket: int, timeout: float | None = None) -> bool:
        """Whether a ticket was written, once that is known; False on timeout."""
        with self._changed:
            self._changed.wait_for(lambda: ticket not in self._open, timeout)
            return 0 < ticket <= self._taken and ticket not in self._open and ticket not in self._failed

    def wait_all(self, timeout: float | None = None) -> bool:
        """Wait for every ticket taken so far. False on timeout or if one of them was given up."""
        with self._changed:
            wanted = set(self._open)
            settled = self._changed.wait_for(lambda: not wanted & self._open, timeout)
            return settled and not any(ticket in self._failed for ticket in wanted)
