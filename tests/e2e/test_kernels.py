"""The default model on emulated kernels: the greedy tokens of the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulator.executor import Emulator, compiler

from velollm.engine import BlockManager, CudaRunner, NumpyRunner, Sequence
from velollm.engine.runner import Runner
from velollm.engine.scheduler import Chunk

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler (g++) to emulate kernels with"),
]
PROMPT = [504, 3575, 282, 4649, 314]  # "The capital of France is"
PARIS = 7042


def greedy(runner: Runner, count: int) -> list[int]:
    blocks = BlockManager(4)
    sequence = Sequence(0, PROMPT[:])
    sequence.table = blocks.open()
    assert sequence.table is not None
    for _ in range(count):
        start, end = sequence.num_computed, len(sequence.tokens)
        assert blocks.grow(sequence.table, start, end)
        logits = runner.execute([Chunk(sequence, start, end - start)])
        sequence.num_computed = end
        sequence.tokens.append(int(logits[0].argmax()))
    return sequence.tokens[len(PROMPT) :]


def test_the_default_model_says_the_same(default_model: Path) -> None:
    expected = greedy(NumpyRunner(default_model, 4), 4)
    assert expected[0] == PARIS
    assert greedy(CudaRunner(default_model, 4, scalar="fp32", on=Emulator()), 4) == expected
    assert greedy(CudaRunner(default_model, 4, scalar="bf16", on=Emulator()), 1) == [PARIS]
