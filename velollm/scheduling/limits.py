"""How many requests a backend is given at once. No I/O."""

from __future__ import annotations

import math

__all__ = ["AdaptiveLimit"]

FIRST = 16.0
LEAST = 1.0
MOST = 256.0
GROWTH = 0.2  # of its square root, for each answer that came while the limit was in use
CEILING_SECONDS = 60.0  # so long it is remembered that an engine queued what it was given


class AdaptiveLimit:
    """A limit found by trial, where an engine does not say how many slots it has.

    It grows by its square root, as in Netflix's concurrency-limits (Gradient2), while it is in use, and falls below the
    number that was running when a request had to queue inside the engine: its first token came only when others had
    ended. The pace of tokens does not count: it differs with the model, the prompt and the neighbours, and an engine
    that batches is a little slower with each and yet better off with all of them.
    """

    __slots__ = ("_ceiling", "_limit", "_until")

    def __init__(self, first: float = FIRST) -> None:
        self._limit = first
        self._ceiling = MOST
        self._until = -math.inf

    def value(self, now: float) -> int:
        """Requests at once."""
        return int(self._limit if now > self._until else min(self._limit, self._ceiling))

    def queued(self, running: int, now: float) -> None:
        """One of `running` requests had to wait inside the engine."""
        self._ceiling = max(LEAST, running - 1.0)
        self._until = now + CEILING_SECONDS
        self._limit = min(self._limit, self._ceiling + 1.0)

    def answered(self, running: int) -> None:
        """A whole answer was given, while `running` requests were running, that one among them."""
        if running >= self._limit / 2:  # otherwise nothing is learned about more
            self._limit = min(MOST, self._limit + GROWTH * math.sqrt(self._limit))
