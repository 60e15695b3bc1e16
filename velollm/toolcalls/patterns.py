"""`pattern` keywords, used only where matching is known to take linear time.

Python's `re` backtracks. A pattern with a repeated group that itself repeats, or with back references, can take
exponential time on a short text, so such a pattern is not checked at all: it is an annotation then.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

__all__ = ["is_safe", "safe_pattern"]

_MAX_LENGTH = 500
_MAX_REPEATS = 4
_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"})


@lru_cache(maxsize=1024)
def _compiled(source: str) -> re.Pattern[str] | None:
    if len(source) > _MAX_LENGTH:
        return None
    try:
        if not is_safe(source):
            return None
        return re.compile(source)
    except (re.error, OverflowError, RecursionError):
        return None


def safe_pattern(source: Any) -> re.Pattern[str] | None:
    """The compiled pattern; None for what is no pattern, is not Python's dialect, or may backtrack without bound."""
    return _compiled(source) if isinstance(source, str) else None


def is_safe(source: str) -> bool:
    """Whether matching is at worst a low polynomial: no repeat inside a repeat, no back reference, few open repeats."""
    import re._parser as parser  # type: ignore[import-not-found]

    return _count_repeats(parser.parse(source).data, 0) <= _MAX_REPEATS


def _count_repeats(items: Any, inside: int) -> int:
    total = 0
    for operation, argument in items:
        name = str(operation)
        if name in _REPEATS:
            low, high, body = argument
            wide = int(high) > max(int(low), 1) and int(high) > 16
            if wide and inside:
                return 100
            total += wide + _count_repeats(body.data, inside + (int(high) > 1))
        elif name == "SUBPATTERN":
            total += _count_repeats(argument[3].data, inside)
        elif name == "BRANCH":
            total += max((_count_repeats(branch.data, inside) for branch in argument[1]), default=0)
            if inside and len(argument[1]) > 1 and _overlapping(argument[1]):
                return 100
        elif name in ("ASSERT", "ASSERT_NOT"):
            total += _count_repeats(argument[1].data, inside)
        elif name in ("GROUPREF", "GROUPREF_EXISTS"):
            return 100
        elif name == "ATOMIC_GROUP":
            total += _count_repeats(argument.data, inside)
    return total


def _overlapping(branches: Any) -> bool:
    """Whether two branches of a repeated group can begin alike; anything but distinct literals counts as alike."""
    heads = []
    for branch in branches:
        if not branch.data or str(branch.data[0][0]) != "LITERAL":
            return True
        heads.append(branch.data[0][1])
    return len(set(heads)) != len(heads)
