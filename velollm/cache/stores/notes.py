"""The evidence of shadow mode in the SQLite file: one row a route, added up inside a transaction, so that several
processes may write down what they found."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

from velollm.cache.entry import Damaged
from velollm.cache.evidence import ROUTES, Evidence, decode_evidence, encode_evidence
from velollm.cache.selection import Selection

__all__ = ["forget", "read", "write"]


def read(db: sqlite3.Connection) -> Iterator[tuple[str, Evidence]]:
    """Every route, the one heard of last at the end. A row that does not read says nothing."""
    for route, data in db.execute("SELECT route, data FROM evidence ORDER BY heard"):
        evidence = _decode(data)
        if evidence is not None:
            yield route, evidence


def write(db: sqlite3.Connection, found: Mapping[str, Evidence]) -> None:
    """Add to what is there; the caller's transaction holds it together."""
    for route, evidence in found.items():
        row = db.execute("SELECT data FROM evidence WHERE route = ?", (route,)).fetchone()
        known = (_decode(row[0]) if row else None) or Evidence()
        known.add(evidence)
        _put(db, route, known)
    keep = "SELECT route FROM evidence ORDER BY heard DESC LIMIT ?"
    db.execute(f"DELETE FROM evidence WHERE route NOT IN ({keep})", (ROUTES,))  # noqa: S608  # a literal


def forget(db: sqlite3.Connection, selection: Selection) -> None:
    """Drop what a purge covers: the words, or all there is."""
    if selection.everything:
        db.execute("DELETE FROM evidence")
        return
    for route, evidence in list(read(db)):
        if evidence.forget(selection):
            _put(db, route, evidence)


def _put(db: sqlite3.Connection, route: str, evidence: Evidence) -> None:
    row = route, evidence.last, encode_evidence(evidence)
    db.execute("INSERT OR REPLACE INTO evidence VALUES (?, ?, ?)", row)


def _decode(data: object) -> Evidence | None:
    try:
        return decode_evidence(data) if isinstance(data, bytes) else None
    except Damaged:
        return None
