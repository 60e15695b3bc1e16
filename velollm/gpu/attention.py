"""Attention of queries over a paged KV cache.

One call for prompts, pieces of prompts, decoding and short drafts: the queries of a sequence are the last tokens of its
context. Which kernel computes it follows from the number type, the GPU, and how many queries there are.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from velollm.gpu.arrays import Array
from velollm.gpu.executor import Argument, Executor, default_executor, in_place, returned
from velollm.gpu.kernels import HEAD_DIMS, QUANTISED, SCALARS, kernel

__all__ = ["BLOCK", "MAX_GROUP", "paged_attention"]

BLOCK = 16  # tokens in a block of the cache
MAX_GROUP = 16  # query heads that share a KV head
DECODE_ROWS, PREFILL_ROWS, TILE_ROWS = 16, 64, 16
PAGES_IN_SPLIT = 8  # so many pages at least make a split worth its merging
MAX_SPLITS, MOST_BLOCKS = 64, 65_535


@attrs.frozen(kw_only=True)
class _Shape:
    """What was found in the arrays of a call, once they fit together."""

    scalar: str
    cache: str
    queries: int
    heads: int
    kv_heads: int
    head_dim: int
    sequences: int
    table_width: int
    longest: int  # queries of one sequence

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


def paged_attention(
    q: Any,
    keys: Any,
    values: Any,
    tables: Any,
    lengths: Any,
    starts: Any = None,
    *,
    max_queries: int | None = None,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Any = None,
    sinks: Any = None,
    key_scales: Any = None,
    value_scales: Any = None,
    splits: int | None = None,
    out: Any = None,
    on: Executor | None = None,
) -> Any:
    """Causal attention of `q` over the blocks that `tables` name; returns the shape of `q`.

    q: [queries, heads, head_dim] in fp32, fp16 or bf16, the sequences' queries one after another. keys, values:
    [blocks, kv_heads, 16, head_dim] of the same type, or fp8 (e4m3) or int8 with `key_scales` and `value_scales`
    [kv_heads] (fp32). tables: [sequences, width] int32, numbers of blocks. lengths: [sequences] int32, tokens in the
    cache, the queries among them. starts: [sequences + 1] int32, where the queries of each begin; without it there is
    one for each sequence. `max_queries` bounds the queries of a sequence; needed where `starts` lies on a GPU.

    `scale` is 1/sqrt(head_dim) by default. With `window` a token sees itself and the window - 1 before it. `soft_cap`
    bends scores (Gemma 2). `alibi_slopes` [heads] fp32: Press et al. 2021. `sinks` [heads] fp32 take part in the
    softmax without a value (gpt-oss). `splits` divides a context between blocks of threads; by default as the GPU
    needs it. What comes out is written to `out` where that is given.

    Arrays in NumPy come back in NumPy; others stay where they are. Raises `ValueError` when shapes do not fit together,
    `TypeError` for types that no kernel reads, `GpuUnavailable` without a GPU.
    """
    on = on or default_executor()
    lengths = on.array(lengths)
    starts = np.arange(lengths.size + 1, dtype=np.int32) if starts is None else starts
    if isinstance(starts, np.ndarray) and max_queries is None:
        max_queries = int(np.diff(starts).max(initial=0))
    if max_queries is None:
        raise ValueError("max_queries is needed where starts lies on a GPU")
    arrays = [on.array(given) for given in (q, keys, values, tables, lengths, starts)]
    shape = _check(arrays, max_queries)
    made = on.empty(arrays[0].shape, shape.scalar) if out is None else in_place(on, out, "out")
    if made.shape != arrays[0].shape or made.scalar != shape.scalar:
        raise ValueError(f"out {made.scalar} {made.shape} for q {shape.scalar} {arrays[0].shape}")
    if shape.queries == 0:
        return returned(on, made, q)
    call = _Call(
        on=on,
        shape=shape,
        out=made,
        arrays=tuple(arrays),
        slopes=_per_head(on, alibi_slopes, shape.heads, "alibi_slopes"),
        sinks=_per_head(on, sinks, shape.heads, "sinks"),
        scales=(
            _per_head(on, key_scales, shape.kv_heads, "key_scales"),
            _per_head(on, value_scales, shape.kv_heads, "value_scales"),
        ),
        how=(float(scale if scale is not None else shape.head_dim**-0.5), float(soft_cap), int(window)),
        wanted=splits,
    )
    if on.capability < 80 or shape.scalar == "fp32" or shape.cache in QUANTISED:
        call.without_tensor_cores()
    elif max_queries * shape.group <= DECODE_ROWS:
        call.decode()
    else:
        call.prefill()
    return returned(on, made, q)


def decode_shared(head_dim: int) -> int:
    """Shared memory of paged_decode.cu in bytes: rings of three stages, or what the warps found where that is more."""
    warps = 2 if head_dim > 128 else 4
    rings = warps * 3 * 2 * BLOCK * _pitch(head_dim) * 2
    return max(rings, warps * DECODE_ROWS * (head_dim + 2) * 4)


def prefill_shared(head_dim: int) -> int:
    """Shared memory of paged_prefill.cu in bytes: the queries, and two stages of keys and values."""
    span = 32 if head_dim > 128 else 64
    return (PREFILL_ROWS + 2 * 2 * span) * _pitch(head_dim) * 2


def simt_shared(head_dim: int) -> int:
    """Shared memory of paged_attention_simt.cu in bytes: the queries, and a page of keys and of values."""
    return (TILE_ROWS * head_dim + 2 * BLOCK * (head_dim + 1)) * 4


def _pitch(head_dim: int) -> int:
    return head_dim if head_dim & (head_dim - 1) == 0 else head_dim + 8


def _check(arrays: list[Array], longest: int) -> _Shape:
    q, keys, values, tables, lengths, starts = arrays
    if len(q.shape) != 3 or len(keys.shape) != 4 or keys.shape != values.shape or keys.scalar != values.scalar:
        raise ValueError(f"q {q.shape}, keys {keys.shape} and values {values.shape} do not fit together")
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    if q.shape[2] != head_dim or keys.shape[2] != BLOCK or q.shape[1] % max(kv_heads, 1):
        raise ValueError(f"q {q.shape} cannot attend to keys {keys.shape} of blocks of {BLOCK} tokens")
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"heads of {head_dim} are not supported: {', '.join(map(str, HEAD_DIMS))}")
    if q.shape[1] // kv_heads > MAX_GROUP:
        raise ValueError(f"{q.shape[1]} heads share {kv_heads}: at most {MAX_GROUP} may share one")
    if q.scalar not in SCALARS or keys.scalar not in {q.scalar, *QUANTISED}:
        raise TypeError(f"queries in {q.scalar} cannot attend to a cache in {keys.scalar}")
    if any(one.scalar != "int32" for one in (tables, lengths, starts)):
        raise TypeError("tables, lengths and starts are int32")
    sequences = lengths.size
    if len(tables.shape) != 2 or tables.shape[0] != sequences or starts.size != sequences + 1:
        raise ValueError(f"tables {tables.shape} and starts {starts.shape} do not fit {sequences} sequences")
    return _Shape(
        scalar=q.scalar,
        cache=keys.scalar,
        queries=q.shape[0],
        heads=q.shape[1],
        kv_heads=kv_heads,
        head_dim=head_dim,
        sequences=sequences,
        table_width=tables.shape[1],
        longest=longest,
    )


def _per_head(on: Executor, given: Any, heads: int, name: str) -> Array | None:
    if given is None:
        return None
    array = on.array(given)
    if array.size != heads or array.scalar != "fp32":
        raise ValueError(f"{name} has one fp32 number for each of {heads} heads")
    return array


@attrs.frozen(kw_only=True)
class _Call:
    """A call whose arrays are where kernels can read them; `wanted` is how many splits, None for as many as fit."""

    on: Executor
    shape: _Shape
    out: Array
    arrays: tuple[Array, ...]
    slopes: Array | None
    sinks: Array | None
    scales: tuple[Array | None, Array | None]
    how: tuple[float, float, int]
    wanted: int | None

    def decode(self) -> None:
        """paged_decode.cu: a row for each query and head of a group."""
        shape, splits = self.shape, self._splits(1)
        partial = self._partial(splits)
        self.on.launch(
            kernel("paged_decode", shape.scalar, head_dim=shape.head_dim),
            grid=(shape.kv_heads, shape.sequences, splits),
            block=64 if shape.head_dim > 128 else 128,
            shared=decode_shared(shape.head_dim),
            arguments=(self.out, partial, *self._common, shape.group, shape.table_width),
        )
        self._combine(partial, splits)

    def prefill(self) -> None:
        """paged_prefill.cu: tiles of 64 rows."""
        shape = self.shape
        self.on.launch(
            kernel("paged_prefill", shape.scalar, head_dim=shape.head_dim),
            grid=(-(-shape.longest * shape.group // PREFILL_ROWS), shape.kv_heads, shape.sequences),
            block=128,
            shared=prefill_shared(shape.head_dim),
            arguments=(self.out, *self._common, shape.group, shape.table_width),
        )

    def without_tensor_cores(self) -> None:
        """paged_attention_simt.cu: tiles of 16 rows, and any type of cache."""
        shape = self.shape
        tiles = -(-shape.longest * shape.group // TILE_ROWS)
        splits = self._splits(tiles)
        partial = self._partial(splits)
        self.on.launch(
            kernel("paged_attention_simt", shape.scalar, head_dim=shape.head_dim, cache=shape.cache),
            grid=(tiles * splits, shape.kv_heads, shape.sequences),
            block=128,
            shared=simt_shared(shape.head_dim),
            arguments=(self.out, partial, *self._common, *self.scales, shape.group, shape.table_width, splits),
        )
        self._combine(partial, splits)

    @property
    def _common(self) -> tuple[Argument, ...]:
        return (*self.arrays, self.slopes, self.sinks, *self.how)

    def _splits(self, tiles: int) -> int:
        """So many that two blocks of threads run on each multiprocessor, as long as each has pages enough."""
        if self.wanted is not None:
            if not 1 <= self.wanted <= MOST_BLOCKS:
                raise ValueError(f"{self.wanted} splits")
            return self.wanted
        blocks = self.shape.kv_heads * self.shape.sequences * tiles
        most = min(MAX_SPLITS, max(1, self.shape.table_width // PAGES_IN_SPLIT))
        return max(1, min(most, -(-2 * self.on.processors // blocks)))

    def _partial(self, splits: int) -> Array | None:
        shape = self.shape
        if splits == 1:
            return None
        return self.on.empty((shape.queries, shape.heads, splits, shape.head_dim + 2), "fp32")

    def _combine(self, partial: Array | None, splits: int) -> None:
        shape = self.shape
        if partial is not None:
            self.on.launch(
                kernel("combine", shape.scalar),
                grid=(shape.queries * shape.heads, 1, 1),
                block=128,
                arguments=(self.out, partial, self.sinks, shape.heads, splits, shape.head_dim),
            )
