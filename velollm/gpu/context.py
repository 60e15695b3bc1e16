"""The CUDA context of a GPU. It is current for a thread, not for a process: whoever calls must have made it so."""

from __future__ import annotations

import sys
import threading
from typing import Any

__all__ = ["Context", "Held"]


class Context:
    """That of the GPU number `index`, which the thread that makes this has opened."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._threads = threading.local()
        self._threads.entered = True

    def enter(self) -> None:
        """Make it current for this thread, unless that was done before."""
        if not getattr(self._threads, "entered", False):
            from cuda.core import Device

            Device(self._index).set_current()
            self._threads.entered = True


class Held:
    """A `cuda.core.Buffer`, given back by whichever thread lets go of it last."""

    def __init__(self, context: Context, buffer: Any) -> None:
        self._context, self._buffer = context, buffer

    def __del__(self) -> None:
        if not sys.is_finalizing():  # then the driver goes, and everything with it
            self._context.enter()
            self._buffer.close()
