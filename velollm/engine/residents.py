"""Which slot of a unified KV memory owns which blocks' cells: running sequences, and holders of what is only cached.

On llama.cpp a cell is freed when no sequence id owns it. So a finished sequence's id stays behind as the holder of the
cached blocks that nobody else owns; a hit makes the new sequence an owner too (one alias for each run of blocks with a
common owner), and an evicted block is dropped by every owner. A slot has at most one block at each depth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from velollm.engine.events import Alias, Drop, Event

if TYPE_CHECKING:
    from velollm.engine.blocks import Block

__all__ = ["Residents"]


class Residents:
    """The slots from 0 up to `slots`; what must happen in memory is appended to `events`."""

    def __init__(self, slots: int, block_size: int, events: list[Event]) -> None:
        self._slots = slots
        self._size = block_size
        self._events = events
        self._free = deque(range(slots))
        self._holders: dict[int, dict[int, Block]] = {}  # slot → depth → block, the oldest holder first

    def take(self) -> int | None:
        """A slot that owns nothing."""
        return self._free.popleft() if self._free else None

    def oldest(self) -> list[Block]:
        """Free the slot of the oldest holder. What it owns alone, another holder takes over, or it must be evicted.

        Returns what must be evicted, after which the slot is free. Holders of what was just hit stay.
        """
        slot = next((slot for slot, held in self._holders.items() if not _is_wanted(held)), None)
        if slot is None:
            return []
        held = self._holders.pop(slot)
        alone = {depth: block for depth, block in held.items() if len(block.owners) == 1}
        heir = next((other for other, has in self._holders.items() if alone.keys().isdisjoint(has)), None)
        if heir is not None and alone:
            for depth in sorted(alone):
                self._alias(slot, heir, depth)
                alone[depth].owners.add(heir)
            self._holders[heir].update(alone)
            alone = {}
        for block in held.values():
            if block.depth not in alone:
                block.owners.discard(slot)
        if alone:
            self._holders[slot] = alone
            return list(alone.values())
        self._drop(slot, 0, -1)
        self._free.append(slot)
        return []

    def move_in(self, slot: int, blocks: Sequence[Block]) -> None:
        """`slot` becomes an owner of `blocks`, which lie in other slots."""
        source = -1
        for depth, block in enumerate(blocks):
            if source not in block.owners:
                source = next(iter(block.owners))
            self._alias(source, slot, depth)
            block.owners.add(slot)

    def copy(self, source: int, slot: int, blocks: Sequence[Block]) -> None:
        """`slot` becomes an owner of all that the running `source` has."""
        if blocks:
            self._events.append(Alias(source, slot, 0, len(blocks) * self._size))
        for block in blocks:
            block.owners.add(slot)

    def move_out(self, slot: int, blocks: Sequence[Block]) -> None:
        """The sequence in `slot` is gone: what is cached and nobody else's stays with the slot."""
        kept = {block.depth: block for block in blocks if block.hash is not None and len(block.owners) == 1}
        if not kept:
            for block in blocks:
                block.owners.discard(slot)
            self._drop(slot, 0, -1)
            self._free.append(slot)
            return
        for block in blocks:
            if block.depth not in kept:
                block.owners.discard(slot)
                self._drop(slot, block.depth * self._size, (block.depth + 1) * self._size)
        self._holders[slot] = kept

    def lend(self, slot: int, blocks: Sequence[Block], use: Callable[[int, Sequence[Block]], bool]) -> bool:
        """Let `use` have a slot with `blocks`, which lie in the holder `slot`, and nothing else; what it returns.

        False when the holder has more, and no slot is free.
        """
        if len(self._holders[slot]) == len(blocks):
            return use(slot, blocks)
        if not self._free:
            return False
        lent = self._free.popleft()
        for block in blocks:
            self._alias(slot, lent, block.depth)
        used = use(lent, blocks)
        self._drop(lent, 0, -1)
        self._free.append(lent)
        return used

    def evict(self, block: Block) -> None:
        """Every owner of `block`, which only holders can be, lets go of it."""
        start = block.depth * self._size
        for slot in block.owners:
            held = self._holders[slot]
            del held[block.depth]
            if held:
                self._drop(slot, start, start + self._size)
            else:
                del self._holders[slot]
                self._drop(slot, 0, -1)
                self._free.append(slot)
        block.owners.clear()

    def _alias(self, source: int, target: int, depth: int) -> None:
        start, end = depth * self._size, (depth + 1) * self._size
        last = self._events[-1] if self._events else None
        if isinstance(last, Alias) and (last.source, last.target, last.end) == (source, target, start):
            self._events[-1] = Alias(source, target, last.start, end)
        else:
            self._events.append(Alias(source, target, start, end))

    def _drop(self, slot: int, start: int, end: int) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, Drop) and last.slot == slot:
            if end == -1 and start <= last.start:
                self._events[-1] = Drop(slot, start, -1)
                return
            if last.end == start:
                self._events[-1] = Drop(slot, last.start, end)
                return
            if last.start == end:
                self._events[-1] = Drop(slot, start, last.end)
                return
        self._events.append(Drop(slot, start, end))

    def check_integrity(self, running: set[int]) -> None:
        """Every slot is free, running or a holder, and holders own what they hold."""
        free = set(self._free)
        assert len(free) == len(self._free)
        assert free.isdisjoint(running)
        assert self._holders.keys().isdisjoint(free | running)
        assert len(free) + len(running) + len(self._holders) == self._slots
        for slot, held in self._holders.items():
            assert held
            for depth, block in held.items():
                assert (block.depth, slot in block.owners) == (depth, True)
                assert block.hash is not None


def _is_wanted(held: dict[int, Block]) -> bool:
    return any(block.refs and len(block.owners) == 1 for block in held.values())
