"""How often an engine may crash before it gets a rest. No clock: the time is an argument."""

from __future__ import annotations

import attrs

from velollm.errors import BackendError

__all__ = ["CRASH_WINDOW", "MAX_CRASHES", "Crashes"]

MAX_CRASHES = 5  # in a row, each within
CRASH_WINDOW = 60.0  # seconds of the one before
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0


@attrs.define
class Crashes:
    """Counts crashes in a row: how long to wait before the next start, and when to stop trying for a while."""

    count: int = 0
    last: float = 0.0
    words: str = ""

    @property
    def pause(self) -> float:
        """Seconds to wait before the next start."""
        return min(FIRST_PAUSE * 2 ** (self.count - 1), LONGEST_PAUSE) if self.count else 0.0

    def add(self, now: float, words: str) -> None:
        """One more, at `now` seconds of a monotonic clock; long after the one before, counting begins anew."""
        self.count = self.count + 1 if now - self.last < CRASH_WINDOW else 1
        self.last, self.words = now, words

    def check(self, now: float, name: str, engine: str) -> None:
        """Raises `BackendError` while it makes no sense to try again; `name` runs on `engine`."""
        rest = self.last + CRASH_WINDOW - now
        if rest <= 0:
            self.count = 0
        if self.count >= MAX_CRASHES:
            raise BackendError(
                f"{name}: {engine} failed {self.count} times in a row and gets a rest; at last it {self.words}",
                backend=name,
                status=503,
                retry_after=rest,
            )
