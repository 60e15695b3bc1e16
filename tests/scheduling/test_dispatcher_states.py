"""Any interleaving of arrivals, grants, tokens, ends, failures, preemptions and backends that come and go.

Nothing is lost, nothing happens twice, the bounds hold, and every slot comes back.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from velollm.errors import Overloaded
from velollm.routing.placement import placement
from velollm.scheduling.dispatcher import MOST_PREEMPTIONS, Dispatcher, Grant, Preempt, Refuse, Step
from velollm.scheduling.job import Job

LANES = ("a", "b", "c")
MODELS = ("small", "large")
POLICIES = ("least-loaded", "prefix", "round-robin", "weighted")


class DispatcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.jobs: list[Job] = []
        self.starts: dict[Job, int] = {}
        self.refused: set[Job] = set()
        self.to_yield: list[Job] = []
        self.well = dict.fromkeys(LANES, True)

    @initialize(
        policy=st.sampled_from(POLICIES),
        limits=st.tuples(*(st.sampled_from([1, 1, 2, 4, None]) for _ in LANES)),
        max_queue=st.sampled_from([0, 1, 4, 12, 12]),
        ageing=st.sampled_from([0.0, 1.0, 30.0]),
        quantum=st.sampled_from([0.0, 0.5, 5.0]),
    )
    def begin(self, policy: str, limits: tuple[int | None, ...], max_queue: int, ageing: float, quantum: float) -> None:
        self.limits = dict(zip(LANES, limits, strict=True))
        self.dispatcher = Dispatcher(
            placement(policy), max_queue=max_queue, max_queue_bytes=2000, ageing=ageing, quantum=quantum
        )
        for name, limit in self.limits.items():
            self.dispatcher.add_lane(name, limit=limit, usable=lambda now, name=name: self.well[name])

    # ---- what happens ----

    @rule(count=st.integers(1, 8), lanes=st.sets(st.sampled_from(LANES), min_size=1), level=st.integers(0, 2),
          tenant=st.sampled_from(["", "x", "y", "z"]))  # fmt: skip
    def crowd(self, count: int, lanes: set[str], level: int, tenant: str) -> None:
        for _ in range(count):
            targets = dict.fromkeys(sorted(lanes), "small")
            self.come(Job(targets=targets, level=level, tenant=tenant, arrival=self.now, preemptible=True))

    @rule(
        lanes=st.sets(st.sampled_from(LANES), min_size=1),
        model=st.sampled_from(MODELS),
        level=st.integers(0, 2),
        tenant=st.sampled_from(["", "x", "y", "z"]),
        conversation=st.sampled_from([None, None, "one", "two"]),
        prompt=st.integers(1, 500),
        limit=st.one_of(st.none(), st.integers(1, 200)),
        size=st.integers(0, 500),
        deadline=st.one_of(st.none(), st.floats(0.001, 5.0)),
        patience=st.one_of(st.none(), st.floats(0.001, 5.0)),
        prefix=st.lists(st.integers(0, 3), max_size=4),
        stream=st.booleans(),
        preemptible=st.booleans(),
    )
    def submit(
        self,
        lanes: set[str],
        model: str,
        level: int,
        tenant: str,
        conversation: str | None,
        prompt: int,
        limit: int | None,
        size: int,
        deadline: float | None,
        patience: float | None,
        prefix: list[int],
        stream: bool,
        preemptible: bool,
    ) -> None:
        job = Job(
            targets=dict.fromkeys(sorted(lanes), model),
            level=level,
            tenant=tenant,
            conversation=conversation,
            prompt_tokens=prompt,
            max_tokens=limit,
            size=size,
            stream=stream,
            arrival=self.now,
            deadline=None if deadline is None else self.now + deadline,
            expires=None if patience is None else self.now + patience,
            prefix=tuple(hash((index, tuple(prefix[: index + 1]))) for index in range(len(prefix))),
            block_tokens=tuple(range(10, 10 + 10 * len(prefix), 10)),
            preemptible=preemptible,
        )
        self.come(job)

    def come(self, job: Job) -> None:
        self.jobs.append(job)
        try:
            steps = self.dispatcher.submit(job, self.now)
        except Overloaded as error:
            self.check_refusal(job, error)
        else:
            self.take(steps)
            assert job.state in ("waiting", "running") or job in self.refused

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.running()))
        self.dispatcher.answered(job, self.now)
        job.produced += 1

    @precondition(lambda self: self.running())
    @rule(data=st.data(), complete=st.booleans(), load=st.one_of(st.none(), st.floats(0, 3)))
    def end(self, data: st.DataObject, complete: bool, load: float | None) -> None:
        job = data.draw(st.sampled_from(self.running()))
        if job in self.to_yield:
            self.to_yield.remove(job)
        self.take(self.dispatcher.done(job, self.now, complete=complete, load=load))
        assert job.state == "done"

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.waiting()))
        self.take(self.dispatcher.done(job, self.now, complete=False))
        assert job.state == "done"

    @precondition(lambda self: self.to_yield)
    @rule()
    def make_way(self) -> None:
        job = self.to_yield.pop(0)
        self.take(self.dispatcher.yielded(job, self.now))

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def fail_over(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.running()))
        if job in self.to_yield:
            self.to_yield.remove(job)
        assert job.lane is not None
        job.avoid = job.avoid | {job.lane}
        self.take(self.dispatcher.yielded(job, self.now, preempted=False))

    @rule(name=st.sampled_from(LANES), is_open=st.booleans())
    def health(self, name: str, is_open: bool) -> None:
        self.well[name] = is_open
        self.take(self.dispatcher.dispatch(self.now))

    @rule(name=st.sampled_from(LANES), model=st.sampled_from(MODELS), slots=st.integers(1, 3))
    def learn_slots(self, name: str, model: str, slots: int) -> None:
        self.dispatcher.lanes[name].slots[model] = slots
        self.take(self.dispatcher.dispatch(self.now))

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.4, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.dispatcher.dispatch(self.now))

    # ---- what must hold ----

    def take(self, steps: list[Step]) -> None:
        for step in steps:
            job = step.job
            if isinstance(step, Grant):
                assert job.lane in job.targets
                assert job.model == job.targets[job.lane or ""]
                self.starts[job] = self.starts.get(job, 0) + 1
            elif isinstance(step, Refuse):
                self.check_refusal(job, step.error)
            else:
                assert isinstance(step, Preempt)
                assert job.level == 2
                assert job.preemptible
                assert not job.aged
                assert job not in self.to_yield
                self.to_yield.append(job)

    def check_refusal(self, job: Job, error: Overloaded) -> None:
        assert job not in self.refused
        self.refused.add(job)
        assert job.state == "done"
        assert error.status == 503
        assert error.code in ("queue_full", "deadline_unreachable", "queue_timeout")
        assert isinstance(error.retry_after, int)
        assert error.retry_after >= 1

    def running(self) -> list[Job]:
        return [job for job in self.jobs if job.state == "running"]

    def waiting(self) -> list[Job]:
        return [job for job in self.jobs if job.state == "waiting"]

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        self.dispatcher.check_integrity()
        assert set(self.dispatcher.waiting) == set(self.waiting())
        assert {job for lane in self.dispatcher.lanes.values() for job in lane.running} == set(self.running())
        assert all(job.preemptions <= MOST_PREEMPTIONS for job in self.jobs)
        for job in self.running():
            assert self.starts[job] >= 1

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """When no backend works, somebody who waits can only be waiting for a moment."""
        if not hasattr(self, "dispatcher") or not self.waiting() or self.running():
            return
        assert self.dispatcher.next_check(self.now) is not None

    def teardown(self) -> None:
        """Everything is ended, with as much patience as it takes: every job has its turn or its refusal."""
        if not hasattr(self, "dispatcher"):
            return
        for _ in range(1000):
            if not self.running() and not self.waiting():
                break
            for job in self.running():
                if job.state == "running":
                    self.take(self.dispatcher.done(job, self.now))
            self.now += 1.0
            self.take(self.dispatcher.dispatch(self.now))
        assert not self.running()
        assert not self.waiting()
        self.dispatcher.check_integrity()
        assert all(not lane.running and not lane.by_model for lane in self.dispatcher.lanes.values())


DispatcherMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDispatcherStates = DispatcherMachine.TestCase
