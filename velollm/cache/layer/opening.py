"""From settings to a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velollm.backend import Backend
from velollm.cache.embedder import open_embedder
from velollm.cache.layer.embedding import BackendEmbedder
from velollm.cache.response_cache import ResponseCache
from velollm.errors import ConfigError

if TYPE_CHECKING:
    from velollm.config import CacheSettings

__all__ = ["open_cache"]


def open_cache(settings: CacheSettings, backend: Backend) -> ResponseCache:
    """The cache that `settings` describe, for `backend`. Raises `ConfigError` where something it needs is not there."""
    kind, _, model = settings.embedder.partition(":")
    off = settings.semantic == "off"
    try:
        return ResponseCache(
            semantic=settings.semantic,
            size=settings.size,
            ttl=settings.ttl,
            store=settings.store,
            shared=settings.shared,
            embedder=None if off else BackendEmbedder(backend, model) if kind == "backend" else open_embedder(kind),
        )
    except ImportError as error:
        raise ConfigError(f'the store {settings.store} needs a package: pip install "velollm[redis]"') from error
