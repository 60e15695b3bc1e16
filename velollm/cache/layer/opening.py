"""From settings to a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velollm.cache.response_cache import ResponseCache
from velollm.errors import ConfigError

if TYPE_CHECKING:
    from velollm.config import CacheSettings

__all__ = ["open_cache"]


def open_cache(settings: CacheSettings) -> ResponseCache:
    """The cache that `settings` describe. Raises `ConfigError` where its store needs a package that is not there."""
    try:
        return ResponseCache(
            semantic=settings.semantic,
            size=settings.size,
            ttl=settings.ttl,
            store=settings.store,
            shared=settings.shared,
        )
    except ImportError as error:
        raise ConfigError(f'the store {settings.store} needs a package: pip install "velollm[redis]"') from error
