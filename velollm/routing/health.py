"""How one backend fares: a circuit breaker with memory. No I/O, no clock of its own.

          failures in a row, or most of the last ones; unreachable; hung; far slower than the others
closed ───────────────────────────────────────────────────────────────────────────────────▶ open
   ▲                                                                                          │ a moment, or a
   └── one request goes well ── half open ◀───────────────────────────────────────────────────┘ good probe
                                   └── it fails: open again, for longer (never more than 2.5 s)
"""

from __future__ import annotations

from collections import deque

import attrs

from velollm.errors import (
    BackendError,
    BackendRefused,
    BackendUnreachable,
    Overloaded,
    RateLimited,
    UnsupportedError,
    VeloError,
)

__all__ = ["Health", "Pace", "is_failure", "rest_after"]

IN_A_ROW = 3
REMEMBERED, ENOUGH, SHARE = 20, 10, 0.5
FIRST_BREAK, LONGEST_BREAK = 1.0, 2.5  # seconds; the longest keeps readmission within three
SILENT_PROBES = 2  # so many in a row, and the backend hangs
LONGEST_REST = 30.0  # seconds that a backend's own Retry-After is heeded

PACE_PIECES = 16  # shorter answers say nothing about pace: they look slow on healthy backends
PACE_ANSWERS = 5
SLOWER = 6.0
SLOWER_SECONDS = 0.005  # a piece: below that, a busy machine is the reason rather than the backend
SLOW_BREAK = 10.0


def is_failure(error: VeloError) -> bool:
    """Whether an error says something bad about the backend, and not about the request, or about its load."""
    if isinstance(error, BackendRefused):
        return error.status >= 500 and error.status not in (501, 503)
    return isinstance(error, BackendError) and not isinstance(error, UnsupportedError)


def rest_after(error: VeloError) -> float:
    """Seconds for which a backend wants to be left alone."""
    busy = isinstance(error, Overloaded | RateLimited) or (
        isinstance(error, BackendRefused) and error.status in (429, 503)
    )
    return min(error.retry_after or 0.0, LONGEST_REST) if busy else 0.0


@attrs.define
class Health:
    """The breaker of one backend. All times are seconds of one monotonic clock.

    `running` counts the requests that it has, `heard` is when it last said anything. `draining` means: no new ones.
    """

    running: int = 0
    heard: float = 0.0
    draining: bool = False
    why: str = ""  # it is open
    _open_until: float | None = None
    _pause: float = FIRST_BREAK
    _needs_probe: bool = False
    _trial: bool = False
    _resting_until: float = 0.0
    _in_a_row: int = 0
    _silent: int = 0
    _silent_since: float | None = None
    _last: deque[bool] = attrs.field(factory=lambda: deque(maxlen=REMEMBERED))

    # ---- what it says ----

    @property
    def closed(self) -> bool:
        """Nothing stands against it."""
        return self._open_until is None

    def allows(self, now: float) -> bool:
        """Whether a new request may go there: closed and not resting, or half open and no trial under way."""
        if self.draining or now < self._resting_until:
            return False
        if self._open_until is None:
            return True
        return not self._needs_probe and not self._trial and now >= self._open_until

    def wants_probe(self, now: float, quiet: float) -> bool:
        """Whether to ask if it lives: it cannot be reached, or has been silent for `quiet` seconds of work."""
        return self._needs_probe or (self.running > 0 and now - self.heard > quiet)

    def silent_for(self, now: float) -> float:
        """Seconds since which it has not answered any probe."""
        return 0.0 if self._silent_since is None else now - self._silent_since

    # ---- what it is told ----

    def sent(self, now: float) -> None:
        """A request goes there; ends with `done`, `failed` or `left`."""
        if self.running == 0:
            self.heard = now
        self.running += 1
        if self._open_until is not None:
            self._trial = True

    def done(self, now: float) -> None:
        """It was answered, be it with a refusal."""
        self.left(now)
        self._in_a_row = 0
        self._last.append(True)
        self._close()

    def left(self, now: float) -> None:
        """The client has gone: that says nothing."""
        self.running -= 1
        self._trial = False
        self.heard = now

    def failed(self, error: VeloError, now: float) -> None:
        """It did not answer well."""
        self.left(now)
        rest = rest_after(error)
        if rest:
            self._resting_until = now + rest
        if not is_failure(error):
            if not rest:
                self._in_a_row = 0
            return
        self._in_a_row += 1
        self._last.append(False)
        if isinstance(error, BackendUnreachable):
            self._open(now, error.message, needs_probe=True)
        elif self._open_until is not None or self._in_a_row >= IN_A_ROW or self._mostly_failed():
            self._open(now, error.message, needs_probe=False)

    def slow(self, now: float, why: str) -> None:
        """It is far slower than the others."""
        self._open(now, why, needs_probe=False)
        self._open_until = now + SLOW_BREAK

    def probed(self, error: VeloError | None, now: float, *, silent: bool = False) -> None:
        """What became of a probe; `silent` when no answer came in time."""
        if error is None:
            self._silent, self._silent_since = 0, None
            if self._needs_probe:
                self._close()
            return
        if silent:
            self._silent += 1
            if self._silent_since is None:
                self._silent_since = now
            if self._silent < SILENT_PROBES:
                return
        self._open(now, error.message, needs_probe=True)

    # ---- inside ----

    def _mostly_failed(self) -> bool:
        return len(self._last) >= ENOUGH and self._last.count(False) / len(self._last) >= SHARE

    def _open(self, now: float, why: str, *, needs_probe: bool) -> None:
        if self._open_until is not None:
            self._pause = min(self._pause * 2, LONGEST_BREAK)
        self._open_until = now + self._pause
        self._needs_probe = needs_probe
        self.why = why

    def _close(self) -> None:
        self._open_until = None
        self._pause = FIRST_BREAK
        self._needs_probe = False
        self._in_a_row = 0
        self._last.clear()
        self.why = ""


@attrs.define
class Pace:
    """Seconds between two pieces of an answer, of one backend and model, averaged over its last answers."""

    seconds: float = 0.0
    answers: int = 0

    def add(self, seconds: float, pieces: int) -> None:
        """An answer: from its first piece to its last one, so that no prefill counts."""
        if pieces < PACE_PIECES or seconds <= 0:
            return
        pace = seconds / (pieces - 1)
        self.seconds = pace if self.answers == 0 else self.seconds + 0.3 * (pace - self.seconds)
        self.answers += 1

    def is_outlier(self, others: list[Pace]) -> bool:
        """Whether it is far slower than the median of the others with the same model."""
        known = sorted(other.seconds for other in others if other.answers >= PACE_ANSWERS)
        if not known or self.answers < PACE_ANSWERS:
            return False
        usual = known[len(known) // 2]
        return self.seconds > max(SLOWER * usual, usual + SLOWER_SECONDS)
