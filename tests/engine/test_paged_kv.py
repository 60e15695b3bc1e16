"""`PagedKV` against a model of what llama.h says, and against the memory of llama.cpp itself."""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny_gguf

from velollm.engine import PagedKV

SEQUENCES = 4
HEAD = 3  # numbers before the count of cells in the state of a sequence
SEQ = st.integers(0, SEQUENCES - 1)
PLACE = st.integers(-1, 40)
CALL = st.one_of(
    st.tuples(st.just("place"), SEQ, st.integers(1, 9)),
    st.tuples(st.just("place"), SEQ, st.integers(1, 9)),
    st.tuples(st.just("seq_rm"), st.integers(-1, SEQUENCES - 1), PLACE, PLACE),
    st.tuples(st.just("seq_cp"), SEQ, SEQ, PLACE, PLACE),
    st.tuples(st.just("seq_keep"), SEQ),
    st.tuples(st.just("seq_add"), SEQ, PLACE, PLACE, st.integers(-12, 12)),
    st.tuples(st.just("seq_div"), SEQ, PLACE, PLACE, st.integers(1, 4)),
    st.tuples(st.just("clear")),
)


@attrs.define(eq=False)
class Cell:
    position: int
    owners: set[int]


class Described:
    """The words of llama.h, with as many cells as are wanted."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def clear(self) -> None:
        self.cells = []

    def place(self, seq_id: int, position: int) -> None:
        self.cells.append(Cell(position, {seq_id}))

    def seq_rm(self, seq_id: int, p0: int, p1: int) -> None:
        for cell in self._range(seq_id, p0, p1):
            cell.owners -= cell.owners if seq_id < 0 else {seq_id}
        self._tidy()

    def seq_cp(self, source: int, target: int, p0: int, p1: int) -> None:
        for cell in self._range(source, p0, p1):
            cell.owners.add(target)

    def seq_keep(self, seq_id: int) -> None:
        for cell in self.cells:
            cell.owners &= {seq_id}
        self._tidy()

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        for cell in self._range(seq_id, p0, p1):
            cell.position += delta
        self._tidy()

    def seq_div(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        for cell in self._range(seq_id, p0, p1):
            cell.position //= d

    def positions(self, seq_id: int) -> list[int]:
        return sorted(cell.position for cell in self.cells if seq_id in cell.owners)

    def _range(self, seq_id: int, p0: int, p1: int) -> list[Cell]:
        mine = [cell for cell in self.cells if seq_id < 0 or seq_id in cell.owners]
        return [cell for cell in mine if cell.position >= max(p0, 0) and (p1 < 0 or cell.position < p1)]

    def _tidy(self) -> None:
        self.cells = [cell for cell in self.cells if cell.owners and cell.position >= 0]


@settings(max_examples=200, deadline=None)
@given(calls=st.lists(CALL, max_size=30), size=st.integers(1, 5))
def test_what_llama_h_says(calls: list[tuple[Any, ...]], size: int) -> None:
    ours, theirs = PagedKV(1000, size, sequences=SEQUENCES), Described()
    shifted: dict[int, int] = {}
    for name, *arguments in calls:
        if name == "place":
            seq_id, count = arguments
            first = ours.pos_max(seq_id) + 1
            placed = ours.place(seq_id, range(first, first + count))
            assert placed is not None
            assert len(set(placed)) == count
            for position, cell in enumerate(placed, first):
                theirs.place(seq_id, position)
                shifted[cell] = position
        else:
            getattr(ours, name)(*arguments)
            getattr(theirs, name)(*arguments)
        ours.check_integrity()
        for one in range(SEQUENCES):
            positions = theirs.positions(one)
            assert [position for position, _ in ours.cells(one)] == positions
            assert ours.pos_min(one) == (positions[0] if positions else -1)
            assert ours.pos_max(one) == (positions[-1] if positions else -1)
            assert ours.table(one) == list(dict.fromkeys(cell // size for _, cell in ours.cells(one)))
        assert ours.num_cells == len(theirs.cells)
    shifts = ours.take_shifts()
    for one in range(SEQUENCES):
        for position, cell in ours.cells(one):
            assert shifted[cell] + shifts.get(cell, 0) == position
    assert ours.take_shifts() == {}


def test_room_is_what_is_left() -> None:
    memory = PagedKV(2, 4, sequences=3)
    assert memory.place(0, range(5)) == [0, 1, 2, 3, 4]
    assert memory.place(1, [0]) is None, "the rest of a block is its sequence's"
    assert memory.place(0, range(5, 8)) == [5, 6, 7]
    memory.seq_cp(0, 1, -1, -1)
    assert memory.place(1, [8]) is None
    memory.seq_rm(0, 4, -1)
    assert memory.num_free == 0, "the other sequence has them still"
    memory.seq_rm(1, 4, -1)
    assert (memory.num_free, memory.num_cells) == (1, 4)
    assert memory.place(1, [4]) == [4]
    assert memory.table(1) == [0, 1]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PagedKV(0)
    memory = PagedKV(2, sequences=2)
    for call in (lambda: memory.seq_rm(2, 0, 1), lambda: memory.seq_cp(0, -1, 0, 1), lambda: memory.pos_max(7)):
        with pytest.raises(ValueError, match="from 0 to 1"):
            call()
    with pytest.raises(ValueError, match="divided by 0"):
        memory.seq_div(0, 0, 1, 0)
    with pytest.raises(ValueError, match="begin at 0"):
        memory.place(0, [-1])
    still = PagedKV(2, shifting=False)
    assert not still.can_shift()
    with pytest.raises(ValueError, match="cannot be changed"):
        still.seq_add(0, 0, -1, 1)


# ---- against llama.cpp ----

needs_llama = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the extra llamacpp is not installed")


class Real:
    """The memory of a llama.cpp context, by the same names."""

    def __init__(self, path: Path) -> None:
        from velollm.engine.llama_cpp import Batch
        from velollm.engine.llama_runner import LlamaModel

        self._batch: Any = Batch
        self._model = LlamaModel(path)
        self._library = library = self._model.library
        params = library.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified, params.n_threads = 1024, SEQUENCES, True, 1
        params.n_threads_batch = 1
        self._context = library.llama_init_from_model(self._model.handle, params)
        self._memory = library.llama_get_memory(self._context)

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._library, f"llama_memory_{name}")
        return lambda *arguments: call(self._memory, *arguments)

    def place(self, seq_id: int, position: int) -> bool:
        one = [np.array([value], np.int32) for value in (7, position, 1, seq_id)]
        token, place, count, owner = one
        owners, wanted = np.array([owner.ctypes.data], np.uintp), np.zeros(1, np.int8)
        pointers = [array.ctypes.data for array in (place, count, owners, wanted)]
        done: int = self._library.llama_decode(self._context, self._batch(1, token.ctypes.data, None, *pointers))
        return done == 0

    def owned(self, seq_id: int) -> list[int]:
        """The positions of a sequence, out of its exported state: a head, the count, three numbers for each cell."""
        size = self._library.llama_state_seq_get_size(self._context, seq_id)
        state = c.create_string_buffer(size)
        written = self._library.llama_state_seq_get_data(self._context, c.addressof(state), size, seq_id)
        numbers = np.frombuffer(state.raw[: written // 4 * 4], np.int32)
        count = int(numbers[HEAD])
        return sorted(numbers[HEAD + 1 :][: 3 * count : 3].tolist())

    def close(self) -> None:
        self._library.llama_free(self._context)
        self._model.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    memory = Real(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))
    yield memory
    memory.close()


@needs_llama
def test_can_shift_as_there(real: Real) -> None:
    assert real.can_shift() == PagedKV(1).can_shift()


@needs_llama
@settings(max_examples=60, deadline=None)
@given(calls=st.lists(CALL, max_size=16))
def test_what_llama_cpp_does(real: Real, calls: list[tuple[Any, ...]]) -> None:
    ours = PagedKV(64, 4, sequences=SEQUENCES)
    real.clear(True)
    for name, *arguments in calls:
        if name == "place":
            seq_id, count = arguments
            for _ in range(min(count, 3)):
                position = ours.pos_max(seq_id) + 1
                if real.place(seq_id, position):
                    ours.place(seq_id, [position])
        elif name == "clear":
            real.clear(True)
            ours.clear()
        else:
            getattr(real, name)(*arguments)
            getattr(ours, name)(*arguments)
        for one in range(SEQUENCES):
            assert ours.pos_min(one) == real.seq_pos_min(one)
            assert ours.pos_max(one) == real.seq_pos_max(one)
            assert [position for position, _ in ours.cells(one)] == real.owned(one)
