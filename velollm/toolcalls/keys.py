"""Case and separator variants of a name: `cardId`, `card-id` and `Card ID` all mean `card_id`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

__all__ = ["KeyMap", "fold"]

_DROP = str.maketrans("", "", "_-. \t\n:\"'`")


_LONG = 64


def fold(name: str) -> str:
    """`name` in lower case, without separators."""
    return _folded(name) if len(name) <= _LONG else name.lower().translate(_DROP)


@lru_cache(maxsize=2048)
def _folded(name: str) -> str:
    return name.lower().translate(_DROP)


class KeyMap:
    """Known names by their folded form; a form that two names share means neither."""

    __slots__ = ("_known",)

    def __init__(self, names: Iterable[str]) -> None:
        self._known: dict[str, str | None] = {}
        for name in names:
            form = fold(name)
            self._known[form] = None if form in self._known else name

    def variant(self, name: str) -> str | None:
        """The one known name that `name` is a variant of."""
        if len(name) > 200:
            return None
        form = fold(name)
        return self._known.get(form) if form else None
