"""Any interleaving of what can happen: the books agree, memory holds what the books say, and nothing is left behind."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.cells import Cells, Pages

from velollm.engine import BlockManager, Scheduler, Sequence
from velollm.engine.blocks import root_hash
from velollm.engine.sequence import Status
from velollm.errors import ContextLengthExceeded

PREFIXES = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [1, 2, 3, 4, 9, 9, 9, 9, 5, 6, 7, 8], [7, 7, 7], [])
ROOTS = (root_hash("one"), root_hash("other"))
MAX_OUTPUT = 14


class Life(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(3, 16),
        slots=st.integers(1, 7),
        running=st.integers(1, 5),
        budget=st.integers(1, 20),
        swap=st.sampled_from([0, 60, 1000]),
        sharing=st.booleans(),
        host=st.sampled_from([0, 24, 1000]),
        idle=st.integers(0, 3),
    )
    def begin(
        self, blocks: int, slots: int, running: int, budget: int, swap: int, sharing: bool, host: int, idle: int
    ) -> None:
        self.blocks = BlockManager(blocks, 4, slots=slots, sharing=sharing, host_tokens=host)
        self.scheduler = Scheduler(
            self.blocks,
            token_budget=budget,
            max_running=min(running, slots),
            swap_tokens=swap,
            recompute=0 if swap else 48,
            ageing=5,
            idle=idle,
        )
        self.cells = Cells(self.blocks.capacity)
        self.pages = Pages(4)
        self.live: list[Sequence] = []
        self.number = 0
        self.now = 0.0

    @rule(
        prefix=st.sampled_from(PREFIXES),
        own=st.lists(st.integers(1, 3), min_size=1, max_size=12),
        priority=st.sampled_from([0, 0, 1, 2]),
        root=st.sampled_from(ROOTS),
    )
    def add(self, prefix: list[int], own: list[int], priority: int, root: bytes) -> None:
        self.now += 1
        self.number += 1
        one = Sequence(self.number, prefix + own, priority=priority, arrival=self.now, root=root)
        try:
            self.scheduler.add(one)
            self.live.append(one)
        except ContextLengthExceeded:
            assert len(one) >= self.blocks.capacity

    @rule(tokens=st.lists(st.integers(1, 3), min_size=1, max_size=5))
    def steps(self, tokens: list[int]) -> None:
        for token in tokens:
            self.step(token)

    def step(self, token: int) -> None:
        step = self.scheduler.schedule()
        self.cells.apply(step.events)
        self.pages.apply(step.events)
        assert step.num_tokens <= self.scheduler.token_budget
        assert bool(step.chunks) == bool(self.live)
        for chunk in step.chunks:
            one = chunk.sequence
            assert one.table is not None
            assert chunk.start == one.num_computed
            assert chunk.count >= 1
            table = [block.id for block in one.table.blocks]
            self.pages.compute(table, one.tokens, chunk.start, chunk.count)
            self.cells.compute(one.table.slot, one.tokens, chunk.start, chunk.count)
        self.scheduler.commit(step)
        for chunk in step.chunks:
            if chunk.sample:
                self._say(chunk.sequence, token)

    def _say(self, one: Sequence, token: int) -> None:
        one.tokens.append(token)
        if len(one.output) >= MAX_OUTPUT or len(one) >= self.scheduler.limit:
            self.scheduler.finish(one)
            self.live.remove(one)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.live))
        self.scheduler.finish(one)
        self.scheduler.finish(one)
        self.live.remove(one)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.scheduler.running))
        self.scheduler.preempt(one)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data(), count=st.integers(1, 3), token=st.integers(1, 3))
    def fork(self, data: st.DataObject, count: int, token: int) -> None:
        """Where a prompt has just been computed, as after a step, before the next token is known."""
        one = data.draw(st.sampled_from(self.scheduler.running))
        if one.num_left != 1 or not one.output:
            return
        last = one.tokens.pop()
        for _ in range(count):
            self.number += 1
            child = Sequence(self.number, one.tokens, priority=one.priority, arrival=one.arrival, root=one.root)
            self.scheduler.fork(one, child)
            self.live.append(child)
            if child.status is Status.RUNNING:
                child.tokens.append(token + 1)
        one.tokens.append(last)

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "scheduler"):
            tables = [one.table for one in self.scheduler.running if one.table is not None]
            self.blocks.check_integrity(tables)
            assert len(tables) == len(self.scheduler.running) <= self.scheduler.max_running

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(40 * (len(self.live) + 1) * MAX_OUTPUT):
            if not self.live:
                break
            self.step(1)
        assert not self.live, "everybody gets to the end"
        self.cells.apply(self.scheduler.schedule().events)
        self.blocks.check_integrity([])
        assert self.blocks.num_free == self.blocks.num_blocks
        assert all(key < 0 for key in self.cells.saved)
        assert sum(map(len, self.cells.saved.values())) == 4 * self.blocks.num_aside
        assert len(self.cells.content) == 4 * self.blocks.num_cached


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
