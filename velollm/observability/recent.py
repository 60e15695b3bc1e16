"""The requests of the last while, kept in memory for whoever looks: never what was said in them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from velollm.observability.record import Record

__all__ = ["RecentRequests"]

KEPT = 500
WINDOW_SECONDS = 60.0


class RecentRequests:
    """The last 500 requests; `clock` gives Unix seconds."""

    def __init__(self, *, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self._kept: deque[tuple[float, Record]] = deque(maxlen=kept)  # with the time at which each ended
        self._clock = clock
        self._begun = clock()

    def add(self, record: Record) -> None:
        """A request has ended."""
        self._kept.append((self._clock(), record))

    def show(self, key: str | None = None) -> list[dict[str, Any]]:
        """Newest first, as the log has them, with `at`: when each ended, in Unix seconds; with `key`, its own alone."""
        return [
            {"at": round(at, 3), **record.fields()}
            for at, record in reversed(self._kept)
            if key is None or record.key == key
        ]

    def rates(self) -> dict[str, float]:
        """Generations and tokens a second over the last minute, or as much of it as is kept."""
        now = self._clock()
        since = max(now - WINDOW_SECONDS, self._begun)
        if len(self._kept) == self._kept.maxlen:
            since = max(since, self._kept[0][0])
        recent = [record for at, record in self._kept if at >= since and record.model]
        seconds = max(now - since, 1.0)
        return {
            "requests_per_second": round(len(recent) / seconds, 2),
            "prompt_tokens_per_second": round(sum(one.prompt_tokens or 0 for one in recent) / seconds, 1),
            "generation_tokens_per_second": round(sum(one.completion_tokens or 0 for one in recent) / seconds, 1),
        }
