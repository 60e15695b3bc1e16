"""Answers in memory: least recently used first out, bounded by bytes, expired entries never served.

    answer ──lay_by──▶ unread ──(a request comes that might be the same)──▶ entry without alias ──▶ entry
    answer ──put──────────────────────────────────────────────────────────▶ entry

Most questions are asked once: what an answer is found by is worked out when somebody may be looking for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush

import attrs

from velollm.cache.entry import Entry, Form
from velollm.cache.evidence import Evidence, Ledger
from velollm.cache.selection import Selection
from velollm.cache.stores.base import StoreStats
from velollm.cache.unread import Unread

__all__ = ["MemoryStore"]

_MOST_ALIKE = 16  # of one sketch, unread or without alias
_SPARE = 256  # ends of entries that are gone, beside as many as there are entries


class MemoryStore:
    """The default store. `size` is in bytes and covers answers, prompts and their places in the semantic index.
    `on_read` makes an entry of what was laid by, and puts it."""

    may_block = False
    persistent = False
    degraded = False
    failures = 0

    def __init__(self, size: int, clock: Callable[[], float] = time.time) -> None:
        self.on_forget: Callable[[bytes], None] | None = None
        self.on_read: Callable[[Unread], object] | None = None
        self._size = size
        self._clock = clock
        self._lock = threading.RLock()
        self._held: OrderedDict[bytes | Unread, Entry | Unread] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._aliases: dict[bytes, bytes] = {}
        self._sketches: dict[int | None, int] = {}  # how many entries have each
        self._unnamed: dict[int, dict[bytes, None]] = {}  # keys of those without an alias, by sketch
        self._unread: dict[int, list[Unread]] = {}  # by sketch
        self._ends: list[tuple[float, bytes]] = []  # a heap: when entries expire, also of some that are gone
        self._ledger = Ledger()
        self._puts = self._evictions = self._expired = self._oversized = 0

    def get(self, key: bytes) -> Entry | None:
        with self._lock:
            entry = self._held.get(key)
            if not isinstance(entry, Entry):
                return None
            if entry.expires > self._clock():
                self._held.move_to_end(key)
                return entry
            self._expired += 1
            self._remove(key)
            return None

    def find(self, alias: bytes) -> Entry | None:
        with self._lock:
            key = self._aliases.get(alias)
            return None if key is None else self.get(key)

    def lay_by(self, unread: Unread) -> int:
        """Keep an answer unread; a ticket as from `put`. 0 where it is too large, or where many are like it already:
        who asks is not to wait for many."""
        with self._lock:
            if unread.size > self._size:
                return 0
            alike = self._unread.setdefault(unread.sketch, [])
            if len(alike) >= _MOST_ALIKE:
                return 0
            alike.append(unread)
            self._hold(unread, unread)
            self._puts += 1
            self._sweep()
            return self._puts

    def alike(self, sketch: int) -> Sequence[Entry] | None:
        """The entries without an alias whose prompts have this sketch; None where no entry at all has it."""
        with self._lock:
            unread = self._unread.pop(sketch, ())
            for one in unread:
                del self._held[one]
                self._bytes -= one.size
            for one in unread:
                if self.on_read is not None:
                    self.on_read(one)
            if sketch not in self._sketches:
                return () if None in self._sketches else None
            keys = self._unnamed.get(sketch, ())
            return [entry for key in list(keys) if (entry := self.get(key)) is not None]

    def may_wait(self, sketch: int) -> bool:
        """Whether one more entry with this sketch may come without its alias: who asks is not to wait for many."""
        return len(self._unnamed.get(sketch, ())) < _MOST_ALIKE

    def name(self, entry: Entry, alias: bytes, alias_check: bytes) -> None:
        """Give an entry the alias that it came without, if it is still there."""
        with self._lock:
            if entry.form is not None and entry.is_unnamed and self._held.get(entry.key) is entry:
                self._forget_unnamed(entry.form.sketch, entry.key)
                form = Form(sketch=entry.form.sketch)
                self._bytes -= entry.size
                self._hold(entry.key, attrs.evolve(entry, alias=alias, alias_check=alias_check, form=form))
                self._aliases[alias] = entry.key

    def put(self, entry: Entry) -> int:
        with self._lock:
            if entry.size > self._size:
                self._oversized += 1
                return 0
            self._remove(entry.key)
            if entry.alias:
                self._aliases[entry.alias] = entry.key
            sketch = None if entry.form is None else entry.form.sketch
            self._sketches[sketch] = self._sketches.get(sketch, 0) + 1
            if sketch is not None and entry.is_unnamed:
                self._unnamed.setdefault(sketch, {})[entry.key] = None
            self._hold(entry.key, entry)
            heappush(self._ends, (entry.expires, entry.key))
            self._puts += 1
            self._sweep()
            return self._puts

    def wait(self, ticket: int, timeout: float | None = None) -> bool:
        return ticket > 0

    def delete(self, key: bytes) -> None:
        with self._lock:
            self._remove(key)

    def purge(self, selection: Selection) -> int:
        self._ledger.forget(selection)
        with self._lock:
            doomed = [key for key, held in self._held.items() if selection.covers(held)]
            for key in doomed:
                self._remove(key)
            return len(doomed)

    def entries(self) -> Iterator[Entry]:
        with self._lock:
            for sketch in list(self._unread):
                self.alike(sketch)
            now = self._clock()
            return iter([held for held in self._held.values() if isinstance(held, Entry) and held.expires > now])

    def add_evidence(self, route: str, evidence: Evidence) -> None:
        self._ledger.add(route, evidence)

    def evidence(self) -> dict[str, Evidence]:
        return dict(self._ledger.copies())

    def flush(self, timeout: float | None = None) -> bool:
        return True

    def stats(self) -> StoreStats:
        with self._lock:
            return StoreStats(
                kind="memory", entries=len(self._held), bytes=self._bytes, limit=self._size,
                evictions=self._evictions, expired=self._expired, oversized=self._oversized,
            )  # fmt: skip

    def close(self) -> None:
        with self._lock:
            self._bytes = 0
            for table in (self._held, self._aliases, self._sketches, self._unnamed, self._unread, self._ends):
                table.clear()

    def _hold(self, key: bytes | Unread, held: Entry | Unread) -> None:
        self._held[key] = held
        self._bytes += held.size
        while self._bytes > self._size:
            self._evictions += 1
            self._remove(next(iter(self._held)))

    def _sweep(self) -> None:
        now, ends = self._clock(), self._ends
        if len(ends) > 2 * len(self._held) + _SPARE:
            ends[:] = [(held.expires, held.key) for held in self._held.values() if isinstance(held, Entry)]
            heapify(ends)
        while ends and ends[0][0] <= now:
            _, key = heappop(ends)
            held = self._held.get(key)
            if held is not None and held.expires <= now:
                self._expired += 1
                self._remove(key)
        while isinstance(first := next(iter(self._held.values()), None), Unread) and first.expires <= now:
            self._expired += 1
            self._remove(first)

    def _remove(self, key: bytes | Unread) -> None:
        held = self._held.pop(key, None)
        if held is None:
            return
        self._bytes -= held.size
        if isinstance(held, Unread):
            alike = self._unread[held.sketch]
            alike.remove(held)
            if not alike:
                del self._unread[held.sketch]
        else:
            self._unlink(held)

    def _unlink(self, entry: Entry) -> None:
        if self._aliases.get(entry.alias) == entry.key:
            del self._aliases[entry.alias]
        sketch = None if entry.form is None else entry.form.sketch
        left = self._sketches[sketch] - 1
        if left:
            self._sketches[sketch] = left
        else:
            del self._sketches[sketch]
        if sketch is not None and entry.is_unnamed:
            self._forget_unnamed(sketch, entry.key)
        if self.on_forget is not None:
            self.on_forget(entry.key)

    def _forget_unnamed(self, sketch: int, key: bytes) -> None:
        keys = self._unnamed[sketch]
        del keys[key]
        if not keys:
            del self._unnamed[sketch]
