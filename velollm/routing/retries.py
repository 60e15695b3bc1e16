"""How often a failed request is tried again. No I/O.

Retries are paid from a purse that good answers fill slowly: a single hiccup is mended, while an engine that refuses
everybody is not asked twice by everybody.
"""

from __future__ import annotations

from velollm.errors import BackendRefused, VeloError

__all__ = ["MOST_ATTEMPTS", "Purse", "may_retry", "pause_before"]

MOST_ATTEMPTS = 3
PAUSES = (0.2, 0.5)
LONGEST_WAIT = 1.0


class Purse:
    """Credit for retries: `most` at the beginning and at most, `share` more with each good answer, one off a retry."""

    def __init__(self, most: float = 4.0, share: float = 0.1) -> None:
        self._most = most
        self._share = share
        self._credit = most

    def earn(self) -> None:
        """A request was answered."""
        if self._credit < self._most:
            self._credit = min(self._most, self._credit + self._share)

    def spend(self) -> bool:
        """Take the price of one retry; False when there is not enough."""
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


def may_retry(error: VeloError) -> bool:
    """Whether nothing was done yet, so that asking again, here or elsewhere, does no harm."""
    return error.retryable or (isinstance(error, BackendRefused) and error.status == 503)


def pause_before(attempt: int, error: VeloError) -> float | None:
    """Seconds to wait before the same backend is asked for the `attempt`th time (2 is the first retry).

    None when it is not worth waiting for: it said itself that it takes longer.
    """
    wanted = error.retry_after or 0.0
    if wanted > LONGEST_WAIT:
        return None
    return max(PAUSES[min(attempt - 2, len(PAUSES) - 1)], wanted if wanted < LONGEST_WAIT else 0.0)
