"""What those are told who are not let in, and when to come back: from what was measured, in whole seconds. No I/O."""

from __future__ import annotations

import math

from velollm.errors import Overloaded

__all__ = ["deadline_unreachable", "queue_full", "queue_timeout"]

LONGEST_RETRY = 600


def queue_full(waiting: int, wait: float) -> Overloaded:
    """There is no place left; `wait` is how long the queue needs, in seconds."""
    return Overloaded(f"{waiting} requests are waiting already; come back later", retry_after=_whole(wait))


def queue_timeout(wait: float) -> Overloaded:
    """It has waited as long as it may, and would for `wait` seconds more."""
    return Overloaded(
        "the request waited for its turn as long as it may (queue_timeout)",
        code="queue_timeout",
        retry_after=_whole(wait),
    )


def deadline_unreachable(first: float, left: float) -> Overloaded:
    """Its first token would come in `first` seconds, and is wanted in `left`."""
    return Overloaded(
        f"the first token would come in {first:.1f} s, and is wanted in {max(left, 0.0):.1f} s",
        code="deadline_unreachable",
        retry_after=_whole(first - left),
    )


def _whole(seconds: float) -> int:
    return max(1, min(LONGEST_RETRY, math.ceil(seconds)))
