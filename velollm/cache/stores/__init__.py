"""Where answers are kept: in memory, in a SQLite file, in Redis or Valkey. One contract, `Store`."""

from .base import Selection, Store, StoreStats
from .memory import MemoryStore
from .open import open_store

__all__ = ["MemoryStore", "Selection", "Store", "StoreStats", "open_store"]
