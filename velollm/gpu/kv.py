"""The paged KV cache: what is written into it, and how its blocks are copied, swapped out and brought back."""

from __future__ import annotations

from typing import Any

import numpy as np

from velollm.gpu.attention import BLOCK
from velollm.gpu.executor import Executor, default_executor, in_place, returned
from velollm.gpu.kernels import BYTES, QUANTISED, SCALARS, kernel

__all__ = ["copy_blocks", "write_kv"]

WIDTH = 16  # bytes that a thread copies at once


def write_kv(
    qkv: Any,
    keys: Any,
    values: Any,
    slots: Any,
    positions: Any,
    rotations: Any,
    *,
    halves: bool = False,
    key_scales: Any = None,
    value_scales: Any = None,
    bias: Any = None,
    q_norm: Any = None,
    k_norm: Any = None,
    epsilon: float = 1e-5,
    on: Executor | None = None,
) -> Any:
    """Turn queries and keys by their positions, put keys and values into the cache, and return the turned queries.

    qkv: [tokens, heads + 2 * kv_heads, head_dim], queries before keys before values. keys, values: [blocks, kv_heads,
    16, head_dim], changed in place: of the same type, or fp8 (e4m3) or int8 of numbers divided by `key_scales` and
    `value_scales` [kv_heads]. slots: [tokens] int64, block * 16 + place, or -1 for what is not kept. positions:
    [tokens] int32. rotations: [positions, rotary / 2, 2] fp32, of `rotations()`. Neighbours turn together (llama in
    GGUF), or with `halves` those half of `rotary` apart (Qwen, and llama in safetensors). `bias` [heads + 2 * kv_heads,
    head_dim] is added first (Qwen2); `q_norm` and `k_norm` [head_dim] with `epsilon` norm each head before it turns
    (Qwen3); all of the type of `qkv`. head_dim is at most 256.

    Returns [tokens, heads, head_dim]. Raises `ValueError` when shapes do not fit together, `TypeError` for types that
    no kernel reads.
    """
    on = on or default_executor()
    keys, values = in_place(on, keys, "keys"), in_place(on, values, "values")
    made, slots, positions, rotations = (on.array(one) for one in (qkv, slots, positions, rotations))
    tokens, all_heads, head_dim = made.shape
    kv_heads = keys.shape[1]
    heads = all_heads - 2 * kv_heads
    rotary = 2 * rotations.shape[1]
    if keys.shape != values.shape or keys.shape[2:] != (BLOCK, head_dim) or keys.scalar != values.scalar or heads < 1:
        raise ValueError(f"{made.shape} does not fit caches {keys.shape} and {values.shape}")
    if slots.size != tokens or positions.size != tokens or rotary > head_dim or head_dim % 2 or head_dim > 256:
        raise ValueError(f"slots {slots.shape}, positions {positions.shape} or rotations {rotations.shape} do not fit")
    if (slots.scalar, positions.scalar, rotations.scalar) != ("int64", "int32", "fp32"):
        raise TypeError("slots are int64, positions int32, rotations fp32")
    if made.scalar not in SCALARS or keys.scalar not in {made.scalar, *QUANTISED}:
        raise TypeError(f"{made.scalar} cannot be kept in a cache of {keys.scalar}")
    turned = on.empty((tokens, heads, head_dim), made.scalar)
    scales = [None if one is None else on.array(one) for one in (key_scales, value_scales)]
    changes = [None if one is None else on.array(one, made.scalar) for one in (bias, q_norm, k_norm)]
    for one, size in zip(changes, (all_heads * head_dim, head_dim, head_dim), strict=True):
        if one is not None and (one.size != size or one.scalar != made.scalar):
            raise ValueError(f"a bias or a norm of {one.scalar} {one.shape} for {made.scalar} {made.shape}")
    on.launch(
        kernel("write_kv", made.scalar, cache=keys.scalar),
        grid=(tokens, 1, 1),
        block=128,
        arguments=(
            *(turned, keys, values, made, slots, positions, rotations, *scales, *changes),
            *(float(epsilon), heads, kv_heads, head_dim, rotary, int(halves)),
        ),
    )
    return returned(on, turned, qkv)


def copy_blocks(source: Any, target: Any, pairs: Any, *, on: Executor | None = None) -> None:
    """Copy for each of `pairs` [pairs, 2] int32 the first, a block of `source`, to the second, a block of `target`.

    source, target: [planes, blocks, ...] of one type, with blocks of one shape; a plane is the keys or the values of a
    layer. They may be one cache (copy-on-write), as long as no block is both read and written. With one of them in
    pinned memory of the host (`CudaExecutor.pinned`) this swaps blocks out, or brings them back in.
    """
    on = on or default_executor()
    source, target, pairs = on.array(source), in_place(on, target, "target"), on.array(pairs)
    if len(source.shape) < 3 or source.scalar != target.scalar:
        raise ValueError(f"{source.scalar} {source.shape} and {target.scalar} {target.shape} are no caches of one kind")
    if source.shape[2:] != target.shape[2:] or source.shape[0] != target.shape[0]:
        raise ValueError(f"blocks of {source.shape} do not fit into {target.shape}")
    if pairs.scalar != "int32" or pairs.shape[1:] != (2,):
        raise TypeError(f"pairs are int32 [pairs, 2], not {pairs.scalar} {pairs.shape}")
    size = source.nbytes // max(1, source.shape[0] * source.shape[1])
    if size % WIDTH:
        raise ValueError(f"blocks of {size} bytes: they must be a multiple of {WIDTH}")
    planes = [np.uint64(one.shape[1] * size) for one in (target, source)]
    on.launch(
        kernel("copy_blocks", BYTES),
        grid=(pairs.shape[0], source.shape[0], 1),
        block=256,
        arguments=(target, source, pairs, *planes, np.uint64(size)),
    )
