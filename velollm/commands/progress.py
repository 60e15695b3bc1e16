"""A progress bar on standard error: drawn over itself on a terminal, one line a step elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

__all__ = ["ProgressBar"]

WIDTH = 30
REDRAW_SECONDS = 0.1
MIB = 1024 * 1024


class ProgressBar:
    """Call it with what is done, bytes so far and bytes in all; as a context manager it ends its line.

    `quiet` shows nothing at all.
    """

    def __init__(self, out: TextIO | None = None, *, quiet: bool = False) -> None:
        self._out = sys.stderr if out is None else out
        self._quiet = quiet
        self._drawn = self._out.isatty()
        self._step = ""
        self._due = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes of the step `what` are done."""
        if self._quiet:
            return
        new = what != self._step
        if new:
            self.close()
            self._step = what
        if not self._drawn:
            if new:
                self._write(f"{what} ({total / MIB:.0f} MiB)\n")
            return
        now = time.monotonic()
        if new or done >= total or now >= self._due:
            self._due = now + REDRAW_SECONDS
            share = done / total if total else 1.0
            bar = "#" * round(share * WIDTH)
            self._write(f"\r{what} [{bar:<{WIDTH}}] {share:4.0%} of {total / MIB:.0f} MiB")

    def close(self) -> None:
        """End the line that stands open, if one does."""
        if self._step and self._drawn:
            self._write("\n")
        self._step = ""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
