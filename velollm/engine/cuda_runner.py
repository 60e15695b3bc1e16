"""The kernels of velollm.gpu as a runner: a llama-like model over a paged cache whose tables are the block manager's.

    pages [2 * layers, blocks, kv_heads, 16, head_dim]      the keys of a layer, then its values

A step is one batch. Chunks of so few tokens that their rows fit the decoding kernel come first and are attended to by
it, the others by the one for prompts; all else is computed for all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt

from velollm.engine.blocks import BLOCK_SIZE
from velollm.engine.cuda_model import Layer, load_model
from velollm.engine.events import Copy, Discard, Event, Export, Import
from velollm.engine.runner import RunnerLimits
from velollm.engine.scheduler import Chunk
from velollm.errors import ConfigError
from velollm.gpu.arrays import Array, widened
from velollm.gpu.attention import DECODE_ROWS, paged_attention
from velollm.gpu.executor import Executor, default_executor
from velollm.gpu.kernels import SCALARS
from velollm.gpu.kv import copy_blocks, write_kv
from velollm.gpu.layers import embed, rms_norm, silu_mul

__all__ = ["CudaRunner"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


class CudaRunner:
    """The model at `path`, with `num_blocks` blocks of KV cache, in numbers of type `scalar`.

    It is a GGUF file, or safetensors: a file or a folder of them with config.json.

    `on` is where it runs, by default the first GPU. Raises `GpuUnavailable` without one, `ConfigError` for a model that
    the kernels cannot compute.
    """

    def __init__(
        self,
        path: str | Path,
        num_blocks: int = 256,
        *,
        scalar: str = "fp16",
        slots: int = 256,
        batch: int = 256,
        on: Executor | None = None,
    ) -> None:
        if scalar not in SCALARS:
            raise ConfigError(f"{scalar!r} is none of {', '.join(SCALARS)}")
        self._on = on or default_executor()
        self._scalar = scalar
        self._model = load_model(path, self._on, scalar, num_blocks * BLOCK_SIZE)
        shape = self._model.shape
        self._block = (shape.kv_heads, BLOCK_SIZE, shape.head_dim)
        self._pages = self._on.empty((2 * shape.layers, num_blocks, *self._block), scalar)
        self._kept: dict[int, Array] = {}
        self._leaving: list[Array] = []  # pinned memory that launched copies may still read or write
        self.limits = RunnerLimits(
            vocabulary=self._model.embedding.shape[0],
            context=shape.context,
            num_blocks=num_blocks,
            batch=batch,
            slots=slots,
        )

    def apply(self, events: Sequence[Event]) -> None:
        """Copy blocks, and carry them away and back; sharing needs nothing, for tables name the same blocks."""
        for event in events:
            match event:
                case Copy(source, target, _):
                    self._copy(self._pages, self._pages, [source], [target])
                case Export(key, _, table, _):
                    kept = self._on.pinned((self._pages.shape[0], len(table), *self._block), self._scalar)
                    self._copy(self._pages, kept, table, range(len(table)))
                    self._kept[key] = kept
                case Import(key, _, table):
                    kept = self._kept.pop(key)
                    self._copy(kept, self._pages, range(len(table)), table)
                    self._leaving.append(kept)
                case Discard(key):
                    self._leaving.append(self._kept.pop(key))
                case _:
                    pass

    def execute(self, chunks: Sequence[Chunk]) -> Floats:
        """One forward pass over all chunks."""
        batch = _Batch(chunks, self._model.shape.heads // self._model.shape.kv_heads)
        on, model = self._on, self._model
        residual = embed(model.embedding, on.array(batch.tokens), on=on)
        inputs = batch.put(on)
        x: Array | None = None
        for number, layer in enumerate(model.layers):
            x = self._norm(x, residual, layer.attention_norm)
            x = self._attend(x, layer, self._pages[2 * number], self._pages[2 * number + 1], inputs)
            x = self._norm(x, residual, layer.feed_forward_norm)
            x = on.multiply(silu_mul(on.multiply(x, layer.gate_up), on=on), layer.down)
        x = self._norm(x, residual, model.output_norm)
        logits = on.multiply(embed(x, on.array(batch.wanted), on=on), model.output)
        found = on.host(logits)  # which waits for all that was launched
        self._leaving.clear()
        return widened(found, self._scalar)

    def close(self) -> None:
        """Let go of memory, but for what goes with the runner itself. May be called again."""
        self._kept.clear()
        self._leaving.clear()

    def _norm(self, x: Array | None, residual: Array, weight: Array) -> Array:
        """The normed sum of `residual` and `x`, which `residual` becomes; without `x` that of `residual`."""
        epsilon = self._model.shape.epsilon
        if x is None:
            normed: Array = rms_norm(residual, weight, epsilon=epsilon, on=self._on)
        else:
            normed = rms_norm(x, weight, epsilon=epsilon, residual=residual, on=self._on)
        return normed

    def _attend(self, x: Array, layer: Layer, keys: Array, values: Array, batch: _Inputs) -> Array:
        on, shape = self._on, self._model.shape
        qkv = on.multiply(x, layer.qkv)
        queries = write_kv(
            qkv.reshape(-1, shape.heads + 2 * shape.kv_heads, shape.head_dim),
            keys,
            values,
            batch.slots,
            batch.positions,
            self._model.rotations,
            halves=shape.halves,
            bias=layer.bias,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            epsilon=shape.epsilon,
            on=on,
        )
        mixed = on.empty(queries.shape, self._scalar)
        for part in batch.parts:
            paged_attention(
                queries[part.rows],
                keys,
                values,
                part.tables,
                part.lengths,
                part.starts,
                max_queries=part.longest,
                window=shape.window,
                out=mixed[part.rows],
                on=on,
            )
        return on.multiply(mixed.reshape(-1, shape.heads * shape.head_dim), layer.output)

    def _copy(self, source: Array, target: Array, first: Sequence[int], second: Sequence[int]) -> None:
        pairs = np.stack([np.asarray(first, np.int32), np.asarray(second, np.int32)], axis=1)
        copy_blocks(source, target, pairs, on=self._on)


@attrs.frozen(kw_only=True)
class _Part:
    """Chunks that one kernel attends to: the rows `rows` of the batch."""

    rows: slice
    tables: Array
    lengths: Array
    starts: Array
    longest: int


@attrs.frozen(kw_only=True)
class _Inputs:
    """What the layers of one step have in common."""

    positions: Array
    slots: Array
    parts: tuple[_Part, ...]


class _Batch:
    """The chunks of one step, those of few tokens first; `wanted` are the rows of the samples, in the chunks' order."""

    def __init__(self, chunks: Sequence[Chunk], group: int) -> None:
        few = [chunk for chunk in chunks if chunk.count * group <= DECODE_ROWS]
        self._parts = [part for part in (few, [chunk for chunk in chunks if chunk not in few]) if part]
        self._chunks = [chunk for part in self._parts for chunk in part]
        ends = np.cumsum([chunk.count for chunk in self._chunks])
        last = {id(chunk): end - 1 for chunk, end in zip(self._chunks, ends, strict=True)}
        self.tokens = np.concatenate([np.asarray(chunk.tokens, np.int32) for chunk in self._chunks])
        self.wanted = np.array([last[id(chunk)] for chunk in chunks if chunk.sample], np.int32)

    def put(self, on: Executor) -> _Inputs:
        """All of it where kernels can read it."""
        positions = [np.arange(chunk.start, chunk.start + chunk.count) for chunk in self._chunks]
        slots = [
            np.asarray(chunk.table)[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            for chunk, place in zip(self._chunks, positions, strict=True)
        ]
        parts, first = [], 0
        for chunks in self._parts:
            counts = [chunk.count for chunk in chunks]
            parts.append(_part(on, chunks, counts, first))
            first += sum(counts)
        return _Inputs(
            positions=on.array(np.concatenate(positions).astype(np.int32)),
            slots=on.array(np.concatenate(slots).astype(np.int64)),
            parts=tuple(parts),
        )


def _part(on: Executor, chunks: Sequence[Chunk], counts: Sequence[int], first: int) -> _Part:
    given = [chunk.table for chunk in chunks]
    tables = np.full((len(chunks), max(map(len, given))), -1, np.int32)
    for row, table in zip(tables, given, strict=True):
        row[: len(table)] = table
    return _Part(
        rows=slice(first, first + sum(counts)),
        tables=on.array(tables),
        lengths=on.array(np.array([chunk.start + chunk.count for chunk in chunks], np.int32)),
        starts=on.array(np.cumsum([0, *counts]).astype(np.int32)),
        longest=max(counts),
    )
