"""The block manager's tables as the kernels read them: prefixes in common, copies on write, holes, blocks used again.

Whatever happens to its blocks, a sequence attends to the keys and values that were written for it. The shadow is one
dense array for each sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
from emulator.executor import Emulator
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention import reference
from support.numbers import TOLERANCE, error

from velollm.engine import BlockManager
from velollm.engine.blocks import Table
from velollm.engine.events import Copy
from velollm.gpu.attention import paged_attention
from velollm.gpu.kv import copy_blocks, write_kv
from velollm.gpu.rope import rotations

HEADS, WIDTH, BLOCKS = 2, 64, 14
EDGES = [1, 2, 14, 15, 16, 17, 31, 32, 33, 48]
UNTURNED = rotations(1, WIDTH)  # what is at position 0 does not turn
Floats = npt.NDArray[np.float32]


@attrs.define
class Shadow:
    """A sequence and what was written for it: keys and values [2, tokens, WIDTH]."""

    table: Table
    written: Floats


class World:
    """A cache, its books, and what should be in it."""

    def __init__(self, seed: int) -> None:
        self.on = Emulator(seed=seed)
        self.random = np.random.default_rng(seed)
        self.blocks = BlockManager(BLOCKS)
        self.pages = self.on.empty((2, BLOCKS, 1, 16, WIDTH), "fp32")
        self.alive: list[Shadow] = []

    def open(self) -> None:
        table = self.blocks.open()
        assert table is not None
        self.alive.append(Shadow(table, np.empty((2, 0, WIDTH), np.float32)))

    def append(self, which: int, count: int) -> None:
        """Write `count` tokens, if there is room; blocks that others share are copied before."""
        one = self.alive[which]
        start = one.written.shape[1]
        if not self.blocks.grow(one.table, start, start + count):
            return
        pairs = [(event.source, event.target) for event in self.blocks.take_events() if isinstance(event, Copy)]
        copy_blocks(self.pages, self.pages, np.array(pairs, np.int32).reshape(-1, 2), on=self.on)
        new = self.random.standard_normal((2, count, WIDTH)).astype(np.float32)
        places = np.arange(start, start + count)
        table = np.array([block.id for block in one.table.blocks])
        qkv = np.zeros((count, HEADS + 2, WIDTH), np.float32)
        qkv[:, HEADS:] = new.swapaxes(0, 1)
        slots = (table[places // 16] * 16 + places % 16).astype(np.int64)
        write_kv(qkv, self.pages[0], self.pages[1], slots, np.zeros(count, np.int32), UNTURNED, on=self.on)
        one.written = np.concatenate([one.written, new], axis=1)

    def fork(self, which: int) -> None:
        one = self.alive[which]
        table = self.blocks.fork(one.table)
        assert table is not None
        self.alive.append(Shadow(table, one.written.copy()))

    def close(self, which: int) -> None:
        self.blocks.close(self.alive.pop(which).table)
        self.blocks.take_events()

    def check(self, window: int, splits: int) -> None:
        """Every sequence attends to its own, all in one batch."""
        shown = [one for one in self.alive if one.written.shape[1]]
        if not shown:
            return
        lengths = np.array([one.written.shape[1] for one in shown], np.int32)
        tables = np.full((len(shown), 8), 10**8, np.int32)
        for row, one in zip(tables, shown, strict=True):
            first = max(0, one.written.shape[1] - window) // 16 if window else 0
            numbers = [block.id for block in one.table.blocks]
            row[first : len(numbers)] = numbers[first:]  # what lies before the window is a hole
        q = self.random.standard_normal((len(shown), HEADS, WIDTH)).astype(np.float32)
        options: dict[str, Any] = {"window": window}
        got = paged_attention(
            q, self.pages[0], self.pages[1], tables[:, : max(1, -(-int(lengths.max()) // 16))], lengths,
            splits=splits, on=self.on, **options,
        )  # fmt: skip
        for number, one in enumerate(shown):
            dense = np.zeros((2, 8, 1, 16, WIDTH))
            dense.reshape(2, -1, WIDTH)[:, : lengths[number]] = one.written
            order, ends, row = np.arange(8, dtype=np.int32)[None], np.array([0, 1], np.int32), slice(number, number + 1)
            expected = reference(q[row].astype(float), *dense, order, lengths[row], ends, **options)
            assert error(got[row].astype(float), expected) < TOLERANCE["fp32"]
        self.blocks.check_integrity([one.table for one in self.alive])


def steps(data: st.DataObject, world: World) -> Iterator[None]:
    """Anything that can happen next."""
    for _ in range(data.draw(st.integers(4, 16))):
        kinds = ["open", *["append"] * 4, *["fork"] * 2, "close"] if world.alive else ["open"]
        kind = data.draw(st.sampled_from(kinds))
        if kind == "open":
            world.open()
            continue
        which = data.draw(st.integers(0, len(world.alive) - 1))
        if kind == "append":
            room = 128 - world.alive[which].written.shape[1]
            world.append(which, min(room, data.draw(st.sampled_from(EDGES))))
        elif kind == "fork":
            world.fork(which)
        else:
            world.close(which)
        yield


@settings(max_examples=20)
@given(data=st.data())
def test_every_sequence_reads_its_own(data: st.DataObject) -> None:
    world = World(data.draw(st.integers(0, 50)))
    for _ in steps(data, world):
        pass
    world.check(data.draw(st.sampled_from([0, 1, 16, 30])), data.draw(st.integers(1, 4)))


def test_forks_part_at_every_place_of_a_block() -> None:
    """A child that writes where its parent's block is half full leaves the parent's half alone, and the other way."""
    for length in (1, 15, 16, 17, 32):
        world = World(length)
        world.open()
        world.append(0, length)
        world.fork(0)
        world.append(1, 3)
        world.append(0, 18)
        world.check(0, 1)


@pytest.mark.e2e
@pytest.mark.parametrize("length", [1, 15, 16, 17, 1023, 1024, 1025, 4095, 16_384, 32_768])
def test_sequences_that_alias_one_prefix(length: int) -> None:
    """Eight sequences over the same blocks, each with a last block of its own, in the kernel for tensor cores."""
    on, random = Emulator(seed=2), np.random.default_rng(length)
    shared = length // 16
    keys, values = (random.standard_normal((shared + 8, 1, 16, 64)).astype(np.float16) for _ in range(2))
    order = random.permutation(shared + 8).astype(np.int32)
    tables = np.concatenate([np.tile(order[:shared], (8, 1)), order[shared:, None]], axis=1)
    lengths = np.full(8, length + 1, np.int32)
    q = random.standard_normal((8, 4, 64)).astype(np.float16)
    got = paged_attention(q, keys, values, tables, lengths, on=on)
    wide = [one.astype(float) for one in (q, keys, values)]
    expected = reference(*wide, tables, lengths, np.arange(9, dtype=np.int32))
    assert error(got.astype(float), expected) < TOLERANCE["fp16"]
