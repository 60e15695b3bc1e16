"""How long a backend takes: learned from what was served, asked for what waits. No I/O."""

from __future__ import annotations

from collections import deque

from velollm.scheduling.job import Job

__all__ = ["Outputs", "Pace", "work"]

SHARE = 0.2  # of a new sample in a running mean
PREFILL_WEIGHT = 0.1  # of a prompt token against a generated one, in time
PRIOR_HOLD = 1.0  # seconds for which a slot is held, before anything was measured
REMAINING = 0.25  # of the time held so far: what is left of a request that outlasts its estimate
RECENT = 16
ENOUGH = 3
MUCH_LATER = 5.0


def work(prompt: int, output: int) -> float:
    """The size of a request in generated tokens: what the time for which it holds a slot is proportional to."""
    return PREFILL_WEIGHT * prompt + output + 1.0


class Pace:
    """The pace of one model on one backend.

    Seconds that a slot is *held* for a token of work say more than the speed of decoding: they include prefill, waiting
    inside the engine, and what other requests cost.
    """

    __slots__ = ("_first", "_held", "_prefill", "_recent", "_work")

    def __init__(self) -> None:
        self._held = 0.0
        self._work = 0.0
        self._first = 0.0
        self._prefill = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    @property
    def measured(self) -> bool:
        """Whether a request has ended here."""
        return self._work > 0.0

    @property
    def seconds_per_token(self) -> float:
        """Seconds for which a slot is held, per token of work; 0 before anything was measured."""
        return self._held / self._work if self._work else 0.0

    @property
    def prefill_seconds(self) -> float:
        """Seconds to the first byte, per token of the prompt."""
        return self._first / self._prefill if self._prefill else 0.0

    def ended(self, held: float, prompt: int, output: int) -> None:
        """A slot was held for `held` seconds by a request with `prompt` and `output` tokens."""
        size = work(prompt, output)
        share = SHARE if self._work else 1.0
        if 2.0 * held * self._work < self._held * size:
            share = max(share, 0.5)  # twice as quick as was thought: the first ones waited for the engine to get going
        self._held += share * (held - self._held)
        self._work += share * (size - self._work)

    def began(self, seconds: float, prompt: int) -> None:
        """The first event of a stream came `seconds` after its start."""
        share = SHARE if self._prefill else 1.0
        self._first += share * (seconds - self._first)
        self._prefill += share * (max(prompt, 1) - self._prefill)
        self._recent.append(seconds / max(prompt, 1))

    def hold(self, prompt: int, output: int) -> float:
        """Seconds for which such a request will hold its slot."""
        return self.seconds_per_token * work(prompt, output) if self._work else PRIOR_HOLD

    def first_byte(self, job: Job) -> float:
        """Seconds from its start to its first byte; for an answer in one piece, that is its end."""
        if not job.stream:
            return self.hold(job.prompt_tokens, job.expected_tokens) if self._work else 0.0
        return self.prefill_seconds * job.prompt_tokens

    def quickest(self, job: Job) -> float:
        """The same at best, as of late: what a request that is alone may hope for."""
        if not job.stream:
            return 0.5 * self.first_byte(job)
        return 0.5 * min(self._recent, default=0.0) * job.prompt_tokens

    def usual(self, job: Job) -> float | None:
        """Seconds to its first byte where nothing holds it up; None before anything was measured."""
        if not job.stream:
            return self.hold(job.prompt_tokens, job.expected_tokens) if self._work else None
        return min(self._recent) * job.prompt_tokens if self._recent else None

    def was_queued(self, job: Job, took: float) -> bool:
        """Whether a first byte that `took` so long had to wait for a slot inside the engine."""
        if len(self._recent) < ENOUGH or not self._work:
            return False
        usual = min(self._recent) * job.prompt_tokens
        return took > MUCH_LATER * usual and took > 0.3 * self.hold(job.prompt_tokens, job.expected_tokens)

    def remaining(self, job: Job, now: float) -> float:
        """Seconds for which a running job will still hold its slot."""
        elapsed = now - job.granted
        return max(self.hold(job.prompt_tokens, job.expected_tokens) - elapsed, REMAINING * elapsed)


class Outputs:
    """How many tokens answers have: a running mean, and the share of `max_tokens` that is used."""

    __slots__ = ("_mean", "_share")

    FIRST_GUESS = 256

    def __init__(self) -> None:
        self._mean = 0.0
        self._share = 1.0

    def expect(self, limit: int | None) -> int:
        """Tokens that a request with this `max_tokens` will produce."""
        if limit is None:
            return round(self._mean) or self.FIRST_GUESS
        return max(1, round(limit * self._share))

    def ended(self, limit: int | None, produced: int) -> None:
        """An answer had `produced` tokens."""
        self._mean = produced if not self._mean else self._mean + SHARE * (produced - self._mean)
        if limit:
            self._share += SHARE * (min(produced / limit, 1.0) - self._share)
