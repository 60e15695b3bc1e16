"""Sizes (`16MiB`), durations (`1h30m`) and numbers that may be `auto`, as people write them, and back."""

from __future__ import annotations

import math
import re
from typing import NewType

__all__ = [
    "AUTO",
    "Concurrency",
    "Seconds",
    "Size",
    "parse_concurrency",
    "parse_seconds",
    "parse_size",
    "show_concurrency",
    "show_seconds",
    "show_size",
]

Size = NewType("Size", int)
Concurrency = NewType("Concurrency", int)  # requests at once
Seconds = NewType("Seconds", float)

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", re.IGNORECASE | re.ASCII)
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.IGNORECASE | re.ASCII)
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
           "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LARGEST = 2**62
AUTO = Concurrency(0)
MOST_AT_ONCE = 10**6


def parse_size(value: object) -> Size:
    """Bytes, from a whole number or from text: `16MiB` (1024 based), `16MB` (1000 based), `4096`.

    Raises `ValueError`.
    """
    if isinstance(value, str):
        match = SIZE.fullmatch(value.strip())
        factor = FACTORS.get(match[2].lower().removesuffix("b")) if match else None
        if match is None or factor is None or len(match[1]) > 30:
            raise ValueError(f"must be a size like 16MiB, 500MB or 4096, not {value!r}")
        value = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if type(value) is not int:
        raise ValueError(f"must be a size like 16MiB, 500MB or 4096, not {value!r}")
    if not 0 < value < LARGEST:
        raise ValueError(f"must be a size above 0 and below {LARGEST}, not {value}")
    return Size(value)


def parse_seconds(value: object) -> Seconds:
    """Seconds, from a number or from text: `2.5`, `500ms`, `30s`, `1h30m`. Raises `ValueError`."""
    if isinstance(value, str):
        value = _seconds_of(value.strip())
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"must be a duration like 30, 2.5, 500ms, 30s or 1h30m, not {value!r}")
    if not 0 <= value <= 10**9:  # type: ignore[operator]
        raise ValueError(f"must be a duration from 0 to 30 years, not {value}")
    return Seconds(float(value))  # type: ignore[arg-type]


def _seconds_of(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        pass
    parts = list(DURATION.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text:
        return text
    return sum(float(part[1]) * SECONDS[part[2].lower()] for part in parts)


def parse_concurrency(value: object) -> Concurrency:
    """Requests at once, from a whole number or its text; `auto` is `AUTO`. Raises `ValueError`."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word == "auto":
            return AUTO
        value = int(word) if word.isascii() and word.isdigit() and len(word) < 20 else value
    if type(value) is not int or not 0 < value <= MOST_AT_ONCE:
        raise ValueError(f"must be auto or a whole number of at least 1, not {value!r}")
    return Concurrency(value)


def show_concurrency(concurrency: int) -> str:
    """`auto`, or the number."""
    return str(concurrency) if concurrency else "auto"


def show_size(size: int) -> str:
    """`16MiB`: text that `parse_size` reads as the same number."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if size % FACTORS[unit.lower()] == 0 and size:
            return f"{size // FACTORS[unit.lower()]}{unit}B"
    return str(size)


def show_seconds(seconds: float) -> str:
    """`1h`, `30s`: text that `parse_seconds` reads as the same number."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % SECONDS[unit] == 0:
            return f"{int(seconds // SECONDS[unit])}{unit}"
    return f"{seconds!r}s".replace(".0s", "s")
