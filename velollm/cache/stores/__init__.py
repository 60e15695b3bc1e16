"""Where answers are kept: in memory, in a SQLite file, in Redis or Valkey. One contract, `Store`."""

from velollm.cache.selection import Selection
from velollm.cache.stores.base import Store, StoreStats
from velollm.cache.stores.memory import MemoryStore
from velollm.cache.stores.open import open_store

__all__ = ["MemoryStore", "Selection", "Store", "StoreStats", "open_store"]
