"""Who goes when, and where: the queue and the slots of all backends in one place, because the two are one decision.

    submit ──▶ waiting ──dispatch──▶ running ──answered, done──▶ done
      │           │ ▲                   │
      ▼           ▼ └─────yielded───────┘ (preempted: to the front of its level)
    refused    refused, withdrawn

No I/O, no clock, no timers: time comes in as an argument, and what is to be done comes out as steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Protocol, TypeAlias

import attrs

from velollm.errors import Overloaded
from velollm.scheduling.fairness import TokenCounters
from velollm.scheduling.job import BATCH, INTERACTIVE, Job
from velollm.scheduling.lane import Lane
from velollm.scheduling.pace import Outputs
from velollm.scheduling.refusals import deadline_unreachable, queue_full, queue_timeout
from velollm.scheduling.waiting import WaitingRoom

__all__ = ["Dispatcher", "Grant", "Placement", "Preempt", "Refuse", "Step"]

AGED_SHARE = 4  # aged work holds at most one slot in so many
MARGIN = 1.15  # on estimated waiting: who is let in should make it
CERTAIN = 0.8  # of the time to the first byte, for one whose turn has come: it is refused when even that is too long
SOON = 0.05  # seconds: a slot that is free so soon is not worth a preemption
RECHECK_SECONDS = 0.05  # while there is room that those who wait do not take yet
MOST_PREEMPTIONS = 3
MOST_MODELS = 1024


class Placement(Protocol):
    """Where a job goes: a policy of routing."""

    def prepare(self, job: Job, lanes: Sequence[Lane]) -> None:
        """`job` has come; `lanes` have its model. May name its `home`, what that saves, and its patience."""
        ...

    def choose(self, job: Job, free: Sequence[Lane], lanes: Sequence[Lane], now: float) -> Lane | None:
        """One of `free`, which is not empty; None to wait for another one of `lanes`."""
        ...

    def placed(self, job: Job, lane: Lane) -> None:
        """`job` has started there."""
        ...


@attrs.frozen
class Grant:
    """The job starts on `job.lane`."""

    job: Job


@attrs.frozen
class Refuse:
    """The job does not start at all."""

    job: Job
    error: Overloaded


@attrs.frozen
class Preempt:
    """The job is to give its slot back; `yielded` is called when it has."""

    job: Job


Step: TypeAlias = Grant | Refuse | Preempt


class Dispatcher:
    """Holds the queue and the slots.

    `max_queue` and `max_queue_bytes` bound what waits; `ageing` is how long less urgent work waits for more urgent work
    at most, `quantum` how long a backend stays with one model while another one is waited for, both in seconds.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        max_queue: int = 512,
        max_queue_bytes: int = 256 << 20,
        ageing: float = 30.0,
        quantum: float = 5.0,
    ) -> None:
        self.placement = placement
        self.waiting = WaitingRoom(max_queue, max_queue_bytes)
        self.counters = TokenCounters()
        self.lanes: dict[str, Lane] = {}
        self.preemptions = 0
        self._ageing = ageing
        self._quantum = quantum
        self._outputs: dict[str, Outputs] = {}
        self._checks: list[tuple[float, int, Job]] = []  # when a waiting job must be looked at, soonest first
        self._number = count()
        self._preempting = 0

    # ---- backends ----

    def add_lane(
        self,
        name: str,
        *,
        limit: int | None = None,
        weight: float = 1.0,
        usable: Callable[[float], bool] = lambda now: True,
    ) -> Lane:
        """One more backend; see `Lane`."""
        lane = self.lanes[name] = Lane(name, limit=limit, weight=weight, quantum=self._quantum, usable=usable)
        return lane

    # ---- the life of a job ----

    def submit(self, job: Job, now: float) -> list[Step]:
        """`job` has come. Raises `Overloaded` when it is refused at once; the steps may concern others as well."""
        job.queued = now
        job.expected_tokens = self._expect(job)
        lanes = self._lanes(job, now)
        if len(lanes) > 1:
            self.placement.prepare(job, lanes)
        self.counters.enter(job.tenant)
        try:
            if not self.waiting:
                lane = self._place(job, now, lanes)
                if lane is not None:
                    self._check_alone(job, lane, now)
                    self._start(job, lane, now)
                    return [Grant(job)]
            if job.deadline is not None:
                self._check_deadline(job, lanes, now)
            steps = self._make_place(job, now)
        except Overloaded:
            job.state = "done"
            self.counters.leave(job.tenant)
            raise
        self._wait(job, now)
        return steps + self.dispatch(now)

    def answered(self, job: Job, now: float) -> None:
        """The first event of its answer came."""
        if job.answered is None and job.state == "running":
            job.answered = now
            self._lane(job).answered(job, now)

    def done(self, job: Job, now: float, *, complete: bool = True, load: float | None = None) -> list[Step]:
        """`job` is over: answered, failed, or given up by its client, whether it was waiting or running.

        `complete` says that a whole answer was given, with `job.produced` tokens; `load` is how long the engine says it
        loaded the model, in seconds.
        """
        if job.state == "waiting":
            self._leave_queue(job)
        elif job.state == "running":
            lane = self._lane(job)
            if complete:
                self._learn(job, lane, now, load)
            self._vacate(job, lane, now)
        elif job.state == "done":
            return []
        job.state = "done"
        self.counters.leave(job.tenant)
        return self.dispatch(now)

    def yielded(self, job: Job, now: float, *, preempted: bool = True) -> list[Step]:
        """`job` has given its slot back and waits for another, before all others of its level and tenant."""
        self._vacate(job, self._lane(job), now)
        if preempted:
            job.preemptions += 1
            job.pinned = job.lane
            self.preemptions += 1
        if job.answered is not None:  # its client has seen it begin
            job.expires = job.deadline = job.answered = None
        job.queued = now
        job.expected_tokens = self._expect(job)
        self._wait(job, now, front=True)
        return self.dispatch(now)

    # ---- decisions ----

    def dispatch(self, now: float) -> list[Step]:
        """Everything that can be decided now."""
        if not self.waiting:
            return []
        steps: list[Step] = list(self._expired(now))
        while self.waiting and self._has_room(now):
            found = self._next(now)
            if found is None:
                break
            job, lane = found
            self._leave_queue(job)
            late = job.deadline is not None and now + CERTAIN * lane.pace(job.model).first_byte(job) > job.deadline
            if late:
                steps.append(self._refuse(job, self._unreachable(job, now)))
            else:
                self._start(job, lane, now)
                steps.append(Grant(job))
        if self.waiting.count(INTERACTIVE):
            steps += self._preemptions(now)
        return steps

    def next_check(self, now: float) -> float | None:
        """When to dispatch again if nothing happens until then; None when there is no need to."""
        if not self.waiting:
            return None
        while self._checks and self._checks[0][2].state != "waiting":
            heapq.heappop(self._checks)
        times = [self._checks[0][0]] if self._checks else []
        if self._has_room(now):
            times.append(now + RECHECK_SECONDS)
        return min(times, default=None)

    def wait_seconds(self, job: Job, now: float) -> float:
        """How long `job` would wait for its turn, if it came now, or if it waits: for how much longer.

        From the time for which slots are held: what runs and what comes before it, over the slots. Tenants take turns,
        so that of another one's work only as much counts as it will be served until then.
        """
        lanes = self._lanes(job, now)
        slots = sum(lane.capacity(job.targets[lane.name], now) for lane in lanes)
        held = sum(lane.pace(other.model).remaining(other, now) for lane in lanes for other in lane.running)
        return (held + self._ahead(job, lanes, now)) / max(slots, 1)

    # ---- inside: the queue ----

    def _expect(self, job: Job) -> int:
        outputs = self._outputs.get(job.model or next(iter(job.targets.values())))
        left = None if job.max_tokens is None else max(1, job.max_tokens - job.produced)
        return (outputs or Outputs()).expect(left)

    def _wait(self, job: Job, now: float, *, front: bool = False) -> None:
        job.state = "waiting"
        self.waiting.add(job, front=front)
        self._home(job, 1)
        times = [time for time in (job.expires, job.deadline) if time is not None]
        if times:
            if len(self._checks) > 2 * len(self.waiting) + 64:
                self._checks = [entry for entry in self._checks if entry[2].state == "waiting"]
                heapq.heapify(self._checks)
            heapq.heappush(self._checks, (min(times), next(self._number), job))

    def _leave_queue(self, job: Job) -> None:
        self.waiting.remove(job)
        self._home(job, -1)

    def _home(self, job: Job, step: int) -> None:
        if job.home is not None and job.home in self.lanes:
            self.lanes[job.home].waiting_for += step

    def _make_place(self, job: Job, now: float) -> list[Step]:
        """A place in the queue, if need be that of somebody less urgent. Raises `Overloaded`."""
        if self.waiting.fits(job):
            return []
        other = self.waiting.least_urgent(job.level)
        if other is None or self.waiting.bytes - other.size + job.size > self.waiting.most_bytes:
            raise self._full(job, now)
        error = self._full(other, now)
        self._leave_queue(other)
        return [self._refuse(other, error)]

    def _expired(self, now: float) -> Iterator[Step]:
        while self._checks and self._checks[0][0] <= now:
            job = heapq.heappop(self._checks)[2]
            timed_out = job.expires is not None and job.expires <= now
            late = job.deadline is not None and job.deadline <= now
            if job.state != "waiting" or not (timed_out or late):  # an answered job that waits again has no limits
                continue
            error = self._timed_out(job, now) if timed_out else self._unreachable(job, now)
            self._leave_queue(job)
            yield self._refuse(job, error)

    def _refuse(self, job: Job, error: Overloaded) -> Refuse:
        job.state = "done"
        self.counters.leave(job.tenant)
        return Refuse(job, error)

    # ---- inside: slots ----

    def _lane(self, job: Job) -> Lane:
        assert job.lane is not None
        return self.lanes[job.lane]

    def _lanes(self, job: Job, now: float) -> list[Lane]:
        """The backends it may go to: those that are open and have not failed it, or else the rest."""
        if len(job.targets) == 1:
            (name,) = job.targets
            return [self.lanes[name]]
        known = [self.lanes[name] for name in job.targets]
        if job.pinned is not None and self.lanes[job.pinned].usable(now) and job.pinned not in job.avoid:
            return [self.lanes[job.pinned]]
        fresh = ([lane for lane in known if lane.name not in job.avoid] or known) if job.avoid else known
        return [lane for lane in fresh if lane.usable(now)] or fresh

    def _has_room(self, now: float) -> bool:
        return any(lane.has_room(model, now) for lane in self.lanes.values() for model in self.waiting.models)

    def _next(self, now: float) -> tuple[Job, Lane] | None:
        """The job with the best right among those that can start, and where it starts."""
        for job in self.waiting.aged(now - self._ageing) if self._ageing else ():
            lane = self._place(job, now, self._lanes(job, now), aged=True)
            if lane is not None:
                job.aged = True
                return job, lane
        hopeless: set[tuple[tuple[str, str], ...]] = set()
        for job in self.waiting.in_turn(self.counters):
            kind = tuple(job.targets.items())
            if kind in hopeless:
                continue
            lane = self._place(job, now, self._lanes(job, now))
            if lane is not None:
                return job, lane
            if not self._free_lanes(job, now):
                hopeless.add(kind)
        return None

    def _place(self, job: Job, now: float, lanes: Sequence[Lane], *, aged: bool = False) -> Lane | None:
        free = self._free(job, lanes, now)
        if aged:
            free = [lane for lane in free if self._may_age(lane, now)]
        if not free:
            return None
        lane = free[0] if len(lanes) == 1 else self.placement.choose(job, free, lanes, now)
        if lane is not None:
            job.model = job.targets[lane.name]
        return lane

    def _free_lanes(self, job: Job, now: float) -> Sequence[Lane]:
        return self._free(job, self._lanes(job, now), now)

    def _free(self, job: Job, lanes: Sequence[Lane], now: float) -> Sequence[Lane]:
        """Where it could start at once, those first that need not load its model."""
        if len(lanes) == 1:
            return lanes if self._has_place(job, lanes[0], now) else ()
        free = [lane for lane in lanes if self._has_place(job, lane, now)]
        if len(free) > 1:
            loaded = [lane for lane in free if lane.residency.current in (None, job.targets[lane.name])]
            return loaded or free
        return free

    def _has_place(self, job: Job, lane: Lane, now: float) -> bool:
        return lane.has_room(job.targets[lane.name], now) and self._may_load(job, lane, now)

    def _may_age(self, lane: Lane, now: float) -> bool:
        """Aged work holds a quarter of the slots; where there are fewer than four, one slot now and then."""
        held = sum(1 for job in lane.running if job.aged)
        allowed = lane.capacity(next(iter(lane.by_model), ""), now) // AGED_SHARE
        return held < max(1, allowed) and (allowed > 0 or now - lane.last_aged >= self._ageing)

    def _may_load(self, job: Job, lane: Lane, now: float) -> bool:
        model = job.targets[lane.name]
        current = lane.residency.current
        if current is None or (current == model and len(self.waiting.models) < 2):
            return True
        rival: tuple[str, float] | None = None
        for other in self.waiting:
            name = other.targets.get(lane.name)
            if name is not None and name != current and (rival is None or now - other.queued > rival[1]):
                rival = (name, now - other.queued)
        waited = now - job.queued
        return lane.residency.allows(model, waited, lane.by_model, rival, current in self.waiting.models, now)

    def _start(self, job: Job, lane: Lane, now: float) -> None:
        job.state = "running"
        job.preempting = False
        job.before = job.produced
        job.charged = job.expected_cost
        self.counters.charge(job.tenant, job.charged)
        if job.aged:
            lane.last_aged = now
        lane.start(job, now)
        self.placement.placed(job, lane)

    def _vacate(self, job: Job, lane: Lane, now: float) -> None:
        lane.end(job, now)
        self.counters.charge(job.tenant, job.cost - job.charged)
        if job.preempting:
            self._preempting -= 1
            job.preempting = False
        job.aged = False

    def _learn(self, job: Job, lane: Lane, now: float, load: float | None) -> None:
        lane.learn(job, now, load or 0.0)
        if job.switches is not None and load is not None:
            lane.residency.told(job.switches, job.model, load, now)
        outputs = self._outputs.get(job.model)
        if outputs is None:
            if len(self._outputs) >= MOST_MODELS:
                del self._outputs[next(iter(self._outputs))]
            outputs = self._outputs[job.model] = Outputs()
        outputs.ended(job.max_tokens, job.produced)

    def _preemptions(self, now: float) -> Iterator[Step]:
        """The youngest batch work makes way, one for each interactive job that waits."""
        wanted = self.waiting.count(INTERACTIVE) - self._preempting
        for job in self.waiting.in_turn(self.counters):
            if wanted <= 0 or job.level != INTERACTIVE:
                return
            wanted -= 1
            if self._free_lanes(job, now):
                continue  # it waits for its home
            victims = [
                running
                for lane in self._lanes(job, now)
                if not any(lane.pace(other.model).remaining(other, now) < SOON for other in lane.running)
                for running in lane.running
                if _may_be_preempted(running)
            ]
            if victims:
                victim = max(victims, key=lambda running: running.granted)
                victim.preempting = True
                self._preempting += 1
                yield Preempt(victim)

    # ---- inside: what is worth waiting for ----

    def _ahead(self, job: Job, lanes: Sequence[Lane], now: float) -> float:
        """Seconds of slots for the work that comes before `job`."""
        names = {lane.name for lane in lanes}
        turn = self.counters[job.tenant]
        seconds = 0.0
        others: dict[str, list[Job]] = {}
        for other in self.waiting:
            if other is job or other.level > job.level or names.isdisjoint(other.targets):
                continue
            if other.level < job.level:
                seconds += self._hold(other, now)
            elif other.tenant != job.tenant:
                others.setdefault(other.tenant, []).append(other)
            elif job.state == "new" or other.queued <= job.queued:
                seconds += self._hold(other, now)
                turn += other.expected_cost
        for tenant, queue in others.items():
            served = self.counters[tenant]
            for other in queue:
                if served > turn:
                    break
                seconds += self._hold(other, now)
                served += other.expected_cost
        return seconds

    def _hold(self, job: Job, now: float) -> float:
        lane = self._lanes(job, now)[0]
        return lane.pace(job.targets[lane.name]).hold(job.prompt_tokens, job.expected_tokens)

    def _first_byte(self, job: Job, lanes: Sequence[Lane]) -> float:
        return min(lane.pace(job.targets[lane.name]).first_byte(job) for lane in lanes)

    def _check_alone(self, job: Job, lane: Lane, now: float) -> None:
        if job.deadline is not None and now + lane.pace(job.model).quickest(job) > job.deadline:
            raise self._unreachable(job, now)

    def _check_deadline(self, job: Job, lanes: Sequence[Lane], now: float) -> None:
        assert job.deadline is not None
        wait = 0.0 if self._free_lanes(job, now) else MARGIN * self.wait_seconds(job, now)
        if now + wait + self._first_byte(job, lanes) > job.deadline:
            raise self._unreachable(job, now)

    def _full(self, job: Job, now: float) -> Overloaded:
        return queue_full(len(self.waiting), self.wait_seconds(job, now))

    def _timed_out(self, job: Job, now: float) -> Overloaded:
        return queue_timeout(self.wait_seconds(job, now))

    def _unreachable(self, job: Job, now: float) -> Overloaded:
        assert job.deadline is not None
        first = self.wait_seconds(job, now) + self._first_byte(job, self._lanes(job, now))
        return deadline_unreachable(first, job.deadline - now)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not agree with each other."""
        self.waiting.check_integrity()
        running = [job for lane in self.lanes.values() for job in lane.running]
        assert len(running) == len(set(running))
        assert all(job.state == "running" and job.lane is not None for job in running)
        assert self._preempting == sum(job.preempting for job in running)
        for lane in self.lanes.values():
            assert lane.limit is None or len(lane.running) <= lane.limit
            assert sum(lane.by_model.values()) == len(lane.running)
            assert lane.waiting_for == sum(job.home == lane.name for job in self.waiting)
        if not running and not self.waiting:
            assert len(self.counters) == 0


def _may_be_preempted(job: Job) -> bool:
    return (
        job.level == BATCH
        and job.preemptible
        and not job.aged
        and not job.preempting
        and job.preemptions < MOST_PREEMPTIONS
    )
