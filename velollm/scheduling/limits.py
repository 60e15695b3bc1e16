"""How many requests a backend is given at once. No I/O."""

from __future__ import annotations

import math

__all__ = ["AdaptiveLimit"]

FIRST = 16.0
LEAST = 1.0
FLOOR = 8.0  # slower tokens alone lower the limit no further: they have many causes, and most engines batch
MOST = 256.0
TOLERANCE = 2.0  # how much slower a token may get before fewer are sent: batching costs each a little
SMOOTHING = 0.2
CEILING_SECONDS = 60.0  # so long it is remembered that an engine queued what it was given
FADE = 1.0002  # the best pace is forgotten slowly, for an engine can get slower for good


class AdaptiveLimit:
    """A limit found by the gradient of time per token, where an engine does not say how many slots it has.

    After Netflix's concurrency-limits (Gradient2): the limit grows by its square root while requests that run together
    are hardly slower than alone, and shrinks with the ratio of the best pace to the present one when they queue up
    inside the engine. Time per token takes the place of latency, because answers differ in length. A first token that
    came only when others had ended says outright that there were more requests than slots; only that sign brings the
    limit down to what an engine with few slots can take.
    """

    __slots__ = ("_best", "_ceiling", "_limit", "_until")

    def __init__(self, first: float = FIRST) -> None:
        self._limit = first
        self._best = math.inf
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

    def sample(self, seconds_per_token: float, running: int) -> None:
        """A request held its slot for so long per token, while `running` were running, itself among them."""
        if seconds_per_token <= 0.0:
            return
        self._best = min(self._best * FADE, seconds_per_token)
        gradient = max(0.5, min(1.0, TOLERANCE * self._best / seconds_per_token))
        if gradient == 1.0 and running < self._limit / 2:
            return  # not used: nothing is learned about more
        floor = min(FLOOR, self._limit)
        wanted = self._limit * gradient + (math.sqrt(self._limit) if gradient == 1.0 else 0.0)
        self._limit += SMOOTHING * (wanted - self._limit)
        self._limit = max(floor, min(MOST, self._limit))
