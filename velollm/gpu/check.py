"""Runs the kernels where they are to run, and compares with NumPy in float64: a few random cases of each call; products
and graphs as well where cuBLASLt is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import attrs
import numpy as np
import numpy.typing as npt

from velollm.gpu.arrays import rounded, widened
from velollm.gpu.attention import BLOCK, paged_attention
from velollm.gpu.check_layers import LAYER_CASES, PRODUCT_CASES
from velollm.gpu.errors import GpuUnavailable
from velollm.gpu.executor import Executor
from velollm.gpu.kernels import HEAD_DIMS, SCALARS

__all__ = ["Finding", "check"]

Floats = npt.NDArray[np.float64]
TOLERANCE = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}  # of the largest number: the hardware's exp2 is an approximation


@attrs.frozen(kw_only=True)
class Finding:
    """How far the case `name` was from NumPy, as a share of the largest number, and how far it may be."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Near enough."""
        return self.error <= self.tolerance  # a NaN is not


def check(on: Executor, *, seed: int = 0) -> Iterator[Finding]:
    """Every case on `on`, one after the other."""
    for name, scalar, case in _cases(on):
        random = np.random.default_rng(seed)
        got, expected = case(random)
        error = float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-9))
        yield Finding(name=name, error=error, tolerance=TOLERANCE[scalar])


def _multiplies(on: Executor) -> bool:
    """Whether the library of products is installed; no number is multiplied."""
    try:
        on.multiply(on.empty((0, 1), "fp32"), on.empty((1, 1), "fp32"))
    except GpuUnavailable:
        return False
    return True


Case = Callable[[np.random.Generator], tuple[Floats, Floats]]


def _cases(on: Executor) -> Iterator[tuple[str, str, Case]]:
    for scalar in SCALARS:
        for head_dim in HEAD_DIMS:
            for what, lengths, queries in (("decode", (1, 33, 300), (1, 1, 1)), ("prefill", (40, 150), (40, 70))):
                name = f"paged_attention {what} {scalar} d{head_dim}"
                yield name, scalar, _attention(on, scalar, head_dim, lengths, queries)
        for call, layer in {**LAYER_CASES, **(PRODUCT_CASES if _multiplies(on) else {})}.items():
            yield f"{call} {scalar}", scalar, partial(layer, on, scalar)


def _attention(on: Executor, scalar: str, head_dim: int, lengths: tuple[int, ...], queries: tuple[int, ...]) -> Case:
    def case(random: np.random.Generator) -> tuple[Floats, Floats]:
        kv_heads, group, width = 2, 4, -(-max(lengths) // BLOCK)
        numbers = random.permutation(len(lengths) * width).reshape(len(lengths), width)
        caches = random.standard_normal((2, numbers.size, kv_heads, BLOCK, head_dim))
        q = random.standard_normal((sum(queries), kv_heads * group, head_dim))
        given = [rounded(one, scalar) for one in (q, *caches)]
        on_device = [on.array(one, scalar) for one in given]
        out = paged_attention(
            on_device[0],
            on_device[1],
            on_device[2],
            numbers.astype(np.int32),
            np.array(lengths, np.int32),
            np.concatenate([[0], np.cumsum(queries)]).astype(np.int32),
            on=on,
        )
        q, keys, values = (widened(one, scalar).astype(np.float64) for one in given)
        found, at = [], 0
        for table, length, count in zip(numbers, lengths, queries, strict=True):
            k, v = (one[table].swapaxes(0, 1).reshape(kv_heads, -1, head_dim)[:, :length] for one in (keys, values))
            found.append(_attend(q[at : at + count], k.repeat(group, 0), v.repeat(group, 0)))
            at += count
        return widened(on.host(out), scalar).astype(np.float64), np.concatenate(found)

    return case


def _attend(q: Floats, keys: Floats, values: Floats) -> Floats:
    """[queries, heads, width] to [heads, tokens, width], the last query being the last token."""
    scores = np.einsum("qhd,htd->hqt", q, keys) * q.shape[-1] ** -0.5
    tokens = keys.shape[1]
    scores[:, np.arange(tokens) > np.arange(tokens - len(q), tokens)[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed: Floats = np.einsum("hqt,htd->qhd", weights / weights.sum(-1, keepdims=True), values)
    return mixed
