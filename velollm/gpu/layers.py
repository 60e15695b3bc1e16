"""What a transformer needs around attention: norms, the middle of a feed-forward block, the embedding of tokens."""

from __future__ import annotations

from typing import Any

from velollm.gpu.arrays import ITEM_SIZE, Array
from velollm.gpu.executor import Executor, default_executor, in_place, returned
from velollm.gpu.kernels import SCALARS, kernel

__all__ = ["embed", "gelu_mul", "rms_norm", "silu_mul"]

CHUNK = 16  # bytes that a thread reads at once
SILU, GELU = 0, 1


def rms_norm(x: Any, weight: Any, *, epsilon: float = 1e-5, residual: Any = None, on: Executor | None = None) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * weight along the last dimension; returns the shape of `x`.

    x: [..., width]; weight: [width], of the same type (fp32, fp16, bf16); width is a multiple of 16 bytes. With
    `residual`, of the shape of `x`, that becomes residual + x in place, and it is what is normed.
    """
    on = on or default_executor()
    made_x, made_weight = on.array(x), on.array(weight)
    width = _width(made_x)
    if made_weight.shape != (width,) or made_weight.scalar != made_x.scalar:
        raise ValueError(f"weights {made_weight.scalar} {made_weight.shape} for {made_x.scalar} {made_x.shape}")
    residual = None if residual is None else in_place(on, residual, "residual")
    if residual is not None and (residual.shape != made_x.shape or residual.scalar != made_x.scalar):
        raise ValueError(f"a residual {residual.scalar} {residual.shape} for {made_x.scalar} {made_x.shape}")
    out = on.empty(made_x.shape, made_x.scalar)
    chunks = width * ITEM_SIZE[made_x.scalar] // CHUNK
    on.launch(
        kernel("rms_norm", made_x.scalar),
        grid=(made_x.size // width, 1, 1),
        block=min(1024, -(-chunks // 32) * 32),
        shared=128,
        arguments=(out, made_x, residual, made_weight, width, float(epsilon)),
    )
    return returned(on, out, x)


def silu_mul(x: Any, *, on: Executor | None = None) -> Any:
    """gate * sigmoid(gate) * up for `x` [..., 2 * width], gates before ups: [..., width], a multiple of 16 bytes."""
    return _gated(x, SILU, on)


def gelu_mul(x: Any, *, on: Executor | None = None) -> Any:
    """gelu(gate) * up for `x` [..., 2 * width], gates before ups, by tanh (Hendrycks and Gimpel 2016): [..., width]."""
    return _gated(x, GELU, on)


def embed(table: Any, ids: Any, *, on: Executor | None = None) -> Any:
    """The rows of `table` [entries, width] that `ids` int32 name; zeros where there is no such row."""
    on = on or default_executor()
    made_table, made_ids = on.array(table), on.array(ids)
    width = _width(made_table)
    if len(made_table.shape) != 2 or made_ids.scalar != "int32":
        raise TypeError(f"a table {made_table.shape} has no rows named by {made_ids.scalar}")
    out = on.empty((*made_ids.shape, width), made_table.scalar)
    on.launch(
        kernel("embedding", made_table.scalar),
        grid=(made_ids.size, 1, 1),
        block=128,
        arguments=(out, made_table, made_ids, made_table.shape[0], width),
    )
    return returned(on, out, table)


def _gated(x: Any, activation: int, on: Executor | None) -> Any:
    on = on or default_executor()
    made = on.array(x)
    width = _width(made, parts=2)
    rows = made.size // (2 * width)
    out = on.empty((*made.shape[:-1], width), made.scalar)
    chunks = width * ITEM_SIZE[made.scalar] // CHUNK
    on.launch(
        kernel("gated", made.scalar),
        grid=(rows, -(-chunks // 256), 1),
        block=256,
        arguments=(out, made, width, activation),
    )
    return returned(on, out, x)


def _width(x: Array, parts: int = 1) -> int:
    if x.scalar not in SCALARS or not x.shape:
        raise TypeError(f"{x.scalar} {x.shape} has no rows of numbers")
    width = x.shape[-1] // parts
    if width == 0 or x.shape[-1] % parts or width * ITEM_SIZE[x.scalar] % CHUNK:
        raise ValueError(f"rows of {x.shape[-1]} {x.scalar}: they must be a multiple of {parts * CHUNK} bytes")
    return width
