"""Blocks of a paged cache on their way: copied, carried to pinned memory of the host, and brought back.

What is swapped travels on a stream beside the one that computes. It sets out when all that was launched before is done,
and who uses its blocks waits for it: the next step that names one of them, or else the step after that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from velollm.engine.scheduler import Chunk
from velollm.gpu.arrays import Array
from velollm.gpu.executor import Executor
from velollm.gpu.kv import copy_blocks
from velollm.gpu.recording import Arena

__all__ = ["BlockMoves"]


class BlockMoves:
    """Moves blocks of `pages` [planes, blocks, ...], with which `on` computes."""

    def __init__(self, on: Executor, pages: Array) -> None:
        self._on, self._beside, self._pages = on, on.beside(), pages
        self._host = Arena(on.pinned)  # to pin memory takes longer than to fill it
        self._kept: dict[int, Array] = {}
        self._moving: set[int] = set()
        self._overdue = False
        self._leaving: list[Array] = []  # pinned memory that launched copies may still read or write

    def copy(self, source: int, target: int) -> None:
        """Within the cache."""
        if not self._moving.isdisjoint((source, target)):
            self._wait()
        self._run(self._on, self._pages, self._pages, [source], [target])

    def export(self, key: int, table: Sequence[int]) -> None:
        """To the host, to be kept under `key`."""
        room = 1 << (len(table) - 1).bit_length()  # so that others find it of use again
        kept = self._host.lend((self._pages.shape[0], room, *self._pages.shape[2:]), self._pages.scalar)
        self._carry(self._pages, kept, table, range(len(table)), table)
        self._kept[key] = kept

    def bring_back(self, key: int, table: Sequence[int]) -> None:
        """What is kept under `key`, into the blocks of `table`."""
        kept = self._kept.pop(key)
        self._carry(kept, self._pages, range(len(table)), table, table)
        self._leaving.append(kept)

    def discard(self, key: int) -> None:
        """Forget what is kept under `key`."""
        self._leaving.append(self._kept.pop(key))

    def before(self, chunks: Sequence[Chunk]) -> None:
        """Wait for blocks that `chunks` use; for the others when a whole step has passed."""
        if self._moving and (self._overdue or any(not self._moving.isdisjoint(chunk.table) for chunk in chunks)):
            self._wait()
        self._overdue = bool(self._moving)

    def settled(self) -> None:
        """All that was launched on `on` is done."""
        if not self._moving:
            self._leaving.clear()

    def close(self) -> None:
        """Wait until nothing reads or writes any more, so that memory can go."""
        self._wait()
        self._on.finish()

    def _carry(
        self, source: Array, target: Array, first: Sequence[int], second: Sequence[int], blocks: Sequence[int]
    ) -> None:
        self._beside.wait_for(self._on)
        self._run(self._beside, source, target, first, second)
        self._moving.update(blocks)

    def _wait(self) -> None:
        self._on.wait_for(self._beside)
        self._moving.clear()

    def _run(self, on: Executor, source: Array, target: Array, first: Sequence[int], second: Sequence[int]) -> None:
        pairs = np.stack([np.asarray(first, np.int32), np.asarray(second, np.int32)], axis=1)
        copy_blocks(source, target, pairs, on=on)
