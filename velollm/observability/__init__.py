"""What can be seen from outside: metrics under vLLM's names, one log line for each request, `server-timing`.

A program that only mounts VeloLLM keeps records without prometheus-client: what a name needs is imported on use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velollm.observability.layer import ObserveLayer
    from velollm.observability.metrics import Metrics

__all__ = ["Metrics", "ObserveLayer"]

_HOME = {"Metrics": "velollm.observability.metrics", "ObserveLayer": "velollm.observability.layer"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
