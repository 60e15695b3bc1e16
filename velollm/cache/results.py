"""What the cache says: what was found, what became of an answer that was offered, and its counters."""

from __future__ import annotations

from typing import Any

import attrs

from velollm.cache.eligibility import Tier
from velollm.cache.stores import Store

__all__ = ["CacheStats", "Found", "Hit", "Receipt"]


@attrs.frozen(kw_only=True)
class Hit:
    """A stored answer. `age` is in seconds; `similarity` is 1.0 unless the tier is semantic; `prompt` is the stored
    one."""

    answer: Any = attrs.field(repr=False)
    tier: Tier
    age: float
    similarity: float
    key: bytes
    prompt: str = attrs.field(default="", repr=False)

    @property
    def header(self) -> str:
        """The value of `x-velollm-cache`."""
        return f"hit-{self.tier}"


@attrs.frozen(kw_only=True)
class Found:
    """What a search found: a hit to answer with, or a would-be hit of a tier in shadow mode, or neither. `compare`: the
    semantic tier is in shadow mode, and what it would say is looked up when the answer is there (`compare`)."""

    hit: Hit | None = None
    shadow: Hit | None = None
    reason: str = ""
    compare: bool = False

    @property
    def header(self) -> str:
        """The value of `x-velollm-cache`."""
        if self.hit is not None:
            return self.hit.header
        return f"bypass; reason={self.reason}" if self.reason else "miss"


@attrs.frozen(kw_only=True)
class Receipt:
    """What became of an answer that was offered. `wait` blocks until it is where a crash cannot lose it."""

    stored: bool
    reason: str = ""
    ticket: int = 0
    _store: Store | None = attrs.field(default=None, repr=False, alias="store")

    def __bool__(self) -> bool:
        return self.stored

    def wait(self, timeout: float | None = None) -> bool:
        """True once the entry is durable; False if it was not stored or could not be written."""
        return self._store is not None and self.stored and self._store.wait(self.ticket, timeout)


@attrs.frozen(kw_only=True)
class CacheStats:
    """Counters since the start. `hits` by tier, `bypasses` and `refused` by reason; `not_compared` are questions that
    shadow mode passed over in a flood; `store` is the store's own account."""

    lookups: int
    hits: dict[str, int]
    shadow_hits: int
    not_compared: int
    misses: int
    bypasses: dict[str, int]
    stores: int
    refused: dict[str, int]
    indexed: int
    store: dict[str, Any]
