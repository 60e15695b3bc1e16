"""Requests and tokens a minute: token buckets, and the words in which OpenAI tells of them. No I/O, no clock.

A request is charged what it is expected to need when it comes, and what it really needed when it is over: a bucket may
be in debt for a while.
"""

from __future__ import annotations

import math

import attrs

__all__ = ["Bucket", "Charge", "Meter", "duration"]

MINUTE = 60.0


@attrs.define
class Bucket:
    """Holds `size` at most and fills up in a minute; `level` is what was in it at `at`, in seconds."""

    size: int
    level: float
    at: float

    def fill(self, now: float) -> float:
        """What is in it now."""
        if now > self.at:
            self.level = min(float(self.size), self.level + (now - self.at) * self.size / MINUTE)
            self.at = now
        return self.level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there, or the bucket is full; 0 when it is."""
        missing = min(amount, float(self.size)) - self.fill(now)
        return max(0.0, missing * MINUTE / self.size)

    def until_full(self, now: float) -> float:
        """Seconds until it is full."""
        return (self.size - self.fill(now)) * MINUTE / self.size


@attrs.frozen
class Charge:
    """What a request was charged, in tokens."""

    tokens: float


class Meter:
    """The buckets of one key."""

    def __init__(self, rpm: int | None, tpm: int | None, now: float) -> None:
        self.limits = (rpm, tpm)
        self.requests = None if rpm is None else Bucket(rpm, rpm, now)
        self.tokens = None if tpm is None else Bucket(tpm, tpm, now)

    def admit(self, expected: float, now: float) -> Charge | float:
        """Charge a request and its `expected` tokens; instead, the seconds to wait when it is too many."""
        waits = [0.0]
        if self.requests is not None:
            waits.append(self.requests.wait(1.0, now))
        if self.tokens is not None:
            expected = min(expected, float(self.tokens.size))
            waits.append(self.tokens.wait(max(expected, 1.0), now))
        if max(waits) > 0:
            return max(waits)
        if self.requests is not None:
            self.requests.level -= 1.0
        if self.tokens is None:
            return Charge(0.0)
        self.tokens.level -= expected
        return Charge(expected)

    def settle(self, charge: Charge, used: int, now: float) -> None:
        """The request is over: it used so many tokens, prompt and answer together."""
        if self.tokens is not None:
            self.tokens.fill(now)
            self.tokens.level = min(float(self.tokens.size), self.tokens.level + charge.tokens - used)

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's headers."""
        found = {}
        for word, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{word}"] = str(bucket.size)
                found[f"x-ratelimit-remaining-{word}"] = str(max(0, math.floor(bucket.fill(now))))
                found[f"x-ratelimit-reset-{word}"] = duration(bucket.until_full(now))
        return found


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: `20ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < MINUTE:
        return f"{math.ceil(seconds * 1000) / 1000:g}s"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"
