"""The layers between the door and the engines, outermost last; what is switched off is not there at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velollm.backend import Backend, layers

if TYPE_CHECKING:
    from velollm.config import Settings
    from velollm.observability import Metrics

__all__ = ["build"]


def build(backend: Backend, settings: Settings, metrics: Metrics | None = None) -> Backend:
    """`backend` with the layers around it that `settings` ask for; `metrics` get the figures of each.

    What is a stack already keeps its own way with prompts that are too long, and with calls that can be joined.
    """
    from velollm.batching import BatchingLayer
    from velollm.truncation import TruncationLayer

    if not any(isinstance(layer, TruncationLayer) for layer in layers(backend)):
        backend = TruncationLayer(BatchingLayer(backend), settings.scheduling.truncation)
    if settings.toolcalls.mode != "off":
        backend = _mend_tool_calls(backend, settings, metrics)
    if settings.cache.enabled:
        backend = _keep_answers(backend, settings, metrics)
    return backend


def _mend_tool_calls(backend: Backend, settings: Settings, metrics: Metrics | None) -> Backend:
    from velollm.toolcalls.layer import ToolCallLayer

    observer = None
    if metrics is not None:
        from velollm.observability.toolcalls import ToolCallCounts

        observer = ToolCallCounts(metrics.registry).add
    chosen = settings.toolcalls
    return ToolCallLayer(backend, mode=chosen.mode, reask=chosen.reask, dedupe=chosen.dedupe, observer=observer)


def _keep_answers(backend: Backend, settings: Settings, metrics: Metrics | None) -> Backend:
    from velollm.cache.layer import CacheLayer
    from velollm.cache.layer.opening import open_cache

    cache = open_cache(settings.cache, backend)
    observer = None
    if metrics is not None:
        from velollm.observability.cache import CacheCounts, StoreState

        StoreState(metrics.registry, cache)
        observer = CacheCounts(metrics.registry).add
    return CacheLayer(
        backend,
        cache,
        semantic={name: model.semantic_cache for name, model in settings.models.items() if model.semantic_cache},
        tenant_header=settings.cache.tenant_header,
        observer=observer,
    )
