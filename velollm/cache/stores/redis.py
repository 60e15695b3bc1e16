"""Answers in Redis or Valkey, shared by many processes, with a part of them in memory in front.

Reads have a short deadline and writes go through a thread. When the server is gone a circuit breaker answers from
memory alone and lets one try through a second; what others wrote is checked like a stranger's: wrong version or
checksum is a miss."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import attrs

from velollm.cache.entry import Damaged, Entry, decode, encode
from velollm.cache.evidence import ROUTES, Evidence, Ledger, decode_evidence, encode_evidence
from velollm.cache.selection import Selection
from velollm.cache.stores.base import StoreStats
from velollm.cache.stores.memory import MemoryStore
from velollm.cache.stores.tickets import Tickets

__all__ = ["RedisStore"]

_log = logging.getLogger("velollm.cache")
_PREFIX = b"velollm:cache:1:"
_READ_TIMEOUT = 0.04
_RETRY_AFTER = 1.0
_BATCH = 64
_BACKLOG = 4096
_SCAN = 200
_EVIDENCE = _PREFIX + b"evidence"
_EVIDENCE_LIVES = 90 * 86400
# One write-behind: an entry with its ticket, a key to delete, or the ticket of evidence.
_Write = tuple[int, Entry] | bytes | int


@attrs.define
class _Breaker:
    """Open for a second after a failure; one warning for each time the server goes."""

    clock: Callable[[], float]
    failures: int = 0
    retry_at: float = 0.0
    degraded: bool = False

    def closed(self) -> bool:
        return not self.degraded or self.clock() >= self.retry_at

    def failed(self, error: Exception) -> None:
        self.failures += 1
        self.retry_at = self.clock() + _RETRY_AFTER
        if not self.degraded:
            self.degraded = True
            _log.warning("cache store redis does not answer (%s): answers are kept in memory until it does", error)

    def worked(self) -> None:
        if self.degraded:
            self.degraded = False
            _log.info("cache store redis is in use again")


class RedisStore:
    """See the module's docstring. The server's own `maxmemory` bounds what it holds; `size` bounds the front."""

    may_block = True
    persistent = True

    def __init__(self, url: str, size: int, clock: Callable[[], float] = time.time) -> None:
        import redis

        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._refusal: type[Exception] = redis.ResponseError
        self._front = MemoryStore(size, clock)
        self._size, self._clock = size, clock
        self._reads: Any = redis.Redis.from_url(
            url, socket_timeout=_READ_TIMEOUT, socket_connect_timeout=_READ_TIMEOUT, retry=None
        )
        self._writes: Any = redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=0.5, retry=None)
        self._breaker = _Breaker(time.monotonic)
        self._tickets = Tickets()
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._unwritten = Ledger()
        self._noting = False  # the writer has been told of it
        self._damaged = self._dropped = 0
        self._writer = threading.Thread(target=self._write_loop, name="velollm-cache-redis", daemon=True)
        self._writer.start()

    @property
    def degraded(self) -> bool:
        return self._breaker.degraded

    @property
    def failures(self) -> int:
        return self._breaker.failures

    @property
    def on_forget(self) -> Callable[[bytes], None] | None:
        """Called for keys that are purged or found missing; an eviction from the front alone forgets nothing."""
        return self._on_forget

    @on_forget.setter
    def on_forget(self, callback: Callable[[bytes], None] | None) -> None:
        self._on_forget = callback

    _on_forget: Callable[[bytes], None] | None = None

    def get(self, key: bytes) -> Entry | None:
        entry = self._front.get(key)
        return entry if entry is not None else self._checked(key, self._ask(_entry_key(key)))

    def find(self, alias: bytes) -> Entry | None:
        entry = self._front.find(alias)
        if entry is not None:
            return entry
        key = self._ask(_PREFIX + b"a:" + alias.hex().encode())
        return None if not isinstance(key, bytes) or len(key) != 16 else self.get(key)

    def put(self, entry: Entry) -> int:
        if not self._front.put(entry):
            return 0
        ticket = self._tickets.take()
        if self._queue.qsize() < _BACKLOG:
            self._queue.put((ticket, entry))
        else:
            self._dropped += 1
            self._tickets.settle([ticket], done=False)
        return ticket

    def wait(self, ticket: int, timeout: float | None = None) -> bool:
        return self._tickets.wait(ticket, timeout)

    def flush(self, timeout: float | None = None) -> bool:
        return self._tickets.wait_all(timeout)

    def delete(self, key: bytes) -> None:
        self._front.delete(key)
        self._queue.put(key)

    def purge(self, selection: Selection) -> int:
        self.flush(5.0)
        doomed = [entry.key for entry in self._scan() if selection.covers(entry)]
        in_front = self._front.purge(selection)
        self._unwritten.forget(selection)
        try:
            self._writes.transaction(lambda pipe: self._forget_evidence(pipe, selection), _EVIDENCE)
            for i in range(0, len(doomed), _SCAN):
                self._writes.delete(*(_entry_key(key) for key in doomed[i : i + _SCAN]))
        except self._errors as error:
            self._breaker.failed(error)
        for key in doomed:
            if self._on_forget is not None:
                self._on_forget(key)
        return max(len(doomed), in_front)

    def entries(self) -> Iterator[Entry]:
        self.flush(5.0)
        return iter(sorted(self._scan(), key=lambda e: e.created))

    def add_evidence(self, route: str, evidence: Evidence) -> None:
        self._unwritten.add(route, evidence)
        if not self._noting:
            self._noting = True
            self._queue.put(self._tickets.take())

    def evidence(self) -> dict[str, Evidence]:
        self.flush(5.0)
        known = Ledger()
        try:
            if self._breaker.closed():
                for route, evidence in self._read_evidence(self._writes).items():
                    known.add(route, evidence)
        except self._errors as error:
            self._breaker.failed(error)
        for route, evidence in self._unwritten.copies():
            known.add(route, evidence)
        return dict(known.copies())

    def stats(self) -> StoreStats:
        """Of the front: counting the server's keys would cost a scan."""
        front = self._front.stats()
        return attrs.evolve(
            front, kind="redis", entries=front.entries, limit=self._size, damaged=self._damaged,
            failures=self._breaker.failures, dropped_writes=self._dropped, degraded=self._breaker.degraded,
        )  # fmt: skip

    def close(self) -> None:
        if len(self._unwritten):
            self._queue.put(self._tickets.take())
        self._queue.put(None)
        self._writer.join(5.0)
        self._reads.close()
        self._writes.close()
        self._front.close()

    def _ask(self, key: bytes) -> Any:
        if not self._breaker.closed():
            return None
        try:
            value = self._reads.get(key)
        except self._refusal:  # the server is well, but what lies under the key is no string of ours
            self._damaged += 1
            value = None
        except self._errors as error:
            self._breaker.failed(error)
            return None
        self._breaker.worked()
        return value

    def _checked(self, key: bytes, data: Any) -> Entry | None:
        if not isinstance(data, bytes):
            return None
        try:
            entry = decode(data)
        except Damaged:
            entry = None
        if entry is None or entry.key != key:
            self._damaged += 1
            return None
        if entry.expires <= self._clock():
            return None
        self._front.put(entry)
        return entry

    def _scan(self) -> Iterator[Entry]:
        if not self._breaker.closed():
            yield from self._front.entries()
            return
        try:
            page: list[bytes] = []
            for name in self._writes.scan_iter(match=_PREFIX + b"e:*", count=_SCAN):
                page.append(name)
                if len(page) == _SCAN:
                    yield from self._read_page(page)
                    page = []
            yield from self._read_page(page)
        except self._errors as error:
            self._breaker.failed(error)

    def _read_page(self, names: list[bytes]) -> Iterator[Entry]:
        for data in self._writes.mget(names) if names else ():
            try:
                entry = None if data is None else decode(data)
            except Damaged:
                self._damaged += 1
                continue
            if entry is not None and entry.expires > self._clock():
                yield entry

    def _write_loop(self) -> None:
        while True:
            batch: list[_Write | None] = [self._queue.get()]
            while len(batch) < _BATCH and batch[-1] is not None:
                try:
                    batch.append(self._queue.get_nowait())
                except Empty:
                    break
            writes = [write for write in batch if write is not None]
            if writes:
                self._write(writes)
            if batch[-1] is None:
                return

    def _write(self, writes: list[_Write]) -> None:
        entries = [write[0] for write in writes if isinstance(write, tuple)]
        notes = [write for write in writes if isinstance(write, int)]
        done = self._breaker.closed()
        if done:
            try:
                self._pipeline(writes)
                if notes:
                    self._write_evidence()
                self._breaker.worked()
            except self._errors as error:
                self._breaker.failed(error)
                done = False
        if not done:
            self._noting = False  # what is unwritten goes with the next note
            self._dropped += len(entries)
        self._tickets.settle(entries + notes, done=done)

    def _write_evidence(self) -> None:
        self._noting = False
        found = self._unwritten.take()
        try:
            self._writes.transaction(lambda pipe: self._add_evidence(pipe, found), _EVIDENCE)
        except self._errors:
            for route, evidence in found.items():
                self._unwritten.add(route, evidence)
            raise

    def _add_evidence(self, pipe: Any, found: dict[str, Evidence]) -> None:
        known = self._read_evidence(pipe)
        for route, evidence in found.items():
            known.setdefault(route, Evidence()).add(evidence)
        self._put_evidence(pipe, known)

    def _forget_evidence(self, pipe: Any, selection: Selection) -> None:
        known = {} if selection.everything else self._read_evidence(pipe)
        for evidence in known.values():
            evidence.forget(selection)
        self._put_evidence(pipe, known)

    def _read_evidence(self, client: Any) -> dict[str, Evidence]:
        known: dict[str, Evidence] = {}
        for route, data in client.hgetall(_EVIDENCE).items():
            try:
                known[route.decode("utf-8", "replace")] = decode_evidence(data)
            except Damaged:
                self._damaged += 1
        return known

    def _put_evidence(self, pipe: Any, known: dict[str, Evidence]) -> None:
        pipe.multi()
        pipe.delete(_EVIDENCE)
        kept = sorted(known.items(), key=lambda item: item[1].last)[-ROUTES:]
        if kept:
            pipe.hset(_EVIDENCE, mapping={route: encode_evidence(evidence) for route, evidence in kept})
            pipe.expire(_EVIDENCE, _EVIDENCE_LIVES)

    def _pipeline(self, writes: list[_Write]) -> None:
        pipe = self._writes.pipeline(transaction=False)
        for write in writes:
            if isinstance(write, bytes):
                pipe.delete(_entry_key(write))
                continue
            if isinstance(write, int):
                continue
            entry = write[1]
            lives = max(1, int((entry.expires - self._clock()) * 1000))
            pipe.set(_entry_key(entry.key), encode(entry), px=lives)
            if entry.alias:
                pipe.set(_PREFIX + b"a:" + entry.alias.hex().encode(), entry.key, px=lives)
        pipe.execute()


def _entry_key(key: bytes) -> bytes:
    return _PREFIX + b"e:" + key.hex().encode()
