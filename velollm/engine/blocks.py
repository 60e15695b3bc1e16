"""Blocks of KV cache: who uses them, what is in them, which may be taken. Bookkeeping alone, no memory of its own.

    free ──grow──▶ in use (refs ≥ 1) ──publish──▶ in use and findable
     ▲                  │ close                        │ close
     ├──────────────────┘                              ▼
     └────────grow, lay_aside (the oldest first)── cached (refs 0, findable) ◀──recall── on the host (findable)

A block is found by the hash of everything before and in it, so that equal hashes mean equal KV. What must happen in the
runner's memory comes out as events, in order (see `velollm.engine.events`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import takewhile

from velollm.engine.aside import Aside, Parcel
from velollm.engine.events import Copy, Event, Export, Import
from velollm.engine.residents import Residents

__all__ = ["BLOCK_SIZE", "Block", "BlockManager", "Table", "hash_chain", "root_hash"]

BLOCK_SIZE = 16
DIGEST = 16


def root_hash(*keys: str | bytes) -> bytes:
    """The start of a chain: sequences share blocks only when all `keys` (tenant, model, adapter, ...) are the same."""
    digest = blake2b(digest_size=DIGEST)
    for key in keys:
        data = key.encode() if isinstance(key, str) else key
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def hash_chain(tokens: Sequence[int], root: bytes, known: list[bytes], size: int = BLOCK_SIZE) -> None:
    """Extend `known` to one hash for each full block of `tokens`."""
    first, full = len(known), len(tokens) // size
    if full <= first:
        return
    data = array("i", tokens[first * size : full * size]).tobytes()
    width = len(data) // (full - first)
    last = known[-1] if known else root
    for at in range(0, len(data), width):
        last = blake2b(last + data[at : at + width], digest_size=DIGEST).digest()
        known.append(last)


class Block:
    """One block: `depth` is its place in a sequence, `owners` the slots in whose memory its cells lie."""

    __slots__ = ("depth", "hash", "id", "next", "owners", "prev", "refs")

    def __init__(self, number: int) -> None:
        self.id = number
        self.refs = 0
        self.hash: bytes | None = None
        self.depth = 0
        self.owners: set[int] = set()
        self.prev: Block = self
        self.next: Block = self


class Table:
    """The blocks of one running sequence, in order; `slot` is its id in the runner's memory."""

    __slots__ = ("blocks", "slot")

    def __init__(self, slot: int, blocks: list[Block]) -> None:
        self.slot = slot
        self.blocks = blocks


class _Ring:
    """Blocks without a user, the next to be taken in front: doubly linked, so that any of them leaves at once."""

    __slots__ = ("_end", "count")

    def __init__(self) -> None:
        self._end = Block(-1)
        self.count = 0

    def append(self, block: Block) -> None:
        before, after = self._end.prev, self._end
        before.next = after.prev = block
        block.prev, block.next = before, after
        self.count += 1

    def remove(self, block: Block) -> None:
        block.prev.next, block.next.prev = block.next, block.prev
        block.prev = block.next = block
        self.count -= 1

    def pop(self) -> Block:
        block = self._end.next
        self.remove(block)
        return block

    def __iter__(self) -> Iterator[Block]:
        block = self._end.next
        while block is not self._end:
            yield block
            block = block.next


