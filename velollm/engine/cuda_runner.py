"""The kernels of velollm.gpu as a runner: a llama-like model over a paged cache whose tables are the block manager's.

A step is one batch. Steps that only decode are captured and replayed (`DecodeGraphs`); the others are launched one by
one. Blocks that are swapped travel on a stream of their own, and only who uses them waits for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from velollm.engine.blocks import BLOCK_SIZE
from velollm.engine.cuda_batch import DrawInputs, inputs_of
from velollm.engine.cuda_forward import Forward
from velollm.engine.cuda_graphs import DecodeGraphs
from velollm.engine.cuda_model import CudaModel, load_model
from velollm.engine.cuda_moves import BlockMoves
from velollm.engine.events import Copy, Discard, Event, Export, Import
from velollm.engine.runner import RunnerError, RunnerLimits
from velollm.engine.sampling import Draw
from velollm.engine.scheduler import Chunk
from velollm.errors import ConfigError
from velollm.gpu.arrays import ITEM_SIZE, Array, widened
from velollm.gpu.executor import Executor, default_executor
from velollm.gpu.kernels import SCALARS
from velollm.gpu.sampling import argmax, sample

__all__ = ["CudaRunner"]

logger = logging.getLogger("velollm.engine")

Floats = npt.NDArray[np.float32]
GRAPH_ROWS = 64
USUAL_CONTEXT = 8192
SHARE = 0.9  # of the memory that is left beside the weights
RESERVE = 256 * 1024 * 1024  # bytes for graphs, the workspace of products, and machine code


class CudaRunner:
    """The model at `path`, with `num_blocks` blocks of KV cache (None: as many as fit), in numbers of type `scalar`.

    It is a GGUF file, or safetensors: a file or a folder of them with config.json. `context` is the longest sequence in
    tokens, by default what fits into the blocks.

    `on` is where it runs, by default the first GPU. Steps that decode up to `graph_rows` sequences are captured.
    `on_failure` is called when the GPU fails: most of what can go wrong there ends the CUDA context of the process.
    Raises `GpuUnavailable` without a GPU, `ConfigError` for a model that the kernels cannot compute.
    """

    def __init__(
        self,
        path: str | Path,
        num_blocks: int | None = 256,
        *,
        scalar: str = "fp16",
        context: int | None = None,
        slots: int = 256,
        batch: int = 256,
        graph_rows: int = GRAPH_ROWS,
        on: Executor | None = None,
        on_failure: Callable[[], object] = lambda: None,
    ) -> None:
        if scalar not in SCALARS:
            raise ConfigError(f"{scalar!r} is none of {', '.join(SCALARS)}")
        self._on = on or default_executor()
        self._scalar, self._on_failure = scalar, on_failure
        # Nothing is computed; but where the library of products is missing, that is said before the weights are read.
        self._on.multiply(self._on.empty((0, 1), scalar), self._on.empty((1, 1), scalar))
        longest = num_blocks * BLOCK_SIZE if num_blocks else USUAL_CONTEXT
        model = load_model(path, self._on, scalar, context or longest)
        shape = model.shape
        if num_blocks is None:
            num_blocks = _blocks_that_fit(model, self._on.free_memory(), scalar, batch)
        self._group = shape.heads // shape.kv_heads
        self._block = (shape.kv_heads, BLOCK_SIZE, shape.head_dim)
        self._pages = self._on.empty((2 * shape.layers, num_blocks, *self._block), scalar)
        self._forward = Forward(model=model, pages=self._pages)
        self.graphs = DecodeGraphs(
            self._on, self._forward, rows=min(graph_rows, batch), blocks=-(-shape.context // BLOCK_SIZE)
        )
        self._draws = DrawInputs(self._on, batch)
        self._moves = BlockMoves(self._on, self._pages)
        self._open = True
        self.limits = RunnerLimits(
            vocabulary=model.embedding.shape[0],
            context=shape.context,
            num_blocks=num_blocks,
            batch=batch,
            slots=slots,
        )

    def apply(self, events: Sequence[Event]) -> None:
        """Copy blocks, and carry them away and back; sharing needs nothing, for tables name the same blocks."""
        with self._driving():
            for event in events:
                match event:
                    case Copy(source, target, _):
                        self._moves.copy(source, target)
                    case Export(key, _, table, _):
                        self._moves.export(key, table)
                    case Import(key, _, table):
                        self._moves.bring_back(key, table)
                    case Discard(key):
                        self._moves.discard(key)
                    case _:
                        pass

    def execute(self, chunks: Sequence[Chunk]) -> Floats:
        """One forward pass over all chunks."""
        with self._driving():
            found = self._on.host(self._logits(chunks))  # which waits for all that was launched
            self._moves.settled()
        return widened(found, self._scalar)

    def choose(
        self, chunks: Sequence[Chunk], draws: Sequence[Draw | None]
    ) -> tuple[list[int | None], list[Floats | None]]:
        """Compute as `execute` does; where a row has a draw, choose its token on the GPU, where its logits stay.

        A row without a number that is any gives no token, and comes to the host as well.
        """
        with self._driving():
            logits = self._logits(chunks)
            tokens: list[int | None] = [None] * len(draws)
            if any(draw is not None for draw in draws):
                for row, token in enumerate(self._on.host(self._chosen(logits, draws)).tolist()):
                    if draws[row] is not None and 0 <= token < self.limits.vocabulary:
                        tokens[row] = token
            rows = [
                widened(self._on.host(logits[row]), self._scalar) if token is None else None
                for row, token in enumerate(tokens)
            ]
            self._on.finish()
            self._moves.settled()
        return tokens, rows

    def close(self) -> None:
        """Let go of the model, the cache and all else. May be called again."""
        if self._open:
            self._open = False
            self._moves.close()
            del self._forward, self._pages, self._draws, self._moves, self.graphs

    @contextmanager
    def _driving(self) -> Iterator[None]:
        """Whatever fails in here failed on the GPU, or on the way to it."""
        try:
            yield
        except Exception as error:
            logger.exception("the GPU failed")
            self._on_failure()
            raise RunnerError(f"the GPU failed: {error}") from error

    def _logits(self, chunks: Sequence[Chunk]) -> Array:
        """Those of the rows that are sampled, in order."""
        self._moves.before(chunks)
        if self.graphs.take(chunks):
            logits = self.graphs.logits(chunks)
            if logits is not None:
                return logits
        return self._forward.logits(self._on, inputs_of(chunks, self._group, self._on))

    def _chosen(self, logits: Array, draws: Sequence[Draw | None]) -> Array:
        chosen: Array
        if all(draw is None or draw.temperature <= 0 for draw in draws):
            chosen = argmax(logits, on=self._on)
        else:
            chosen = sample(logits, **self._draws.fill(draws), on=self._on)
        return chosen


def _blocks_that_fit(model: CudaModel, free: int, scalar: str, batch: int) -> int:
    """Blocks for `free` bytes, beside what the largest step needs. Raises `ConfigError` for fewer than two."""
    shape = model.shape
    widest = max(layer.gate_up.shape[0] * 3 // 2 for layer in model.layers)  # gates and ups, and what they become
    step = batch * (widest + 4 * model.embedding.shape[1] + 2 * model.output.shape[0])
    size = ITEM_SIZE[scalar]
    each = 2 * shape.layers * shape.kv_heads * BLOCK_SIZE * shape.head_dim * size
    blocks = int(free * SHARE - RESERVE - step * size) // each
    if blocks < 2:
        raise ConfigError(
            f"{free >> 20} MiB of the GPU's memory are free beside the weights: they do not suffice for a KV cache and "
            f"steps of {batch} tokens; a smaller --batch or a smaller model may do"
        )
    return blocks
