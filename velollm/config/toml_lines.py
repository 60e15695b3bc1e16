"""Finds the line of a TOML file on which a key stands; `tomllib` does not tell."""

from __future__ import annotations

import re
import tomllib

__all__ = ["find_line"]

HEADER = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+|\s*\.\s*)+?)\s*=""")

Path = tuple[str | int, ...]


def find_line(text: str, path: Path) -> int | None:
    """The number of the line that sets `path`, or as much of it as there is; None when nothing of it is found.

    In a path, numbers count the tables of an array: ("backends", 1, "url").
    """
    best: tuple[int, int] | None = None
    table: Path = ()
    arrays: dict[Path, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        header, key = HEADER.match(line), KEY.match(line)
        if header is not None:
            table = _parse(header[2])
            if header[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                table = (*table, arrays[table])
            found = table
        elif key is not None:
            found = table + _parse(key[1])
        else:
            continue
        depth = len(found)
        if depth and path[:depth] == found and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best is not None else None


def _parse(dotted: str) -> Path:
    """`models."a.b"` as a path."""
    try:
        value = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str | int] = []
    inner: object = value
    while isinstance(inner, dict) and inner:
        key, inner = next(iter(inner.items()))
        path.append(key)
    return tuple(path)
