"""The SQLite file itself: its schema, whether it is ours, and how one that is not is set aside."""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import attrs

__all__ = [
    "APPLICATION_ID",
    "FAULTS",
    "SCHEMA_VERSION",
    "FileState",
    "connect",
    "find_fault",
    "prepare_file",
    "set_aside",
]

_log = logging.getLogger("velollm.cache")

APPLICATION_ID: Final = 0x56434143  # "VCAC"
SCHEMA_VERSION: Final = 1
# What a damaged file raises: the module quotes it in its messages, which then are not always UTF-8.
FAULTS: Final = (sqlite3.Error, UnicodeDecodeError)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, alias BLOB, tenant BLOB NOT NULL, model TEXT NOT NULL, tags TEXT NOT NULL,
    expires REAL NOT NULL, used REAL NOT NULL, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_alias ON entries (alias) WHERE alias IS NOT NULL;
CREATE INDEX IF NOT EXISTS entries_used ON entries (used);
CREATE INDEX IF NOT EXISTS entries_expires ON entries (expires);
CREATE TABLE IF NOT EXISTS meta (only INTEGER PRIMARY KEY CHECK (only = 1), generation INTEGER NOT NULL);
INSERT OR IGNORE INTO meta VALUES (1, 1);
"""
_EVIDENCE = "CREATE TABLE IF NOT EXISTS evidence (route TEXT PRIMARY KEY, heard REAL NOT NULL, data BLOB NOT NULL)"


@attrs.define(kw_only=True)
class FileState:
    """Counters of one file and whether it is usable now."""

    evictions: int = 0
    oversized: int = 0
    damaged: int = 0
    failures: int = 0
    set_aside: int = 0
    dropped: int = 0
    degraded: bool = False


def connect(path: Path, timeout: float) -> sqlite3.Connection:
    """A connection in WAL mode whose statements commit by themselves. NORMAL: a commit outlives the process; the
    last ones may be lost with the machine."""
    db = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 4194304")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA trusted_schema = OFF")
    except FAULTS:
        db.close()
        raise
    return db


def prepare_file(path: Path, state: FileState) -> None:
    """Make the file ready for use. One that is foreign, newer or damaged is set aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and (fault := find_fault(path)):
        set_aside(path, fault, state)
    with closing(connect(path, timeout=5.0)) as db:
        if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
            db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + marks + "COMMIT;")
        if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'evidence'").fetchone()[0]:
            db.execute(_EVIDENCE)
    path.chmod(0o600)


def find_fault(path: Path) -> str:
    """Why a file may not be used, or nothing."""
    if path.stat().st_size == 0:
        return ""
    try:
        with closing(sqlite3.connect(path, timeout=5.0)) as db:
            application, version = (db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("application_id", "user_version"))
            empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if empty and not version:
                return ""
            if application != APPLICATION_ID:
                return "it belongs to another program"
            if version != SCHEMA_VERSION:
                return f"its schema is {version}, this version reads {SCHEMA_VERSION}"
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            return "" if verdict == "ok" else f"it is damaged: {verdict}"
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error) or "readonly" in str(error) or "unable to open" in str(error):
            raise
        return f"it is damaged: {error}"
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return f"it is damaged: {error}"


def set_aside(path: Path, fault: str, state: FileState) -> None:
    """Rename a file and its companions; nothing is deleted. Raises OSError where the folder forbids it."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    target = path.with_name(f"{path.name}.set-aside-{stamp}")
    n = 1
    while target.exists():
        target, n = path.with_name(f"{path.name}.set-aside-{stamp}-{n}"), n + 1
    path.rename(target)
    for suffix in ("-wal", "-shm"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(target.with_name(target.name + suffix))
    state.set_aside += 1
    _log.warning("cache store %s is not used, %s; it was renamed to %s", path.name, fault, target.name)
