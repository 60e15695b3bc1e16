"""Models of the memory of runners, which know what each place must hold: llama.cpp's cells, and pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from velollm.engine.events import Alias, Copy, Discard, Drop, Event, Export, Import

__all__ = ["Cells", "Pages"]


class Cells:
    """llama.cpp's unified memory: `capacity` cells, each owned by slots.

    The content of a cell is the hash of all tokens up to its own.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots: dict[int, dict[int, int]] = {}  # slot → position → cell
        self.content: dict[int, int] = {}
        self.owners: dict[int, int] = {}
        self.saved: dict[int, dict[int, int]] = {}
        self._next = 0

    def apply(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Alias(source, target, start, end):
                    mine = self.slots.setdefault(target, {})
                    for position, cell in self.slots[source].items():
                        if start <= position < end:
                            assert position not in mine
                            mine[position] = cell
                            self.owners[cell] += 1
                case Drop(slot, start, end):
                    for position in [at for at in self.slots.get(slot, ()) if start <= at and (at < end or end == -1)]:
                        self._free(self.slots[slot].pop(position))
                case Export(key, slot, _, count):
                    assert key not in self.saved
                    self.saved[key] = {at: self.content[cell] for at, cell in self.slots[slot].items()}
                    assert len(self.saved[key]) == count
                    assert key < 0 or self.saved[key].keys() == set(range(count))
                case Import(key, slot, _):
                    assert not self.slots.get(slot)
                    for position, content in self.saved.pop(key).items():
                        self._put(slot, position, content)
                case Discard(key):
                    del self.saved[key]

    def compute(self, slot: int, tokens: list[int], start: int, count: int) -> None:
        mine = self.slots.setdefault(slot, {})
        assert mine.keys() == set(range(start)), "all that comes before is there, and nothing else"
        assert all(self.content[mine[at]] == hash(tuple(tokens[: at + 1])) for at in range(start))
        for position in range(start, start + count):
            self._put(slot, position, hash(tuple(tokens[: position + 1])))
        assert len(self.content) <= self.capacity

    def _put(self, slot: int, position: int, content: int) -> None:
        self._next += 1
        self.slots.setdefault(slot, {})[position] = self._next
        self.content[self._next] = content
        self.owners[self._next] = 1

    def _free(self, cell: int) -> None:
        self.owners[cell] -= 1
        if not self.owners[cell]:
            del self.owners[cell], self.content[cell]


class Pages:
    """A model of paged memory: blocks of `size` tokens that tables point at; contents as in `Cells`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks: dict[int, list[int]] = {}
        self.saved: dict[int, dict[int, int]] = {}

    def apply(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Copy(source, target, count):
                    self.blocks[target] = self.blocks[source][:count] + [0] * (self.size - count)
                case Export(key, _, table, count):
                    self.saved[key] = {at: self._at(table, at) for at in range(count)}
                case Import(key, _, table):
                    for position, content in self.saved.pop(key).items():
                        self._put(table, position, content)
                case Discard(key):
                    del self.saved[key]

    def compute(self, table: Sequence[int], tokens: list[int], start: int, count: int) -> None:
        assert all(self._at(table, at) == hash(tuple(tokens[: at + 1])) for at in range(start))
        for position in range(start, start + count):
            self._put(table, position, hash(tuple(tokens[: position + 1])))

    def _at(self, table: Sequence[int], position: int) -> int:
        return self.blocks[table[position // self.size]][position % self.size]

    def _put(self, table: Sequence[int], position: int, content: int) -> None:
        block = self.blocks.setdefault(table[position // self.size], [0] * self.size)
        block[position % self.size] = content
