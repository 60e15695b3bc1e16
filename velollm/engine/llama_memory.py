"""Where slots lie in the KV memory of llama.cpp: all in one memory (`UnifiedMemory`), or apart while they fit.

Blocks are bookkeeping in both. In one memory a cell knows its position and the ids that own it: sharing is `seq_cp`,
letting go is `seq_rm`, and a copy on write needs nothing, for new tokens take new cells. There are never more cells in
use than the block manager counts, so that a step always finds room. But on a CPU attention goes over all cells, if only
to leave out what belongs to others.

So `ElasticMemory` parts the same cells into streams, one for each sequence that is computed, and shares by copying:
milliseconds where computing takes seconds. Whoever is not computed lies on the host. When sequences get too long or too
many for any parting, or share so much that reading it once is faster, it becomes one memory again, in which what was
shared before is shared once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from velollm.engine.kv_state import EMPTY, KvState
from velollm.engine.llama_context import GRAIN, LlamaContext
from velollm.engine.origins import Origins
from velollm.engine.runner import RunnerError
from velollm.engine.scheduler import Chunk
from velollm.engine.sequence import Sequence
from velollm.errors import ConfigError

__all__ = ["ElasticMemory", "UnifiedMemory"]

Floats = npt.NDArray[np.float32]
MakeContext: TypeAlias = Callable[[int], LlamaContext]

# From so many tokens on, attention on a CPU goes tile by tile, of 64 tokens and 64 cells. A tile with tokens of many
# sequences finds no cells to leave out: those that decode are computed by themselves, as long as they are fewer.
TILE = 64
PATIENCE = 16  # steps before it is asked anew which way is faster
# What sequences share is read once in one memory, and what belongs to others is looked at for nothing. What it takes to
# read a cell on a CPU, against looking at one and leaving it out; found by hand.
READING, SKIPPING = 15, 2
FEW = 16  # there are no fewer streams, unless sequences are too long for so many


class UnifiedMemory:
    """One memory in `context`, in which a sequence's slot is its sequence id. With `tiles` see `TILE`."""

    streams = 0

    def __init__(self, context: LlamaContext, *, tiles: bool) -> None:
        self._context = context
        self._tiles = tiles
        self.alias, self.drop, self.close = context.alias, context.drop, context.close
        self.read: Callable[[int], Any] = context.read
        self.write: Callable[[int, Any], None] = context.write

    def check_integrity(self) -> None:
        """There are no books here."""

    def execute(self, chunks: Items[Chunk]) -> Floats:
        """One `llama_decode`, or two."""
        return _decode(self._context, chunks, tiles=self._tiles)


def _decode(
    context: LlamaContext, chunks: Items[Chunk], ids: Mapping[int, int] | None = None, *, tiles: bool
) -> Floats:
    slots = [chunk.slot if ids is None else ids[chunk.slot] for chunk in chunks]
    single = next((at for at, chunk in enumerate(chunks) if chunk.count > 1), 0)
    if not tiles or not 0 < single < TILE:
        return context.decode(chunks, slots)
    first = context.decode(chunks[:single], slots[:single]).copy()
    return np.concatenate((first, context.decode(chunks[single:], slots[single:])))


