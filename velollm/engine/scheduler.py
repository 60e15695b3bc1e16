"""What the next step computes: for each running sequence a run of tokens, under one budget. No I/O, no clock.

There are no phases. Every sequence catches up from `num_computed` to its length: one token when it decodes, a chunk of
its prompt, or all it knows again after a preemption by recompute. Decoding comes first, then the prompts that are under
way, then what waits, in the order of arrival, each class of priority `ageing` seconds behind the more urgent one.

    add ──▶ waiting ──admit──▶ running ──finish──▶ (blocks cached or free)
               ▲                  │
               └────preempt───────┘    state swapped to the host, or dropped and computed again
"""

from __future__ import annotations

from bisect import bisect_left, insort

import attrs

from velollm.engine.blocks import Block, BlockManager
from velollm.engine.events import Discard, Event, Export, Import
from velollm.engine.sequence import Sequence, Status
from velollm.errors import ContextLengthExceeded

__all__ = ["Chunk", "Scheduler", "Step"]

LOOKAHEAD = 64  # waiting sequences that are looked at behind one that waits for its prefix
RECOMPUTE = 48  # so few tokens are sooner computed again than a whole state is brought back
IDLE = 16  # so many blocks that are only cached may lie beside running ones, or an eighth of what these have


class Chunk:
    """The tokens of `sequence` from `start` up to `start + count`; with `sample`, the next token is wanted."""

    __slots__ = ("count", "sample", "sequence", "start")

    def __init__(self, sequence: Sequence, start: int, count: int) -> None:
        self.sequence = sequence
        self.start = start
        self.count = count
        self.sample = start + count == len(sequence.tokens)

    @property
    def tokens(self) -> list[int]:
        """The tokens to compute."""
        return self.sequence.tokens[self.start : self.start + self.count]

    @property
    def slot(self) -> int:
        """Where the sequence lies in the runner's memory."""
        assert self.sequence.table is not None
        return self.sequence.table.slot

    @property
    def table(self) -> list[int]:
        """The numbers of the sequence's blocks."""
        assert self.sequence.table is not None
        return [block.id for block in self.sequence.table.blocks]


@attrs.define
class Step:
    """What the runner does: the `events` in order, then the `chunks` in one batch of `num_tokens`."""

    events: list[Event]
    chunks: list[Chunk]

    @property
    def num_tokens(self) -> int:
        """Tokens of the batch."""
        return sum(chunk.count for chunk in self.chunks)


@attrs.define
class Counters:
    """What happened since the start; tokens, except for `preempted` and `swapped` sequences."""

    prefilled: int = 0
    decoded: int = 0
    cached: int = 0
    preempted: int = 0
    swapped: int = 0
    peak_blocks: int = 0


