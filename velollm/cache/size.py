"""Sizes as people write them: `64MiB`, `2GB`, `500000`."""

from __future__ import annotations

import re

__all__ = ["parse_size"]

_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 1024, "mib": 1024**2, "gib": 1024**3}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*\Z", re.IGNORECASE)


def parse_size(size: int | str) -> int:
    """Bytes of a size. Raises ValueError on anything that is not a positive one."""
    if isinstance(size, int):
        number = size
    else:
        found = _SIZE.match(size)
        if found is None or found[2].lower() not in _UNITS:
            raise ValueError(f"{size!r} is not a size such as 64MiB")
        number = int(float(found[1]) * _UNITS[found[2].lower()])
    if number <= 0:
        raise ValueError(f"{size!r} is not a positive size")
    return number
