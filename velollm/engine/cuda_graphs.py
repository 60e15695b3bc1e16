"""Steps of one token for each sequence, captured once for each size and then done again: CUDA graphs for decoding.

    chunks ─▶ places that stay (`DecodeInputs`) ─▶ replay of the step that was captured for so many rows ─▶ logits

Sizes are powers of two: of rows (1, 2, 4, ...), and of the blocks in a table, for its width decides between how many
blocks of threads a context is divided. What a step needs on the way lies in one arena, for no two steps run at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import attrs

from velollm.engine.blocks import BLOCK_SIZE
from velollm.engine.cuda_batch import DecodeInputs
from velollm.engine.cuda_forward import Forward
from velollm.engine.scheduler import Chunk
from velollm.gpu.arrays import Array
from velollm.gpu.executor import Executor
from velollm.gpu.recording import Arena, Recorder

__all__ = ["DecodeGraphs"]

logger = logging.getLogger("velollm.engine")

NARROWEST = 32  # blocks in a table: 512 tokens


@attrs.define
class _Step:
    inputs: DecodeInputs
    again: Callable[[], None] | None = None


class DecodeGraphs:
    """Captured steps of `forward` on `on`, for up to `rows` sequences of up to `blocks` blocks each."""

    def __init__(self, on: Executor, forward: Forward, *, rows: int, blocks: int) -> None:
        self._on, self._forward = on, forward
        self._most_rows, self._most_blocks = rows, blocks
        self._arena = Arena(on.empty)
        self._logits: Array | None = None
        self._steps: dict[tuple[int, int], _Step] = {}
        self.replays = 0

    def take(self, chunks: Sequence[Chunk]) -> bool:
        """Whether this step is one of those that are captured."""
        return len(chunks) <= self._most_rows and all(chunk.count == 1 and chunk.sample for chunk in chunks)

    def logits(self, chunks: Sequence[Chunk]) -> Array | None:
        """Logits [len(chunks), vocabulary], good until the next step; None where the step could not be captured.

        What was copied for the step before must be done.
        """
        rows = _power(len(chunks), self._most_rows)
        width = _power(max(NARROWEST, *(chunk.start // BLOCK_SIZE + 1 for chunk in chunks)), self._most_blocks)
        step = self._steps.get((rows, width))
        if step is None:
            step = self._steps[rows, width] = _Step(DecodeInputs(self._on, rows, width))
        step.inputs.fill(chunks)
        out = self._out(rows)
        if step.again is not None:
            self.replays += 1
            step.again()
            return out[: len(chunks)]
        recorder = Recorder(self._on, self._arena)
        self._forward.logits(recorder, step.inputs.inputs, out)
        try:
            step.again = self._on.capture(recorder.work)
        except Exception as error:  # what the driver refuses here may well run by itself: see the caller
            logger.warning("steps are not captured, and are slower for it: %s", error)
            self._most_rows = 0
            self._steps.clear()
            return None
        return out[: len(chunks)]

    def _out(self, rows: int) -> Array:
        """Where the logits of all steps come to lie."""
        if self._logits is None:
            model = self._forward.model
            self._logits = self._on.empty((self._most_rows, model.output.shape[0]), model.output.scalar)
        return self._logits[:rows]


def _power(least: int, most: int) -> int:
    """The first power of two from `least` on, but no more than `most`."""
    return min(1 << (least - 1).bit_length(), most)
