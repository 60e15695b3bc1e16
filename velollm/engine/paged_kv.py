"""A paged KV memory's books, with the calls of `llama_memory_*`: for code that is written for llama.cpp's memory.

A cell is one place of one block. It has a position and the ids of the sequences that own it, and is free when nobody
does; a block is free when all its cells are. Ranges of positions are [start, end), below 0 from the first or up to the
last, as in llama.h. Unlike there, nonsense raises `ValueError` instead of ending the process. No memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from velollm.engine.blocks import BLOCK_SIZE

__all__ = ["PagedKV"]

ANY = -1


class PagedKV:
    """`num_blocks` blocks of `block_size` cells for the sequences from 0 up to `sequences`.

    Without `shifting` positions cannot be changed, as with models whose keys cannot be rotated anew.
    """

    def __init__(
        self, num_blocks: int, block_size: int = BLOCK_SIZE, *, sequences: int = 256, shifting: bool = True
    ) -> None:
        if num_blocks < 1 or block_size < 1 or sequences < 1:
            raise ValueError("a memory needs at least one block, one cell a block and one sequence")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.sequences = sequences
        self._shifting = shifting
        self.clear()

    # ---- the calls of llama.h ----

    def clear(self, data: bool = True) -> None:
        """Forget everything. There is no `data` here to be cleared."""
        self._owned: list[set[int]] = [set() for _ in range(self.sequences)]  # cells by sequence
        self._owners: dict[int, set[int]] = {}  # sequences by cell
        self._positions: dict[int, int] = {}
        self._shifts: dict[int, int] = {}
        self._used: dict[int, int] = {}  # cells in use by block
        self._free = list(range(self.num_blocks - 1, -1, -1))

    def seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """The sequence (-1: every one) owns no cell of this range any more. True, for every range can be removed."""
        for one in range(self.sequences) if seq_id == ANY else (self._checked(seq_id),):
            for cell in self._range(one, p0, p1):
                self._disown(one, cell)
        return True

    def seq_cp(self, seq_id_src: int, seq_id_dst: int, p0: int, p1: int) -> None:
        """The second sequence owns the cells of the first in this range as well; nothing is copied."""
        target = self._owned[self._checked(seq_id_dst)]
        for cell in self._range(self._checked(seq_id_src), p0, p1):
            target.add(cell)
            self._owners[cell].add(seq_id_dst)

    def seq_keep(self, seq_id: int) -> None:
        """No other sequence owns anything any more."""
        self._checked(seq_id)
        for other, cells in enumerate(self._owned):
            if other != seq_id:
                for cell in list(cells):
                    self._disown(other, cell)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Move the cells of this range by `delta` places, for all who own them; what comes below 0 is freed."""
        self._move(seq_id, p0, p1, lambda position: position + delta)

    def seq_div(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        """Divide the positions of this range by `d`, rounding down."""
        if d < 1:
            raise ValueError(f"positions cannot be divided by {d}")
        self._move(seq_id, p0, p1, lambda position: position // d)

    def pos_min(self, seq_id: int) -> int:
        """The first position of the sequence, -1 when it has none."""
        return min((self._positions[cell] for cell in self._owned[self._checked(seq_id)]), default=-1)

    def pos_max(self, seq_id: int) -> int:
        """The last position of the sequence, -1 when it has none."""
        return max((self._positions[cell] for cell in self._owned[self._checked(seq_id)]), default=-1)

    seq_pos_min, seq_pos_max = pos_min, pos_max

    def can_shift(self) -> bool:
        """Whether positions can be changed."""
        return self._shifting

    # ---- what a runner needs besides ----

    @property
    def num_free(self) -> int:
        """Blocks without a cell in use."""
        return len(self._free)

    @property
    def num_cells(self) -> int:
        """Cells in use."""
        return len(self._owners)

    def place(self, seq_id: int, positions: Sequence[int]) -> list[int] | None:
        """Cells for new tokens at these positions; or None, and nothing has changed, when there is no room.

        Cell `c` is place `c % block_size` of block `c // block_size`. They go on in the sequence's last block while
        nobody else has cells in it.
        """
        self._checked(seq_id)
        if any(position < 0 for position in positions):
            raise ValueError("positions begin at 0")
        own = self._open_cells(seq_id)[: len(positions)]
        blocks = -(-(len(positions) - len(own)) // self.block_size)
        if blocks > len(self._free):
            return None
        for _ in range(blocks):
            block = self._free.pop()
            own += range(block * self.block_size, (block + 1) * self.block_size)
        placed = own[: len(positions)]
        for cell, position in zip(placed, positions, strict=True):
            self._positions[cell] = position
            self._owners[cell] = {seq_id}
            self._owned[seq_id].add(cell)
            self._used[cell // self.block_size] = self._used.get(cell // self.block_size, 0) + 1
        return placed

    def cells(self, seq_id: int) -> list[tuple[int, int]]:
        """What the sequence owns: (position, cell), in order."""
        return sorted((self._positions[cell], cell) for cell in self._owned[self._checked(seq_id)])

    def table(self, seq_id: int) -> list[int]:
        """The blocks of the sequence, in the order of their first positions in it."""
        return list(dict.fromkeys(cell // self.block_size for _, cell in self.cells(seq_id)))

    def take_shifts(self) -> dict[int, int]:
        """By how many places each cell was moved since the last call: by so much its key must be rotated."""
        taken, self._shifts = self._shifts, {}
        return {cell: shift for cell, shift in taken.items() if shift}

    def check_integrity(self) -> None:
        """Raise `AssertionError` when the books do not agree."""
        owners: dict[int, set[int]] = {}
        for one, cells in enumerate(self._owned):
            for cell in cells:
                owners.setdefault(cell, set()).add(one)
        assert owners == self._owners
        assert owners.keys() == self._positions.keys() >= self._shifts.keys()
        used: dict[int, int] = {}
        for cell in owners:
            used[cell // self.block_size] = used.get(cell // self.block_size, 0) + 1
        assert used == self._used
        assert sorted([*used, *self._free]) == list(range(self.num_blocks))
        assert all(position >= 0 for position in self._positions.values())

    # ---- inside ----

    def _checked(self, seq_id: int) -> int:
        if not 0 <= seq_id < self.sequences:
            raise ValueError(f"sequences are numbered from 0 to {self.sequences - 1}, not {seq_id}")
        return seq_id

    def _range(self, seq_id: int, p0: int, p1: int) -> list[int]:
        first = max(p0, 0)
        return [
            cell
            for cell in self._owned[seq_id]
            if self._positions[cell] >= first and (p1 < 0 or self._positions[cell] < p1)
        ]

    def _open_cells(self, seq_id: int) -> list[int]:
        """The cells behind the last one of the sequence that nobody has, where the block is its own."""
        last = max(self._owned[seq_id], key=lambda cell: (self._positions[cell], cell), default=None)
        if last is None:
            return []
        first = last // self.block_size * self.block_size
        block = range(first, first + self.block_size)
        if any(self._owners.get(cell, {seq_id}) != {seq_id} for cell in block):
            return []
        return [cell for cell in block if cell > last and cell not in self._owners]

    def _move(self, seq_id: int, p0: int, p1: int, moved: Callable[[int], int]) -> None:
        if not self._shifting:
            raise ValueError("the positions of this memory cannot be changed")
        for cell in self._range(self._checked(seq_id), p0, p1):
            before = self._positions[cell]
            after = moved(before)
            if after < 0:
                for owner in list(self._owners[cell]):
                    self._disown(owner, cell)
                continue
            self._positions[cell] = after
            self._shifts[cell] = self._shifts.get(cell, 0) + after - before

    def _disown(self, seq_id: int, cell: int) -> None:
        self._owned[seq_id].discard(cell)
        owners = self._owners[cell]
        owners.discard(seq_id)
        if owners:
            return
        del self._owners[cell], self._positions[cell]
        self._shifts.pop(cell, None)
        block = cell // self.block_size
        self._used[block] -= 1
        if not self._used[block]:
            del self._used[block]
            self._free.append(block)
