"""The contract of a store.

A store keeps entries by key and by canonical alias, forgets the least recently used beyond its size, and never
returns an entry that is expired,
damaged or purged. No method raises for a fault of the medium: it degrades to memory, warns once,
counts, and recovers by itself. All methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import attrs

from velollm.cache.entry import Entry
from velollm.cache.evidence import Evidence
from velollm.cache.selection import Selection

__all__ = ["Selection", "Store", "StoreStats"]


@attrs.frozen(kw_only=True)
class StoreStats:
    """Counters of a store since it was opened; `entries` and `bytes` are what it holds now."""

    kind: str
    entries: int
    bytes: int
    limit: int
    evictions: int = 0
    expired: int = 0
    oversized: int = 0
    damaged: int = 0
    failures: int = 0
    set_aside: int = 0
    dropped_writes: int = 0
    degraded: bool = False


class Store(Protocol):
    """See the module's docstring. `may_block` tells a caller on an event loop to use a thread for `get`;
    `persistent` that entries may be there from before, to be indexed."""

    may_block: bool
    persistent: bool

    @property
    def degraded(self) -> bool:
        """Whether the medium cannot be used now, so that answers are kept in memory alone. No I/O."""
        ...

    @property
    def failures(self) -> int:
        """How often the medium failed. No I/O."""
        ...

    on_forget: Callable[[bytes], None] | None

    def get(self, key: bytes) -> Entry | None: ...

    def find(self, alias: bytes) -> Entry | None:
        """The newest entry stored under a canonical alias."""
        ...

    def put(self, entry: Entry) -> int:
        """Keep an entry, visible at once to this process. Returns a ticket for `wait`; 0 if the entry was refused."""
        ...

    def wait(self, ticket: int, timeout: float | None = None) -> bool:
        """Block until the entry of this ticket is where a crash of this process cannot lose it. False if it will not
        be."""
        ...

    def delete(self, key: bytes) -> None: ...

    def purge(self, selection: Selection) -> int:
        """Drop entries, and what the evidence quotes of them; without any criterion, the evidence as well."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Every live entry, oldest first, to rebuild an index or to export."""
        ...

    def add_evidence(self, route: str, evidence: Evidence) -> None:
        """Add to what shadow mode knows of a route, without waiting for the medium."""
        ...

    def evidence(self) -> dict[str, Evidence]:
        """What is known of every route."""
        ...

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for all that was put so far."""
        ...

    def stats(self) -> StoreStats: ...

    def close(self) -> None: ...