class Scheduler:
    """Plans steps over the blocks of `blocks`.

    `token_budget` bounds a step, `max_running` the sequences in it, `context` one sequence, all in tokens.
    `swap_tokens` may lie on the host at a time (0: a preempted sequence is computed again); what is computed again in
    no more than `recompute` tokens is never brought there. A share `watermark` of the blocks is kept back from
    newcomers, so that those who run can grow. Where `blocks` may use the host, what is only cached goes there while
    others run, but for `idle` blocks.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        token_budget: int = 256,
        max_running: int = 64,
        context: int | None = None,
        ageing: float = 30.0,
        watermark: float = 0.01,
        swap_tokens: int = 0,
        recompute: int = RECOMPUTE,
        idle: int = IDLE,
    ) -> None:
        if token_budget < 1 or max_running < 1:
            raise ValueError("a step needs room for one token of one sequence")
        self.blocks = blocks
        self.token_budget = token_budget
        self.max_running = max_running
        self.limit = min(context or blocks.capacity, blocks.capacity)
        self.counters = Counters()
        self.running: list[Sequence] = []  # both lists are kept in order
        self.waiting: list[Sequence] = []
        self._ageing = ageing
        self._watermark = max(1, int(blocks.num_blocks * watermark))
        self._swap_left = swap_tokens
        self._recompute = recompute
        self._idle = idle

    # ---- sequences come and go ----

    def add(self, sequence: Sequence) -> None:
        """Take it in. Raises `ContextLengthExceeded` when it could never run."""
        if len(sequence.tokens) >= self.limit:
            raise ContextLengthExceeded(
                f"the prompt has {len(sequence.tokens)} tokens; with one more for the answer, "
                f"{self.limit} is the most that fits",
                param="messages",
            )
        self._insert(self.waiting, sequence)

    def finish(self, sequence: Sequence) -> None:
        """It is done, or nobody wants it any more: its blocks are free at once. May be called again."""
        if sequence.status is Status.RUNNING:
            self._leave(sequence)
        elif sequence.status is Status.WAITING:
            self._remove(self.waiting, sequence)
            self._discard(sequence)
        sequence.status = Status.FINISHED

    def fork(self, sequence: Sequence, child: Sequence) -> None:
        """Let `child`, which has the same tokens, go on from where `sequence` is.

        Where slots, room or sharing are wanting, it waits like any other, and finds what is cached.
        """
        if sequence.status is not Status.RUNNING or len(self.running) >= self.max_running:
            return self.add(child)
        assert sequence.table is not None
        table = self.blocks.fork(sequence.table)
        if table is None:
            return self.add(child)
        child.table = table
        child.num_computed = sequence.num_computed
        child.num_cached = sequence.num_computed
        child.hashes = sequence.hashes[:]
        child.published = sequence.published
        child.status = Status.RUNNING
        self._insert(self.running, child)
        return None

    def preempt(self, sequence: Sequence) -> None:
        """Take its blocks away; it waits, in front of whoever came later."""
        assert sequence.table is not None
        count = sequence.num_computed
        if self._recompute < count <= self._swap_left:
            table = tuple(block.id for block in sequence.table.blocks)
            self.blocks.events.append(Export(sequence.id, sequence.table.slot, table, count))
            self._swap_left -= count
            sequence.swapped = True
            self.counters.swapped += 1
        self._leave(sequence)
        if not sequence.swapped:
            sequence.num_computed = 0
        sequence.published = 0
        sequence.preemptions += 1
        sequence.status = Status.WAITING
        self.counters.preempted += 1
        self._insert(self.waiting, sequence)

    def overdue(self, now: float) -> list[Sequence]:
        """Those who wait for their first token although their deadline has passed."""
        return [
            one
            for one in self.waiting
            if one.deadline is not None and one.deadline < now and len(one) == one.num_prompt
        ]

    # ---- one step ----

    def schedule(self) -> Step:
        """The next step; without chunks when there is nothing to do."""
        plan = _Plan(self.token_budget)
        before = self.counters.preempted
        decoding = [one for one in self.running if one.num_left == 1]
        catching_up = [one for one in self.running if one.num_left > 1]
        for sequence in decoding + catching_up:
            if sequence.status is Status.RUNNING and plan.left > 0:
                self._extend(sequence, plan)
        if self.counters.preempted == before:
            self._admit(plan)
        used = self.blocks.num_blocks - self.blocks.num_free
        self.counters.peak_blocks = max(self.counters.peak_blocks, used)
        if plan.chunks:
            self.blocks.lay_aside(max(self._idle, used // 8))
        return Step(self.blocks.take_events(), list(plan.chunks.values()))

    def commit(self, step: Step) -> None:
        """The chunks of `step` are computed: count them, and offer what is full to others."""
        size = self.blocks.block_size
        for chunk in step.chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.start + chunk.count
            if chunk.count == 1 and chunk.start >= sequence.num_prompt:
                self.counters.decoded += 1
            else:
                self.counters.prefilled += chunk.count
            full = sequence.num_computed // size
            if full > sequence.published:
                assert sequence.table is not None
                self.blocks.publish(sequence.table, sequence.hash_to(size), sequence.published, full)
                sequence.published = full

    def _extend(self, sequence: Sequence, plan: _Plan) -> None:
        """Plan the next tokens of a running sequence; whoever is last makes room for it."""
        assert sequence.table is not None
        start = sequence.num_computed
        count = min(sequence.num_left, plan.left)
        while not self.blocks.grow(sequence.table, start, start + count):
            victim = self.running[-1]
            plan.remove(victim)
            self.preempt(victim)
            if victim is sequence:
                return
            count = min(sequence.num_left, plan.left)
        self._plan(sequence, count, plan)

    def _plan(self, sequence: Sequence, count: int, plan: _Plan) -> None:
        plan.add(Chunk(sequence, sequence.num_computed, count))
        if count > 1 and self.blocks.sharing:
            size = self.blocks.block_size
            first, end = sequence.num_computed // size, (sequence.num_computed + count) // size
            plan.coming.update(sequence.hash_to(size)[first:end])

    def _admit(self, plan: _Plan) -> None:
        """Let in who waits, in order. One that finds no room lets only more urgent classes pass."""
        skipped, blocked = 0, None
        while plan.left > 0 and skipped < min(len(self.waiting), LOOKAHEAD):
            sequence = self.waiting[skipped]
            if blocked is not None and sequence.priority >= blocked:
                skipped += 1
                continue
            hashes = self._prefix(sequence)
            hits = self.blocks.match(hashes)
            if not sequence.swapped and self._fits(sequence, hits):
                hits = self.blocks.recall(hits, hashes)
            if len(hits) < len(hashes) and hashes[len(hits)] in plan.coming:
                skipped += 1  # what it needs is being computed: one step later it will be there
                continue
            if sequence.swapped and sequence.num_computed - len(hits) * self.blocks.block_size < self._recompute:
                self._discard(sequence)
            if sequence.swapped:
                hits = []
            if not self._make_room(sequence, hits, plan) or not self._enter(sequence, hits, plan):
                skipped, blocked = skipped + 1, sequence.priority

    def _prefix(self, sequence: Sequence) -> list[bytes]:
        """The hashes that it may find; its last token is never among them, for its logits are wanted."""
        if not self.blocks.sharing:
            return []
        size = self.blocks.block_size
        return sequence.hash_to(size)[: (len(sequence) - 1) // size]

    def _make_room(self, sequence: Sequence, hits: list[Block], plan: _Plan) -> bool:
        """Whether a place and blocks are there for all its tokens, if need be by preempting less urgent classes.

        Of those, what came so much earlier that it has aged past `sequence` keeps up to a quarter of the places.
        """
        if self._fits(sequence, hits):
            return True
        key = self._key(sequence)
        worse = [one for one in self.running if one.priority > sequence.priority]
        aged = [one for one in worse if self._key(one) < key][: max(1, self.max_running // 4)]
        worse = [one for one in worse if one not in aged]
        room = sum(len(one.table.blocks) for one in worse if one.table is not None)
        if not worse or self.blocks.need(hits, len(sequence)) > self.blocks.num_free + room:
            return False
        while worse and not self._fits(sequence, hits):
            victim = worse.pop()
            plan.remove(victim)
            self.preempt(victim)  # which may leave some of the hits without a user: they are counted anew
        return self._fits(sequence, hits)

    def _fits(self, sequence: Sequence, hits: list[Block]) -> bool:
        need = self.blocks.need(hits, len(sequence)) + (self._watermark if self.running else 0)
        return need <= self.blocks.num_free and len(self.running) < self.max_running

    def _enter(self, sequence: Sequence, hits: list[Block], plan: _Plan) -> bool:
        table = self.blocks.open(hits)
        if table is None and hits and self.blocks.need((), len(sequence)) <= self.blocks.num_free:
            hits, table = [], self.blocks.open()  # the only slot to be had is the one that holds the hits
        if table is None:
            return False
        if sequence.swapped:
            self.blocks.grow(table, 0, sequence.num_computed)
            self.blocks.events.append(Import(sequence.id, table.slot, tuple(block.id for block in table.blocks)))
            self._swap_left += sequence.num_computed
            sequence.swapped = False
        else:
            sequence.num_computed = len(hits) * self.blocks.block_size
            sequence.published = len(hits)
            self.counters.cached += sequence.num_computed
            if not sequence.preemptions:
                sequence.num_cached = sequence.num_computed
        count = min(sequence.num_left, plan.left)
        grown = self.blocks.grow(table, sequence.num_computed, sequence.num_computed + count)
        assert grown, "room was made for all of it"
        self._remove(self.waiting, sequence)
        sequence.table = table
        sequence.status = Status.RUNNING
        self._insert(self.running, sequence)
        self._plan(sequence, count, plan)
        return True

    # ---- inside ----

    def _leave(self, sequence: Sequence) -> None:
        assert sequence.table is not None
        self._remove(self.running, sequence)
        self.blocks.close(sequence.table)
        sequence.table = None

    def _discard(self, sequence: Sequence) -> None:
        """Forget the state that lies on the host."""
        if sequence.swapped:
            self.blocks.events.append(Discard(sequence.id))
            self._swap_left += sequence.num_computed
            sequence.swapped = False
            sequence.num_computed = 0

    def _key(self, sequence: Sequence) -> tuple[float, int]:
        return (sequence.arrival + sequence.priority * self._ageing, sequence.id)

    def _insert(self, where: list[Sequence], sequence: Sequence) -> None:
        insort(where, sequence, key=self._key)

    def _remove(self, where: list[Sequence], sequence: Sequence) -> None:
        del where[bisect_left(where, self._key(sequence), key=self._key)]


class _Plan:
    """A step in the making: `left` tokens may be added; `coming` are the hashes that will be found after it."""

    __slots__ = ("chunks", "coming", "left")

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.chunks: dict[int, Chunk] = {}
        self.coming: set[bytes] = set()

    def add(self, chunk: Chunk) -> None:
        self.chunks[chunk.sequence.id] = chunk
        self.left -= chunk.count

    def remove(self, sequence: Sequence) -> None:
        chunk = self.chunks.pop(sequence.id, None)
        if chunk is not None:
            self.left += chunk.count
