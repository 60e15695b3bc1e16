"""Answers in a SQLite file, written behind by one thread, with a part of them in memory in front.

    put ──► memory front ──► queue ──► writer: BEGIN … COMMIT (WAL)      a reader's get never waits for a write
    get ──► memory front ──► SELECT, CRC checked ──► front

What `wait` or `flush` acknowledged is committed: it survives the death of the process. A file that is not ours, is
newer or is damaged is set aside under another name, never served from and never deleted. A full or read-only disk
leaves the memory front at work; the file is tried again every few seconds.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue

import attrs

from velollm.cache.entry import Damaged, Entry, decode, encode
from velollm.cache.evidence import Evidence, Ledger
from velollm.cache.selection import Selection
from velollm.cache.stores import notes
from velollm.cache.stores.base import StoreStats
from velollm.cache.stores.file import FAULTS, FileState, connect, prepare_file, set_aside
from velollm.cache.stores.memory import MemoryStore
from velollm.cache.stores.tickets import Tickets

__all__ = ["SqliteStore"]

_log = logging.getLogger("velollm.cache")
_BATCH = 256
_BACKLOG = 4096
_RETRY_AFTER = 5.0
_PEER_CHECK_EVERY = 0.5
_TOUCH_EVERY = 64


@attrs.frozen
class _Put:
    ticket: int
    entry: Entry


@attrs.frozen
class _Delete:
    key: bytes


@attrs.frozen
class _Touch:
    keys: tuple[bytes, ...]


@attrs.frozen
class _Note:
    """There is evidence to be written down."""

    ticket: int


_Write = _Put | _Delete | _Touch | _Note


class SqliteStore:
    """See the module's docstring. `size` bounds the file; the memory front takes at most a quarter of it."""

    may_block = False
    persistent = True

    def __init__(self, path: str | Path, size: int, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._size, self._clock = size, clock
        self._front = MemoryStore(max(size // 4, 1 << 16), clock)
        self._tickets = Tickets()
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._state = FileState()
        self._read_lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._touched: list[bytes] = []
        self._unwritten = Ledger()
        self._noting = False  # the writer has been told of it
        self._version = self._generation = 0
        self._checked_at = 0.0
        self._open_first()
        self._writer = threading.Thread(target=self._write_loop, name="velollm-cache-writer", daemon=True)
        self._writer.start()

    @property
    def degraded(self) -> bool:
        return self._state.degraded

    @property
    def failures(self) -> int:
        return self._state.failures

    @property
    def on_forget(self) -> Callable[[bytes], None] | None:
        return self._on_forget

    @on_forget.setter
    def on_forget(self, callback: Callable[[bytes], None] | None) -> None:
        self._on_forget = callback

    _on_forget: Callable[[bytes], None] | None = None

    # -- reading

    def get(self, key: bytes) -> Entry | None:
        self._notice_peers()
        return self._touched_entry(self._front.get(key) or self._read("key", key))

    def find(self, alias: bytes) -> Entry | None:
        self._notice_peers()
        return self._touched_entry(self._front.find(alias) or self._read("alias", alias))

    def entries(self) -> Iterator[Entry]:
        if not self._writable():
            return self._front.entries()
        self.flush(5.0)
        return self._rows()

    def stats(self) -> StoreStats:
        front, rows, used = self._front.stats(), 0, 0
        with self._read_lock:
            if self._reader is not None:
                try:
                    rows = self._reader.execute("SELECT count(*) FROM entries").fetchone()[0]
                    used = _used_bytes(self._reader)
                except FAULTS:
                    self._state.failures += 1
        return StoreStats(
            kind="sqlite", entries=max(rows, front.entries), bytes=max(used, front.bytes), limit=self._size,
            evictions=self._state.evictions, expired=front.expired, oversized=self._state.oversized,
            damaged=self._state.damaged, failures=self._state.failures, set_aside=self._state.set_aside,
            dropped_writes=self._state.dropped, degraded=self._state.degraded,
        )  # fmt: skip

    # -- writing

    def put(self, entry: Entry) -> int:
        if entry.size > self._size // 4:
            self._state.oversized += 1
            return 0
        self._front.put(entry)
        ticket = self._tickets.take()
        if self._queue.qsize() < _BACKLOG:
            self._queue.put(_Put(ticket, entry))
        else:
            self._state.dropped += 1
            self._tickets.settle([ticket], done=False)
        return ticket

    def wait(self, ticket: int, timeout: float | None = None) -> bool:
        return self._tickets.wait(ticket, timeout)

    def add_evidence(self, route: str, evidence: Evidence) -> None:
        self._unwritten.add(route, evidence)
        if not self._noting:
            self._noting = True
            self._queue.put(_Note(self._tickets.take()))

    def evidence(self) -> dict[str, Evidence]:
        self.flush(5.0)
        known = Ledger()
        try:
            if self._writable():
                with closing(connect(self.path, timeout=5.0)) as db:
                    for route, evidence in notes.read(db):
                        known.add(route, evidence)
        except FAULTS as error:
            self._fail(error)
        for route, evidence in self._unwritten.copies():
            known.add(route, evidence)
        return dict(known.copies())

    def delete(self, key: bytes) -> None:
        self._front.delete(key)
        self._queue.put(_Delete(key))

    def flush(self, timeout: float | None = None) -> bool:
        return self._tickets.wait_all(timeout)

    def purge(self, selection: Selection) -> int:
        """Purges are rare and must be sure, so this one waits for the file."""
        self.flush(10.0)
        in_front = self._front.purge(selection)
        self._unwritten.forget(selection)
        clauses, values = _where(selection)
        try:
            with closing(connect(self.path, timeout=5.0)) as db, db:
                keys = [row[0] for row in db.execute(f"SELECT key FROM entries WHERE {clauses}", values)]  # noqa: S608  # clauses are ours
                db.execute(f"DELETE FROM entries WHERE {clauses}", values)  # noqa: S608
                db.execute("UPDATE meta SET generation = generation + 1")
                notes.forget(db, selection)
        except FAULTS as error:
            self._fail(error)
            return in_front
        if self._on_forget is not None:
            for key in keys:
                self._on_forget(key)
        return max(len(keys), in_front)

    def close(self) -> None:
        if len(self._unwritten):
            self._queue.put(_Note(self._tickets.take()))
        self._queue.put(None)
        self._writer.join(10.0)
        with self._read_lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        self._front.close()

    # -- the reader's side

    def _writable(self) -> bool:
        return self._reader is not None

    def _open_first(self) -> None:
        try:
            prepare_file(self.path, self._state)
            self._reader = connect(self.path, timeout=0.05)
        except (*FAULTS, OSError) as error:
            self._fail(error)

    def _read(self, column: str, value: bytes) -> Entry | None:
        with self._read_lock:
            if self._reader is None:
                return None
            try:
                row = self._reader.execute(
                    f"SELECT key, data FROM entries WHERE {column} = ? ORDER BY rowid DESC LIMIT 1",  # noqa: S608  # two literals
                    (value,),
                ).fetchone()
            except FAULTS as error:
                self._fail(error)
                return None
        if row is None:
            return None
        entry = self._decode(row[0], row[1])
        if entry is None or entry.expires <= self._clock():
            return None
        self._front.put(entry)
        return entry

    def _decode(self, key: bytes, data: bytes) -> Entry | None:
        try:
            entry = decode(data)
        except Damaged:
            entry = None
        if entry is not None and entry.key == key:
            return entry
        self._state.damaged += 1
        self._queue.put(_Delete(key))
        return None

    def _rows(self) -> Iterator[Entry]:
        try:
            with closing(connect(self.path, timeout=5.0)) as db:
                for key, data in db.execute(
                    "SELECT key, data FROM entries WHERE expires > ? ORDER BY rowid", (self._clock(),)
                ):
                    entry = self._decode(key, data)
                    if entry is not None:
                        yield entry
        except FAULTS as error:
            self._fail(error)

    def _touched_entry(self, entry: Entry | None) -> Entry | None:
        """Remember that it was used, also where the front had it: the file forgets what is not."""
        if entry is not None:
            self._touched.append(entry.key)
            if len(self._touched) >= _TOUCH_EVERY:
                keys, self._touched = self._touched, []
                self._queue.put(_Touch(tuple(dict.fromkeys(keys))))
        return entry

    def _notice_peers(self) -> None:
        """When another process purged the file, what stands in front of it is stale."""
        now = time.monotonic()
        if now - self._checked_at < _PEER_CHECK_EVERY:
            return
        with self._read_lock:
            self._checked_at = now
            if self._reader is None:
                return
            try:
                version = self._reader.execute("PRAGMA data_version").fetchone()[0]
                if version == self._version:
                    return
                generation = self._reader.execute("SELECT generation FROM meta").fetchone()[0]
            except FAULTS:
                return
            stale = self._version != 0 and generation != self._generation
            self._version, self._generation = version, generation
        if stale:
            self._front.purge(Selection())

    # -- the writer's side

    def _write_loop(self) -> None:
        db: sqlite3.Connection | None = None
        retry_at = 0.0
        while True:
            batch, last = self._next_batch()
            if batch:
                try:
                    if time.monotonic() < retry_at:
                        raise sqlite3.OperationalError("waiting before the next try")
                    db = db or self._open_writer()
                    self._commit(db, batch)
                    self._settle(batch, done=True)
                    self._recover()
                except Exception as error:  # whatever it was, the writer must live on, and says so
                    self._close_writer(db, error)
                    db = None
                    retry_at = retry_at if time.monotonic() < retry_at else time.monotonic() + _RETRY_AFTER
                    self._settle(batch, done=False)
            if last:
                if db is not None:
                    db.close()
                return

    def _next_batch(self) -> tuple[list[_Write], bool]:
        first = self._queue.get()
        batch: list[_Write] = []
        while first is not None:
            batch.append(first)
            if len(batch) == _BATCH:
                return batch, False
            try:
                first = self._queue.get_nowait()
            except Empty:
                return batch, False
        return batch, True

    def _open_writer(self) -> sqlite3.Connection:
        prepare_file(self.path, self._state)
        db = connect(self.path, timeout=5.0)
        with self._read_lock:
            if self._reader is None:
                self._reader = connect(self.path, timeout=0.05)
        return db

    def _commit(self, db: sqlite3.Connection, batch: list[_Write]) -> None:
        noted: dict[str, Evidence] = {}
        if any(isinstance(write, _Note) for write in batch):
            self._noting = False
            noted = self._unwritten.take()
        try:
            self._write(db, batch, noted)
        except BaseException:
            for route, evidence in noted.items():
                self._unwritten.add(route, evidence)
            raise

    def _write(self, db: sqlite3.Connection, batch: list[_Write], noted: dict[str, Evidence]) -> None:
        now = self._clock()
        with db:
            db.execute("BEGIN IMMEDIATE")
            for write in batch:
                if isinstance(write, _Put):
                    db.execute("INSERT OR REPLACE INTO entries VALUES (?,?,?,?,?,?,?,?)", _row(write.entry, now))
                elif isinstance(write, _Delete):
                    db.execute("DELETE FROM entries WHERE key = ?", (write.key,))
                elif isinstance(write, _Note):
                    notes.write(db, noted)
                    noted = {}
                else:
                    db.executemany("UPDATE entries SET used = ? WHERE key = ?", [(now, key) for key in write.keys])
            self._make_room(db, now)

    def _make_room(self, db: sqlite3.Connection, now: float) -> None:
        db.execute("DELETE FROM entries WHERE expires <= ?", (now,))
        while (excess := _used_bytes(db) - self._size) > 0:
            doomed = _least_used(db, excess)
            if not doomed:
                return
            db.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in doomed])
            self._state.evictions += len(doomed)
            for key in doomed:
                self._front.delete(key)
                if self._on_forget is not None:
                    self._on_forget(key)

    def _settle(self, batch: list[_Write], *, done: bool) -> None:
        if not done:
            self._state.dropped += sum(isinstance(write, _Put) for write in batch)
        self._tickets.settle([w.ticket for w in batch if isinstance(w, _Put | _Note)], done=done)

    def _close_writer(self, db: sqlite3.Connection | None, error: Exception) -> None:
        self._fail(error)
        if db is not None:
            db.close()
        if _is_damage(error):
            with self._read_lock:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
                try:
                    set_aside(self.path, str(error), self._state)
                except OSError as refused:
                    _log.debug("cache store %s could not be renamed: %s", self.path.name, refused)

    def _fail(self, error: Exception) -> None:
        self._state.failures += 1
        if not self._state.degraded:
            self._state.degraded = True
            _log.warning(
                "cache store %s cannot be used (%s): answers are kept in memory until it can", self.path.name, error
            )

    def _recover(self) -> None:
        if self._state.degraded:
            self._state.degraded = False
            _log.info("cache store %s is in use again", self.path.name)


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is at fault, rather than the disk, a lock or a missing folder."""
    return isinstance(error, (sqlite3.DatabaseError, UnicodeDecodeError)) and not isinstance(
        error, sqlite3.OperationalError
    )


def _row(entry: Entry, now: float) -> tuple[object, ...]:
    tags = "\x1f".join(("", *entry.tags, "")) if entry.tags else ""
    return entry.key, entry.alias or None, entry.tenant, entry.model, tags, entry.expires, now, encode(entry)


def _least_used(db: sqlite3.Connection, excess: int) -> list[bytes]:
    """The entries to give up, the longest unused first, until `excess` bytes are covered."""
    doomed: list[bytes] = []
    for key, size in db.execute("SELECT key, length(data) FROM entries ORDER BY used LIMIT 1024"):
        doomed.append(key)
        excess -= size
        if excess <= 0:
            break
    return doomed


def _used_bytes(db: sqlite3.Connection) -> int:
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _where(selection: Selection) -> tuple[str, list[object]]:
    clauses, values = ["1"], list[object]()
    if selection.model is not None:
        clauses.append("model = ?")
        values.append(selection.model)
    if selection.tenant is not None:
        clauses.append("tenant = ?")
        values.append(selection.tenant)
    if selection.tag is not None:
        clauses.append("instr(tags, ?)")
        values.append(f"\x1f{selection.tag}\x1f")
    return " AND ".join(clauses), values
