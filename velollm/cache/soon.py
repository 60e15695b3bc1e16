"""What is to be kept in a moment. Answers that are kept one after the other take less time than those kept in between
other work, and a request does not wait for it; whoever might be answered from them has them kept at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from velollm.cache.request import Request

__all__ = ["Soon"]


class Soon:
    """A queue of answers that wait to be kept. Any thread may use it."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._sketches: set[int] = set()

    def add(self, request: Request, keep: Callable[[], None]) -> bool:
        """Have `keep` called in a moment; whether it is the first that waits."""
        self._sketches.add(request.sketch)
        self._calls.append(keep)
        return len(self._calls) == 1

    def concerns(self, request: Request) -> bool:
        """Whether what waits could answer a request."""
        return bool(self._calls) and request.sketch in self._sketches

    def settle(self, most: int | None = None) -> bool:
        """Have all kept now, or the first `most`, in the order in which they came; whether more of them wait."""
        for _ in range(len(self._calls) if most is None else most):
            try:
                keep = self._calls.popleft()
            except IndexError:  # there were fewer, or another thread was quicker
                break
            keep()
        if not self._calls:
            self._sketches.clear()
        return bool(self._calls)
