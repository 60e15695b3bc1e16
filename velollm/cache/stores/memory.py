"""Answers in memory: least recently used first out, bounded by bytes, expired entries never served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush

import attrs
from cachetools import LRUCache

from velollm.cache.entry import Entry, Form
from velollm.cache.evidence import Evidence, Ledger
from velollm.cache.selection import Selection
from velollm.cache.stores.base import StoreStats

__all__ = ["MemoryStore"]

_MOST_UNNAMED = 16  # of one sketch
_SPARE = 256  # ends of entries that are gone, beside as many as there are entries


class _Recent(LRUCache[bytes, Entry]):
    """cachetools' LRU, telling its owner what it throws out."""

    def __init__(self, maxsize: int, forget: Callable[[Entry], None]) -> None:
        super().__init__(maxsize, getsizeof=lambda entry: entry.size)
        self._forget = forget

    def popitem(self) -> tuple[bytes, Entry]:
        key, entry = super().popitem()
        self._forget(entry)
        return key, entry


class MemoryStore:
    """The default store. `size` is in bytes and covers answers, prompts and their places in the semantic index."""

    may_block = False
    persistent = False
    degraded = False
    failures = 0

    def __init__(self, size: int, clock: Callable[[], float] = time.time) -> None:
        self.on_forget: Callable[[bytes], None] | None = None
        self._clock = clock
        self._lock = threading.RLock()
        self._recent = _Recent(size, self._evicted)
        self._aliases: dict[bytes, bytes] = {}
        self._sketches: dict[int, int] = {}  # how many entries have each
        self._unnamed: dict[int, dict[bytes, None]] = {}  # keys of those without an alias, by sketch
        self._ends: list[tuple[float, bytes]] = []  # a heap: when entries expire, also of some that are gone
        self._ledger = Ledger()
        self._puts = self._evictions = self._expired = self._oversized = 0

    def get(self, key: bytes) -> Entry | None:
        with self._lock:
            entry = self._recent.get(key)
            if entry is None or entry.expires > self._clock():
                return entry
            self._expired += 1
            self._remove(key)
            return None

    def find(self, alias: bytes) -> Entry | None:
        with self._lock:
            key = self._aliases.get(alias)
            return None if key is None else self.get(key)

    def alike(self, sketch: int) -> Sequence[Entry] | None:
        """The entries without an alias whose prompts have this sketch; None where no entry at all has it."""
        with self._lock:
            if sketch not in self._sketches:
                return None
            keys = self._unnamed.get(sketch, ())
            return [entry for key in list(keys) if (entry := self.get(key)) is not None]

    def may_wait(self, sketch: int) -> bool:
        """Whether one more entry with this sketch may come without its alias: who asks is not to wait for many."""
        return len(self._unnamed.get(sketch, ())) < _MOST_UNNAMED

    def name(self, entry: Entry, alias: bytes, alias_check: bytes) -> None:
        """Give an entry the alias that it came without, if it is still there."""
        with self._lock:
            if entry.form is not None and not entry.alias and self._recent.get(entry.key) is entry:
                self._forget_unnamed(entry.form.sketch, entry.key)
                form = Form(sketch=entry.form.sketch)
                self._recent[entry.key] = attrs.evolve(entry, alias=alias, alias_check=alias_check, form=form)
                self._aliases[alias] = entry.key

    def put(self, entry: Entry) -> int:
        with self._lock:
            if entry.size > self._recent.maxsize:
                self._oversized += 1
                return 0
            if entry.key in self._recent:
                self._remove(entry.key)
            self._recent[entry.key] = entry
            if entry.alias:
                self._aliases[entry.alias] = entry.key
            if entry.form is not None:
                sketch = entry.form.sketch
                self._sketches[sketch] = self._sketches.get(sketch, 0) + 1
                if not entry.alias:
                    self._unnamed.setdefault(sketch, {})[entry.key] = None
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
            doomed = [e.key for e in self._recent.values() if selection.covers(e)]
            for key in doomed:
                self._remove(key)
            return len(doomed)

    def entries(self) -> Iterator[Entry]:
        with self._lock:
            now = self._clock()
            return iter([e for e in self._recent.values() if e.expires > now])

    def add_evidence(self, route: str, evidence: Evidence) -> None:
        self._ledger.add(route, evidence)

    def evidence(self) -> dict[str, Evidence]:
        return dict(self._ledger.copies())

    def flush(self, timeout: float | None = None) -> bool:
        return True

    def stats(self) -> StoreStats:
        with self._lock:
            return StoreStats(
                kind="memory", entries=len(self._recent), bytes=int(self._recent.currsize),
                limit=int(self._recent.maxsize),
                evictions=self._evictions, expired=self._expired, oversized=self._oversized,
            )  # fmt: skip

    def close(self) -> None:
        with self._lock:
            self._recent.clear()
            self._aliases.clear()
            self._sketches.clear()
            self._unnamed.clear()
            self._ends.clear()

    def _sweep(self) -> None:
        now, ends = self._clock(), self._ends
        if len(ends) > 2 * len(self._recent) + _SPARE:
            ends[:] = [(entry.expires, entry.key) for entry in self._recent.values()]
            heapify(ends)
        while ends and ends[0][0] <= now:
            _, key = heappop(ends)
            entry = self._recent.get(key)
            if entry is not None and entry.expires <= now:
                self._expired += 1
                self._remove(key)

    def _remove(self, key: bytes) -> None:
        entry = self._recent.pop(key, None)
        if entry is not None:
            self._unlink(entry)

    def _evicted(self, entry: Entry) -> None:
        self._evictions += 1
        self._unlink(entry)

    def _unlink(self, entry: Entry) -> None:
        if self._aliases.get(entry.alias) == entry.key:
            del self._aliases[entry.alias]
        if entry.form is not None:
            sketch = entry.form.sketch
            left = self._sketches[sketch] - 1
            if left:
                self._sketches[sketch] = left
            else:
                del self._sketches[sketch]
            if not entry.alias:
                self._forget_unnamed(sketch, entry.key)
        if self.on_forget is not None:
            self.on_forget(entry.key)

    def _forget_unnamed(self, sketch: int, key: bytes) -> None:
        keys = self._unnamed[sketch]
        del keys[key]
        if not keys:
            del self._unnamed[sketch]
