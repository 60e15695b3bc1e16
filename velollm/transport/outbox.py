"""What connections have to write, kept back until the event loop has done what is due, so that it leaves together.

Every write wakes the process that waits for it, which costs more than the writing where it sleeps. One after the other,
without other work in between, the first wakes it and the rest find it awake.
"""

from __future__ import annotations

import asyncio
import logging
from weakref import WeakKeyDictionary

__all__ = ["Outbox", "Outgoing"]

logger = logging.getLogger("velollm.transport")

MOST = 16  # connections: beyond, those that came first do not wait for the others
MOST_BYTES = 64 * 1024  # of one connection


class Outbox:
    """The connections of one event loop that have something to write."""

    def __init__(self) -> None:
        self._waiting: list[Outgoing] = []

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Outbox:
        """The outbox of this loop."""
        found = OUTBOXES.get(loop)
        if found is None:
            found = OUTBOXES[loop] = cls()  # it must not hold the loop
        return found

    def add(self, outgoing: Outgoing, loop: asyncio.AbstractEventLoop) -> None:
        """Have `outgoing` flushed in a moment."""
        self._waiting.append(outgoing)
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        elif len(self._waiting) >= MOST:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            try:
                while waiting:
                    waiting.pop(0).flush()
            except Exception:  # of one connection: the others are to get what is theirs
                logger.exception("a connection could not be written to")


OUTBOXES: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()


class Outgoing:
    """What one connection has to write. Before anything else is done with `transport`, `flush` it."""

    __slots__ = ("_loop", "_outbox", "_pieces", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._outbox = Outbox.of(loop)
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write in a moment, or at once where much has come together: only the transport says when it is too much."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > MOST_BYTES:
            self.flush()
        elif len(self._pieces) == 1:
            self._outbox.add(self, self._loop)

    def flush(self) -> None:
        """Write now."""
        pieces = self._pieces
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces, self._size = [], 0
            if not self._transport.is_closing():
                self._transport.write(data)

    def drop(self) -> None:
        """Nobody is there any more."""
        self._pieces, self._size = [], 0