class ElasticMemory:
    """`cells` cells in contexts that `make` makes: with so many streams, or with 0 in one memory.

    `most` is the largest number of streams. States that come out of it and go in are `KvState`.
    """

    def __init__(self, make: MakeContext, cells: int, most: int) -> None:
        self.streams = 0
        self._make = make
        self._cells = cells
        self._most = most
        self._capacity = 0  # cells of a stream
        self._context: LlamaContext | None = None
        self._origins = Origins()
        self._streams: dict[int, int] = {}  # by slot
        self._slots: dict[int, int] = {}  # by stream
        self._host: dict[int, KvState] = {}  # by slot
        self._age = 0  # steps since the memory was parted, or that was thought about
        self._count = 0  # sequences in the last step
        self._open(self._fitting(1, 0))

    def alias(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` have the cells of `source` from `start` up to `end` as well."""
        self._origins.copied(source, target, start, end)
        if self._unified is not None:
            self._unified.alias(source, target, start, end)
        else:
            self._host[target] = self._pull(target) + self.read(source).between(start, end)

    def drop(self, slot: int, start: int = 0, end: int = -1) -> None:
        """Let the slot have no cells from `start` up to `end` (-1: to the last)."""
        self._origins.dropped(slot, start, end)
        if self._unified is not None:
            self._unified.drop(slot, start, end)
        elif (start, end) == (0, -1):
            self._host.pop(slot, None)
            self._vacate(slot)
        elif slot in self._host:
            self._host[slot] = self._host[slot].without(start, end)
        elif slot in self._streams and self._context is not None:
            self._context.drop(self._streams[slot], start, end)

    def read(self, slot: int) -> KvState:
        """What the slot has. Raises `RunnerError`."""
        if self._unified is not None:
            return KvState.parse(self._unified.read(slot))
        if slot in self._streams and self._context is not None:
            return KvState.parse(self._context.read(self._streams[slot]))
        return self._host.get(slot, EMPTY)

    def write(self, slot: int, state: KvState) -> None:
        """Let the slot, which is empty, have this. Raises `RunnerError`."""
        for start, end in _spans(state.positions):
            self._origins.computed(slot, start, end)
        if self._unified is not None:
            self._unified.write(slot, state.pack(slot, 1))
        else:
            self._host[slot] = state

    def execute(self, chunks: Items[Chunk]) -> Floats:
        """Make them fit, and compute them. Raises `RunnerError`."""
        self._suit(chunks)
        for chunk in chunks:
            self._origins.computed(chunk.slot, chunk.start, chunk.start + chunk.count)
        if self._unified is not None:
            return _decode(self._unified, chunks, tiles=True)
        assert self._context is not None
        parts = [[at for at, chunk in enumerate(chunks) if (chunk.count == 1) == single] for single in (True, False)]
        self._gather(*([chunks[at].slot for at in part] for part in parts))
        order = [at for part in parts for at in sorted(part, key=lambda at: self._streams[chunks[at].slot])]
        rows = _decode(self._context, [chunks[at] for at in order], self._streams, tiles=True)
        wanted = [at for at in order if chunks[at].sample]
        return rows if wanted == sorted(wanted) else rows[np.argsort(wanted)]

    def close(self) -> None:
        """Free the memory. May be called again."""
        self._let_go()
        self._host.clear()

    def works(self) -> bool:
        """Whether states can be taken apart, while nothing is in memory yet: one token is computed for that."""
        assert self._context is not None
        self._context.decode([Chunk(Sequence(0, [0]), 0, 1)], [0])
        data = self._context.read(0)
        self._context.drop(0)
        try:
            state = KvState.parse(data)
        except ValueError:
            return False
        return state.positions.tolist() == [0] and bytes(state.pack(0, max(self.streams, 1))) == bytes(data)

    def check_integrity(self) -> None:
        """Raise `AssertionError` when what lies in memory is not what the books say."""
        assert {stream: slot for slot, stream in self._streams.items()} == self._slots
        assert self._streams.keys().isdisjoint(self._host)
        for slot in self._known():
            assert sorted(self.read(slot).positions.tolist()) == self._origins.positions(slot).tolist()

    # ---- parting ----

    @property
    def _unified(self) -> LlamaContext | None:
        return None if self.streams else self._context

    def _suit(self, chunks: Items[Chunk]) -> None:
        """Part the memory anew when these do not fit, and when another way has become faster."""
        count, longest = len(chunks), max(len(chunk.sequence.tokens) for chunk in chunks)
        grown, self._count = count > self._count, count
        self._age += 1
        if self._context is not None and (not self.streams or (count <= self.streams and longest <= self._capacity)):
            # those who have just come are soon put into one memory: most of what they share is not copied yet
            if self._age < PATIENCE and not (grown and self.streams):
                return
            self._age %= PATIENCE
            if (self.streams == 0) == (self._shares(chunks) or not self._fitting(count, longest)):
                return
        self._part(0 if self._shares(chunks) else self._fitting(count, longest))

    def _shares(self, chunks: Items[Chunk]) -> bool:
        """Whether these share so much that one memory is faster for them; what is one memory stays it in doubt."""
        each = [chunk.table for chunk in chunks]
        visited, there = sum(map(len, each)), len(set().union(*each))
        saved, wasted = READING * (visited - there), SKIPPING * (len(chunks) * there - visited)
        return saved > wasted if self.streams else 2 * saved > wasted

    def _fitting(self, count: int, longest: int) -> int:
        """In how many streams so many sequences have room to grow; 0 when in none."""
        streams = self._most
        while streams >= max(count, 2):
            roomy = self._size(streams) >= longest + max(longest // 4, 1)
            if roomy and streams // 2 < max(count, FEW):
                return streams
            streams //= 2
        return 0

    def _size(self, streams: int) -> int:
        return self._cells // streams // GRAIN * GRAIN

    def _part(self, streams: int) -> None:
        """Carry everything to the host, and have so many streams, or one memory, from now on."""
        if self._context is not None:
            self._host = {slot: self.read(slot) for slot in self._known()}
            self._streams, self._slots = {}, {}
            self._let_go()
        host = self._host
        try:
            self._open(streams)
            if self._unified is not None:
                self._host = {}
                self._unite(self._unified, host)
        except (ConfigError, RunnerError) as error:  # what is on the host stays there, until it succeeds
            self._let_go()
            self._host = host
            raise RunnerError(str(error)) from error

    def _unite(self, context: LlamaContext, host: dict[int, KvState]) -> None:
        for slot, own, shared in self._origins.shares(list(host)):
            state = host[slot].at(own)
            if len(state):
                context.write(slot, state.pack(slot, 1))
            for owner, start, end in shared:
                context.alias(owner, slot, start, end)

    def _let_go(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def _open(self, streams: int) -> None:
        self.streams = streams
        self._capacity = self._size(streams) if streams else self._cells
        self._age = 0
        self._context = self._make(streams)

    def _known(self) -> list[int]:
        return self._origins.slots()

    # ---- streams ----

    def _gather(self, single: list[int], rest: list[int]) -> None:
        """Have those with a single token in the first streams, without a gap, and the others behind them."""
        count = len(single)
        coming = [slot for slot in single if self._streams.get(slot, count) >= count]
        gaps = [stream for stream in range(count) if self._slots.get(stream) not in single]
        moves = list(zip(coming, gaps, strict=True))
        settled = {self._streams.get(slot) for slot in rest}
        behind = (stream for stream in range(count, self.streams) if stream not in settled)
        moves += [(slot, next(behind)) for slot in rest if self._streams.get(slot, -1) < count]
        for slot, _ in moves:
            self._host[slot] = self._pull(slot)
        for slot, stream in moves:
            other = self._slots.get(stream)
            if other is not None:
                self._host[other] = self._pull(other)
            state = self._host.pop(slot)
            self._streams[slot], self._slots[stream] = stream, slot
            if len(state):
                assert self._context is not None
                self._context.write(stream, state.pack(stream, self.streams))

    def _pull(self, slot: int) -> KvState:
        """What the slot has, which it has no longer."""
        state = self.read(slot)
        self._host.pop(slot, None)
        self._vacate(slot)
        return state

    def _vacate(self, slot: int) -> None:
        stream = self._streams.pop(slot, None)
        if stream is not None and self._context is not None:
            del self._slots[stream]
            self._context.drop(stream)


def _spans(positions: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """Runs (start, end) of these positions."""
    ordered = np.sort(positions)
    parts = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts if len(part)]
