"""A GGUF file run by VeloLLM's own engine: in this process (`EngineBackend`), or in a child (`ServedEngine`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velollm.contrib.velo.backend import EngineBackend
    from velollm.contrib.velo.served import ServedEngine

__all__ = ["EngineBackend", "ServedEngine"]

MODULES = {"EngineBackend": "backend", "ServedEngine": "served"}


def __getattr__(name: str) -> Any:
    """The one loads NumPy and llama.cpp, which whoever needs the other does without."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
