"""The layers between the door and the engines, outermost last; what is switched off is not there at all."""

from __future__ import annotations

from velollm.backend import Backend
from velollm.config import Settings

__all__ = ["build"]


def build(backend: Backend, settings: Settings) -> Backend:
    """`backend` with the layers around it that `settings` ask for."""
    return backend
