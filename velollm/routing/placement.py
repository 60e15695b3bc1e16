"""The policies of routing: which of the backends that have the model, and a free slot, a request goes to. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf

from velollm.routing.affinity import PrefixTable, RecentTable
from velollm.scheduling.dispatcher import Placement
from velollm.scheduling.job import Job
from velollm.scheduling.lane import Lane

__all__ = ["LeastLoaded", "PrefixAffinity", "RoundRobin", "Weighted", "placement"]

MUCH_SLOWER = 2.0  # below this ratio of paces,
LOST_SECONDS = 0.05  # or this difference for a request, chance may be the reason
PRIOR_PREFILL = 0.001  # seconds per token of a prompt, before anything was measured
PATIENCE = 8.0  # times the prefill that it saves, a request waits for its home
SESSION_TOKENS = 512  # what a session is thought to have in a cache beside its prompt
SESSION_HOLDS = 2.0  # and, with a session of its own, so many times the time that a slot is held
GUARD_TOKENS = 8.0  # tokens more in flight than elsewhere, for each that is saved
GUARD_SHARE = 1.5
MOST_SESSIONS = 16384
RECENT_CONVERSATIONS = 256


class LeastLoaded:
    """To where the fewest tokens are in flight, for its weight and its pace. A session stays where it was."""

    def __init__(self) -> None:
        self._sessions = RecentTable(MOST_SESSIONS)

    def prepare(self, job: Job, lanes: Sequence[Lane]) -> None:
        """Find the home of its session."""
        if len(lanes) < 2 or job.conversation is None:
            return
        home = self._sessions.get((job.tenant, job.conversation))
        lane = next((lane for lane in lanes if lane.name == home), None)
        if lane is not None:
            job.home = lane.name
            job.saves = job.prompt_tokens + SESSION_TOKENS
            hold = lane.pace(job.targets[lane.name]).hold(job.prompt_tokens, job.expected_tokens)
            job.patience = max(_patience(job, lane), SESSION_HOLDS * hold)

    def choose(self, job: Job, free: Sequence[Lane], lanes: Sequence[Lane], now: float) -> Lane | None:
        """Its home, or wait for it, or the least loaded."""
        if len(lanes) == 1:
            return free[0]
        if job.home is not None:
            home = next((lane for lane in lanes if lane.name == job.home), None)
            if home is not None and not _overloaded(home, lanes, job):
                if home in free:
                    return home
                if now - job.queued < job.patience:
                    return None
        return self._elsewhere(job, free)

    def placed(self, job: Job, lane: Lane) -> None:
        """Remember its session's home."""
        if job.conversation is not None and len(job.targets) > 1:
            self._sessions.put((job.tenant, job.conversation), lane.name)

    def _elsewhere(self, job: Job, free: Sequence[Lane]) -> Lane:
        return least_loaded(job, free)


class PrefixAffinity(LeastLoaded):
    """To where the longest beginning of its prompt is cached; new conversations go where the fewest are."""

    def __init__(self) -> None:
        super().__init__()
        self._prefixes = PrefixTable()
        self._conversations = RecentTable(RECENT_CONVERSATIONS)

    def prepare(self, job: Job, lanes: Sequence[Lane]) -> None:
        """Find the home of its prompt, or else of its session."""
        if len(lanes) < 2:
            return
        found = self._prefixes.find(job.prefix, job.shared)
        lane = next((lane for lane in lanes if found is not None and lane.name == found[0]), None)
        if found is None or lane is None:
            super().prepare(job, lanes)
            return
        job.home = lane.name
        job.saves = job.block_tokens[found[1] - 1]
        job.patience = _patience(job, lane)

    def placed(self, job: Job, lane: Lane) -> None:
        """Remember the blocks of its prompt."""
        super().placed(job, lane)
        if len(job.targets) > 1 and job.prefix:
            self._prefixes.record(job.prefix, lane.name)
            self._conversations.put(job.prefix[min(job.shared, len(job.prefix) - 1)], lane.name)

    def _elsewhere(self, job: Job, free: Sequence[Lane]) -> Lane:
        if job.home is None and job.prefix:
            counts = self._conversations.counts
            fewest = min(counts.get(lane.name, 0) / lane.weight for lane in free)
            free = [lane for lane in free if counts.get(lane.name, 0) / lane.weight == fewest]
        return least_loaded(job, free)


class RoundRobin:
    """To one after the other."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._turn = 0

    def prepare(self, job: Job, lanes: Sequence[Lane]) -> None:
        """Nothing to find out."""

    def choose(self, job: Job, free: Sequence[Lane], lanes: Sequence[Lane], now: float) -> Lane | None:
        """The one whose last turn is longest ago."""
        return min(free, key=lambda lane: self._last.get(lane.name, -1))

    def placed(self, job: Job, lane: Lane) -> None:
        """It had its turn."""
        self._turn += 1
        self._last[lane.name] = self._turn


class Weighted:
    """In proportion to weights, evenly spread (nginx's smooth weighted round robin)."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def prepare(self, job: Job, lanes: Sequence[Lane]) -> None:
        """Nothing to find out."""

    def choose(self, job: Job, free: Sequence[Lane], lanes: Sequence[Lane], now: float) -> Lane | None:
        """The one with the most credit; each choice gives all of them their weight, and takes the sum from one."""
        credit = self._credit
        for lane in free:
            credit[lane.name] = credit.get(lane.name, 0.0) + lane.weight
        chosen = max(free, key=lambda lane: credit[lane.name])
        credit[chosen.name] -= sum(lane.weight for lane in free)
        return chosen

    def placed(self, job: Job, lane: Lane) -> None:
        """Nothing to remember."""


def least_loaded(job: Job, free: Sequence[Lane]) -> Lane:
    """The lane where what is in flight, and `job` with it, will be done first."""
    if len(free) == 1:
        return free[0]
    targets, size = job.targets, job.prompt_tokens + job.expected_tokens
    paces = [lane.pace(targets[lane.name]).seconds_per_token for lane in free]
    fastest = min(paces)
    if not fastest:  # nothing was measured there
        fastest = min((pace for pace in paces if pace), default=inf)
    slow = max(MUCH_SLOWER * fastest, fastest + LOST_SECONDS / job.expected_tokens)
    best, least = free[0], (inf, 0)
    for lane, pace in zip(free, paces, strict=True):
        tokens = (lane.tokens + size) / lane.weight
        load = (tokens * pace / fastest if pace > slow else tokens, len(lane.running))
        if load < least:
            best, least = lane, load
    return best


def _patience(job: Job, lane: Lane) -> float:
    pace = lane.pace(job.targets[lane.name]).prefill_seconds or PRIOR_PREFILL
    return PATIENCE * pace * job.saves


def _overloaded(home: Lane, lanes: Sequence[Lane], job: Job) -> bool:
    """Whether so much more is in flight there than elsewhere that what is saved is not worth it."""
    least = min((lane.tokens / lane.weight for lane in lanes if lane is not home), default=inf)
    return home.tokens / home.weight > GUARD_SHARE * least + GUARD_TOKENS * job.saves


POLICIES: Mapping[str, Callable[[], Placement]] = {
    "least-loaded": LeastLoaded,
    "prefix": PrefixAffinity,
    "round-robin": RoundRobin,
    "weighted": Weighted,
    "complexity": LeastLoaded,
}


def placement(policy: str) -> Placement:
    """The policy of this name."""
    return POLICIES[policy]()
