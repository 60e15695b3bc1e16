"""The queue: bounded in requests and bytes, by priority, then tenant, then order of arrival. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from velollm.scheduling.fairness import TokenCounters
from velollm.scheduling.job import LEVELS, Job

__all__ = ["WaitingRoom"]

SHARE = 8.0  # a tenant may fill the queue up to 8/9 (dynamic threshold: 8 times the places that are free)


class WaitingRoom:
    """Jobs that wait. `most` and `most_bytes` bound it; a named tenant alone never fills it."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self.most_bytes = most_bytes
        self.bytes = 0
        self._levels: tuple[dict[str, OrderedDict[Job, None]], ...] = tuple({} for _ in LEVELS)
        self._counts = [0] * len(LEVELS)
        self._count = 0
        self._tenants: dict[str, int] = {}
        self.models: dict[str, int] = {}  # jobs by the name of a model on some backend

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        for level in self._levels:
            for jobs in level.values():
                yield from jobs

    def count(self, level: int) -> int:
        """How many wait at one level."""
        return self._counts[level]

    def highest(self) -> int | None:
        """The most urgent level at which anybody waits."""
        return next((level for level, count in enumerate(self._counts) if count), None)

    def fits(self, job: Job) -> bool:
        """Whether there is a place for one more."""
        free = self.most - len(self)
        if free < 1 or self.bytes + job.size > self.most_bytes:
            return False
        return not job.tenant or self._tenants.get(job.tenant, 0) < SHARE * free

    def least_urgent(self, than: int) -> Job | None:
        """The job that came last at the lowest level below `than`: the one to go when there is no place."""
        for level in range(len(LEVELS) - 1, than, -1):
            jobs = [next(reversed(queue)) for queue in self._levels[level].values()]
            if jobs:
                return max(jobs, key=lambda job: job.queued)
        return None

    def add(self, job: Job, *, front: bool = False) -> None:
        """`job` waits from now on; `front`: before all others of its level and tenant."""
        queue = self._levels[job.level].setdefault(job.tenant, OrderedDict())
        queue[job] = None
        if front:
            queue.move_to_end(job, last=False)
        self._counts[job.level] += 1
        self._count += 1
        self.bytes += job.size
        self._tenants[job.tenant] = self._tenants.get(job.tenant, 0) + 1
        for model in set(job.targets.values()):
            self.models[model] = self.models.get(model, 0) + 1

    def remove(self, job: Job) -> None:
        """`job` waits no longer."""
        level = self._levels[job.level]
        queue = level[job.tenant]
        del queue[job]
        if not queue:
            del level[job.tenant]
        self._counts[job.level] -= 1
        self._count -= 1
        self.bytes -= job.size
        _take(self._tenants, job.tenant)
        for model in set(job.targets.values()):
            _take(self.models, model)

    def in_turn(self, counters: TokenCounters) -> Iterator[Job]:
        """All jobs, those with the best right first. A conversation keeps its order within its level."""
        for level in self._levels:
            for tenant in sorted(level, key=lambda name: (counters[name], self._tenants[name])):
                seen: set[str] = set()
                for job in level[tenant]:
                    if job.conversation is not None:
                        if job.conversation in seen:
                            continue
                        seen.add(job.conversation)
                    yield job

    def aged(self, before: float) -> list[Job]:
        """Jobs that wait since `before` although somebody more urgent is here, longest first."""
        highest = self.highest()
        if highest is None:
            return []
        heads = (next(iter(queue)) for level in self._levels[highest + 1 :] for queue in level.values())
        return sorted((job for job in heads if job.queued <= before), key=lambda job: job.queued)

    def check_integrity(self) -> None:
        """Raise AssertionError when the sums do not agree with the jobs."""
        jobs = list(self)
        assert len(jobs) == len(set(jobs)) == len(self)
        assert self.bytes == sum(job.size for job in jobs)
        assert sum(self._tenants.values()) == len(jobs)
        assert all(job.state == "waiting" for job in jobs)
        assert all(queue for level in self._levels for queue in level.values())


def _take(counts: dict[str, int], key: str) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
