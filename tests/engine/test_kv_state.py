"""States of sequences taken apart and put together again, as llama.cpp itself writes and reads them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tiny_gguf import write_tiny_gguf

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.engine import Sequence
from velollm.engine.kv_state import EMPTY, KvState
from velollm.engine.llama_context import LlamaContext
from velollm.engine.llama_runner import LlamaModel
from velollm.engine.scheduler import Chunk

TOKENS = [(7 * at * at + 5) % 500 for at in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    return LlamaModel(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture(params=["f32", "q8_0"])
def context(request: pytest.FixtureRequest, model: LlamaModel) -> Iterator[LlamaContext]:
    made = LlamaContext(
        model, 1024, sequences=4, batch=64, threads=1, kv_type=request.param, streams=True, flash=True
    )  # four streams of 256 cells
    yield made
    made.close()


def compute(context: LlamaContext, sequence: int, start: int, end: int) -> np.ndarray:
    return context.decode([Chunk(Sequence(0, TOKENS[:end]), start, end - start)], [sequence]).copy()


def test_what_is_parsed_is_what_is_packed(context: LlamaContext) -> None:
    compute(context, 2, 0, 30)
    data = context.read(2)
    state = KvState.parse(data)
    assert state.positions.tolist() == list(range(30))
    assert len(state) == 30
    packed = state.pack(2, 4)
    assert (len(packed), bytes(KvState.parse(packed).pack(2, 4))) == (len(data), bytes(packed))
    assert len(KvState.parse(context.read(1))) == 0


def test_pieces_put_together_say_the_same(context: LlamaContext) -> None:
    compute(context, 0, 0, 39)
    whole = KvState.parse(context.read(0))
    pieces = whole.between(20, 33) + (whole.between(0, 5) + whole.without(0, 5).without(20, -1)) + whole.without(0, 33)
    assert sorted(pieces.positions.tolist()) == list(range(39))
    context.write(3, pieces.pack(3, 4))
    told = compute(context, 3, 39, 40)
    assert np.allclose(told, compute(context, 0, 39, 40), atol=1e-2)  # the order of sums is another
    context.write(3, whole.without(10, 30).pack(3, 4))
    assert not np.allclose(told, compute(context, 3, 39, 40), atol=1e-2)


def test_a_small_part_lets_go_of_the_rest(context: LlamaContext) -> None:
    compute(context, 0, 0, 40)
    whole = KvState.parse(context.read(0))
    for part in (whole.between(3, 6), whole.between(0, 30).between(5, 15)):
        (piece,) = part._pieces
        assert piece.base == len(part)
        assert all(rows.base is None for rows in piece.rows)
    assert whole.between(0, 40)._pieces[0].rows[0] is whole._pieces[0].rows[0], "nothing is copied that need not be"


def test_nothing(context: LlamaContext) -> None:
    assert len(EMPTY.between(0, 9) + EMPTY) == 0
    context.write(1, EMPTY.pack(1, 4))
    assert len(KvState.parse(context.read(1))) == 0


def test_other_layouts_are_refused(context: LlamaContext) -> None:
    compute(context, 0, 0, 10)
    data = context.read(0)
    transposed = data.copy()
    transposed[16 + 12 * 10] = 1
    shared = data.copy()
    shared[20] = 2
    wide = data.copy()
    wide[16 + 12 * 10 + 16 + 4] += 1
    magic = EMPTY.pack(0, 1)
    magic[0] += 1
    broken = [transposed, shared, wide, magic, data[:-4], data[:40], data[:6], np.append(data, data[:4])]
    for number, one in enumerate(broken):
        with pytest.raises(ValueError, match="state of a sequence"):
            KvState.parse(one)
            pytest.fail(f"number {number} was taken")
