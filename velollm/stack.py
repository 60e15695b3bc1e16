"""The layers between the door and the engines, outermost last; what is switched off is not there at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velollm.backend import Backend

if TYPE_CHECKING:
    from velollm.config import Settings
    from velollm.observability import Metrics

__all__ = ["build"]


def build(backend: Backend, settings: Settings, metrics: Metrics | None = None) -> Backend:
    """`backend` with the layers around it that `settings` ask for; `metrics` get the figures of each."""
    if settings.toolcalls.mode != "off":
        backend = _mend_tool_calls(backend, settings, metrics)
    return backend


def _mend_tool_calls(backend: Backend, settings: Settings, metrics: Metrics | None) -> Backend:
    from velollm.toolcalls.layer import ToolCallLayer

    observer = None
    if metrics is not None:
        from velollm.observability.toolcalls import ToolCallCounts

        observer = ToolCallCounts(metrics.registry).add
    chosen = settings.toolcalls
    return ToolCallLayer(backend, mode=chosen.mode, reask=chosen.reask, dedupe=chosen.dedupe, observer=observer)
