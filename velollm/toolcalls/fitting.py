"""What travels through one fitting of arguments to a schema: the budget, the repairs made, and how it fails."""

from __future__ import annotations

from collections import Counter

from attrs import define, field

__all__ = ["Context", "Mismatch"]

_BUDGET = 20_000


class Mismatch(ValueError):
    """A value that the schema does not allow, with the path to it."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path or 'arguments'}: {message}")
        self.path = path


@define(slots=True)
class Context:
    """What one fitting did (`repairs`, by kind) and how much it may still do."""

    repairs: Counter[str] = field(factory=Counter)
    budget: int = _BUDGET
    quoted: bool = False  # the family quotes every scalar: decoding one is no repair
    refs: int = 0

    def spend(self) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise Mismatch("", "the schema is too complex for this value")

    def note(self, kind: str) -> None:
        self.repairs[kind] += 1