class BlockManager:
    """A pool of `num_blocks` blocks of `block_size` tokens, for at most `slots` sequences and holders.

    `host_tokens` of what is cached may lie on the host. With `sharing=False` nothing is ever found again, and forks are
    refused.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = BLOCK_SIZE,
        *,
        slots: int = 256,
        sharing: bool = True,
        host_tokens: int = 0,
    ) -> None:
        if num_blocks < 1 or block_size < 1 or slots < 1:
            raise ValueError("a pool needs at least one block, one token a block and one slot")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.sharing = sharing
        self.events: list[Event] = []
        self.evicted = 0
        self.recalled = 0
        self._blocks = [Block(number) for number in range(num_blocks)]
        self._blank = _Ring()
        self._idle = _Ring()  # those that can be found
        for block in self._blocks:
            self._blank.append(block)
        self._cached: dict[bytes, Block] = {}
        self._residents = Residents(slots, block_size, self.events)
        self._aside = Aside(host_tokens // block_size, self.events)

    @property
    def num_free(self) -> int:
        """Blocks that can be had: the free and the cached ones."""
        return self._blank.count + self._idle.count

    @property
    def num_cached(self) -> int:
        """Blocks that can be found, without those on the host."""
        return len(self._cached)

    @property
    def num_aside(self) -> int:
        """Blocks on the host."""
        return self._aside.count

    @property
    def capacity(self) -> int:
        """Tokens that fit into the whole pool."""
        return self.num_blocks * self.block_size

    def take_events(self) -> list[Event]:
        """What must happen in memory since the last call, in order."""
        taken = self.events[:]
        self.events.clear()
        return taken

    # ---- a sequence's life ----

    def match(self, hashes: Sequence[bytes]) -> list[Block]:
        """The longest run of blocks, from the first on, that are there."""
        found: list[Block] = []
        cached = self._cached
        for key in hashes:
            block = cached.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def need(self, hits: Sequence[Block], num_tokens: int) -> int:
        """How many of the free blocks a sequence of `num_tokens` takes that begins with `hits`."""
        waking = sum(not block.refs for block in hits)
        return -(-num_tokens // self.block_size) - len(hits) + waking

    def open(self, hits: Sequence[Block] = ()) -> Table | None:
        """A table that begins with `hits`; None when every slot is running."""
        self._ref(hits)
        slot = self._slot()
        if slot is None:
            self._unref(hits)
            return None
        blocks = list(hits)
        self._residents.move_in(slot, blocks)
        return Table(slot, blocks)

    def grow(self, table: Table, start: int, end: int) -> bool:
        """Have blocks for the tokens up to `end`, of which those from `start` on will be written; or change nothing.

        A block that is written to and shared is copied before (copy-on-write).
        """
        blocks, size = table.blocks, self.block_size
        need = -(-end // size) - len(blocks)
        shared = start < end and start % size != 0 and blocks[start // size].refs > 1
        if need <= 0 and not shared:
            return True
        if need + shared > self.num_free:
            return False
        while self._blank.count < need + shared and self._aside.room:
            self._lay_aside()
        if shared:
            old = blocks[-1]
            new = self._take(table.slot, old.depth)
            old.refs -= 1
            old.owners.discard(table.slot)
            blocks[-1] = new
            self.events.append(Copy(old.id, new.id, start % size))
        for depth in range(len(blocks), len(blocks) + need):
            blocks.append(self._take(table.slot, depth))
        return True

    def publish(self, table: Table, hashes: Sequence[bytes], first: int, end: int) -> None:
        """The blocks from `first` up to `end` are full and computed: let others find them."""
        if not self.sharing:
            return
        for number in range(first, end):
            block, key = table.blocks[number], hashes[number]
            if block.hash is None and key not in self._cached:
                block.hash = key
                self._cached[key] = block

    def fork(self, table: Table) -> Table | None:
        """A second table with the same blocks; None when every slot is running, or nothing may be shared."""
        if not self.sharing:
            return None
        for block in table.blocks:
            block.refs += 1
        slot = self._slot()
        if slot is None:
            self._unref(table.blocks)
            return None
        self._residents.copy(table.slot, slot, table.blocks)
        return Table(slot, table.blocks[:])

    def close(self, table: Table) -> None:
        """The sequence is gone. Its published blocks stay findable until others need the room."""
        self._residents.move_out(table.slot, table.blocks)
        self._unref(table.blocks)
        table.blocks = []

    # ---- to the host and back ----

    def lay_aside(self, keep: int) -> None:
        """Carry what is only cached to the host, the longest unused first, but for `keep` blocks."""
        while self._idle.count > keep and self._aside.room:
            self._lay_aside()

    def recall(self, hits: list[Block], hashes: Sequence[bytes]) -> list[Block]:
        """`hits`, the blocks of the first of `hashes`, and what follows them on the host: brought back, if it fits."""
        while len(hits) < len(hashes):
            parcel = self._aside.find(hashes[len(hits)])
            if parcel is None or not self._bring_back(parcel, hits):
                break
            hits = self.match(hashes)
        return hits

    def _lay_aside(self) -> None:
        """The blocks that were let go of together, the longest ago."""
        first = next(iter(self._idle))
        slot = next(iter(first.owners))
        blocks = sorted(takewhile(lambda block: slot in block.owners, self._idle), key=lambda block: block.depth)
        if self._residents.lend(slot, blocks, self._export):
            self.evicted -= len(blocks)
        for block in blocks:
            self._idle.remove(block)
            self._forget(block)
            self._blank.append(block)

    def _export(self, slot: int, blocks: Sequence[Block]) -> bool:
        key = self._aside.add([block.depth for block in blocks], [block.hash or b"" for block in blocks])
        if key is not None:
            table = tuple(block.id for block in blocks)
            self.events.append(Export(key, slot, table, len(blocks) * self.block_size))
        return key is not None

    def _bring_back(self, parcel: Parcel, hits: Sequence[Block]) -> bool:
        self._ref(hits)
        slot = self._slot() if len(parcel.hashes) <= self.num_free else None
        if slot is not None:
            self._aside.take(parcel)
            blocks = [self._take(slot, depth) for depth in parcel.depths]
            self.events.append(Import(parcel.key, slot, tuple(block.id for block in blocks)))
            for block, key in zip(blocks, parcel.hashes, strict=True):
                if key not in self._cached:  # else it was computed anew since
                    block.hash = key
                    self._cached[key] = block
            self._residents.move_out(slot, blocks)
            self._unref(blocks)
            self.recalled += len(blocks)
        self._unref(hits)
        return slot is not None

    # ---- inside ----

    def _ref(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            if not block.refs:
                self._idle.remove(block)
            block.refs += 1

    def _unref(self, blocks: Sequence[Block]) -> None:
        for block in reversed(blocks):  # the tail first: a prefix is worth more than what follows it
            block.refs -= 1
            if block.refs == 0:
                (self._blank if block.hash is None else self._idle).append(block)

    def _take(self, slot: int, depth: int) -> Block:
        if self._blank.count:
            block = self._blank.pop()
        else:
            block = self._idle.pop()
            self._forget(block)
        block.refs = 1
        block.depth = depth
        block.owners.add(slot)
        return block

    def _forget(self, block: Block) -> None:
        assert block.hash is not None
        del self._cached[block.hash]
        block.hash = None
        self.evicted += 1
        self._residents.evict(block)

    def _slot(self) -> int | None:
        slot = self._residents.take()
        if slot is None:
            for block in self._residents.oldest():
                self._idle.remove(block)
                self._forget(block)
                self._blank.append(block)
            slot = self._residents.take()
        return slot

    # ---- for tests ----

    def check_integrity(self, tables: Iterable[Table]) -> None:
        """Raise `AssertionError` when the books do not agree; `tables` are all that are open."""
        tables = list(tables)
        refs = dict.fromkeys(range(self.num_blocks), 0)
        for table in tables:
            for depth, block in enumerate(table.blocks):
                refs[block.id] += 1
                assert block.depth == depth
                assert table.slot in block.owners
        blank, idle = ({block.id for block in ring} for ring in (self._blank, self._idle))
        assert len(blank) == self._blank.count == len(list(self._blank))
        assert len(idle) == self._idle.count == len(list(self._idle))
        for block in self._blocks:
            assert block.refs == refs[block.id]
            assert (block.refs == 0 and block.hash is None) == (block.id in blank)
            assert (block.refs == 0 and block.hash is not None) == (block.id in idle)
            assert (block.hash is not None) == (self._cached.get(block.hash or b"") is block)
            assert block.owners or (block.refs == 0 and block.hash is None)
        assert len(self._cached) == sum(block.hash is not None for block in self._blocks)
        self._residents.check_integrity({table.slot for table in tables})
        self._aside.check_integrity()
