"""Measures what answers requests: `benchmark()`, and what `velollm bench` prints, saves, compares and draws."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velollm.bench.running import Plan, benchmark

__all__ = ["Plan", "benchmark"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("velollm.bench.running"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
