"""From a setting to a store: `memory`, `sqlite:PATH`, `redis://...`, `rediss://...`, `valkey://...`."""

from __future__ import annotations

from collections.abc import Callable

from velollm.cache.stores.base import Store
from velollm.cache.stores.memory import MemoryStore

__all__ = ["open_store"]


def open_store(setting: str, size: int, clock: Callable[[], float]) -> Store:
    """Open the store that a setting names. Raises ValueError for an unknown one, ImportError where redis is missing."""
    kind, _, rest = setting.partition(":")
    if setting == "memory":
        return MemoryStore(size, clock)
    if kind == "sqlite" and rest:
        from velollm.cache.stores.sqlite import SqliteStore

        return SqliteStore(rest, size, clock)
    if kind in ("redis", "rediss", "valkey", "unix"):
        from velollm.cache.stores.redis import RedisStore

        return RedisStore(setting.replace("valkey:", "redis:", 1), size, clock)
    raise ValueError(f"store: {setting!r} is none of memory, sqlite:PATH, redis://HOST")
