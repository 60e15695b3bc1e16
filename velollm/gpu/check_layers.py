"""The cases of `check` beside attention: each gives what came and what should have come, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from velollm.gpu.arrays import Array, rounded, widened
from velollm.gpu.attention import BLOCK
from velollm.gpu.executor import Executor
from velollm.gpu.kv import copy_blocks, write_kv
from velollm.gpu.layers import embed, gelu_mul, rms_norm, silu_mul
from velollm.gpu.recording import Recorder
from velollm.gpu.rope import rotations
from velollm.gpu.sampling import argmax, sample, verify_greedy

__all__ = ["LAYER_CASES", "PRODUCT_CASES"]

Floats: TypeAlias = npt.NDArray[np.float64]
Outcome: TypeAlias = tuple[Floats, Floats]
LayerCase: TypeAlias = Callable[[Executor, str, np.random.Generator], Outcome]


def _put(on: Executor, scalar: str, x: npt.NDArray[Any]) -> tuple[Array, Floats]:
    """Numbers on the device, and what they are once rounded."""
    bits = rounded(x, scalar)
    return on.array(bits, scalar), widened(bits, scalar).astype(np.float64)


def _got(on: Executor, array: Array) -> Floats:
    return widened(on.host(array), array.scalar).astype(np.float64)


def _rms_norm(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    (x, wide), (weight, weights) = (_put(on, scalar, random.standard_normal(shape)) for shape in ((5, 1544), 1544))
    residual, sums = _put(on, scalar, random.standard_normal((5, 1544)))
    out = rms_norm(x, weight, epsilon=1e-5, residual=residual, on=on)
    sums += wide
    return _got(on, out), sums / np.sqrt((sums**2).mean(-1, keepdims=True) + 1e-5) * weights


def _silu_mul(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    x, wide = _put(on, scalar, random.standard_normal((3, 2 * 2056)))
    gate, up = np.split(wide, 2, axis=1)
    return _got(on, silu_mul(x, on=on)), gate / (1 + np.exp(-gate)) * up


def _gelu_mul(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    x, wide = _put(on, scalar, random.standard_normal((3, 2 * 2056)))
    gate, up = np.split(wide, 2, axis=1)
    bent = np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))
    return _got(on, gelu_mul(x, on=on)), 0.5 * gate * (1 + bent) * up


def _embed(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    table, wide = _put(on, scalar, random.standard_normal((30, 520)))
    ids = random.integers(0, 30, 9).astype(np.int32)
    return _got(on, embed(table, on.array(ids), on=on)), wide[ids]


def _write_kv(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    """Queries, keys and values of 20 tokens, read back from where they were put, one after another."""
    qkv, wide = _put(on, scalar, random.standard_normal((20, 8, 128)))
    keys, values = (on.array(rounded(np.zeros((4, 2, BLOCK, 128)), scalar), scalar) for _ in range(2))
    slots, positions = random.permutation(4 * BLOCK)[:20], random.integers(0, 4000, 20)
    table = rotations(4000, 128)
    out = write_kv(qkv, keys, values, slots.astype(np.int64), positions.astype(np.int32), table, halves=True, on=on)
    kept = [_got(on, one)[slots // BLOCK, :, slots % BLOCK] for one in (keys, values)]
    turns = table[positions].astype(np.float64)
    turned = (wide[:, :6, :64] + 1j * wide[:, :6, 64:]) * (turns[..., 0] + 1j * turns[..., 1])[:, None]
    wide[:, :6] = np.concatenate([turned.real, turned.imag], axis=-1)
    return np.concatenate([_got(on, out), *kept], axis=1), wide


def _copy_blocks(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    cache, wide = _put(on, scalar, random.standard_normal((4, 8, 2, BLOCK, 64)))
    kept = on.pinned((4, 3, 2, BLOCK, 64), scalar)
    copy_blocks(cache, kept, np.array([[1, 0], [7, 2], [4, 1]], np.int32), on=on)
    copy_blocks(kept, cache, np.array([[0, 0], [1, 5]], np.int32), on=on)
    wide[:, [0, 5]] = wide[:, [1, 4]]
    return _got(on, cache), wide


def _argmax(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    logits, wide = _put(on, scalar, random.standard_normal((3, 3203)))
    return on.host(argmax(logits, on=on)).astype(np.float64), wide.argmax(-1).astype(np.float64)


def _sample(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    """How often each of the three tokens that top-k leaves is drawn; Philox says the same everywhere."""
    logits, wide = _put(on, scalar, np.tile(random.standard_normal(300), (96, 1)))
    drawn = on.host(sample(logits, seeds=np.arange(96), positions=7, top_k=3, on=on))
    best = np.argsort(-wide[0])[:3]
    weights = np.exp(wide[0, best] - wide[0, best[0]])
    shares = np.array([(drawn == token).mean() for token in best])
    near = np.abs(shares - weights / weights.sum()) < 0.2  # nearly four standard deviations of 96 draws
    return near.astype(np.float64), np.ones(3)


def _verify(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    drafts, chosen = np.array([[5, 6, 7], [5, 9, -1]], np.int32), np.array([5, 6, 8, 9, 5, 9, 3], np.int32)
    starts = np.array([0, 4, 7], np.int32)
    kept, tokens = verify_greedy(*map(on.array, (drafts, chosen, starts)), on=on)
    got = np.concatenate([on.host(kept), on.host(tokens).ravel()]).astype(np.float64)
    return got, np.array([2, 2, 5, 6, 8, -1, 5, 9, 3, -1], np.float64)


def _product(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    (x, wide), (weight, weights), (bias, biases) = (
        _put(on, scalar, random.standard_normal(shape)) for shape in ((5, 264), (96, 264), 96)
    )
    return _got(on, on.multiply(x, weight, bias=bias)), wide @ weights.T + biases


def _graph(on: Executor, scalar: str, random: np.random.Generator) -> Outcome:
    """A norm and a product, captured, and done again with other numbers from pinned memory."""
    x, _ = _put(on, scalar, random.standard_normal((3, 264)))
    (weight, weights), (square, squares) = (_put(on, scalar, random.standard_normal(one)) for one in (264, (32, 264)))
    recorder, staged = Recorder(on), on.pinned((3, 264), scalar)
    out = recorder.multiply(rms_norm(x, weight, on=recorder), square)
    again = on.capture(recorder.work)
    staged.view()[...] = rounded(random.standard_normal((3, 264)), scalar)
    wide = widened(staged.view(), scalar).astype(np.float64)
    on.copy(staged, x)
    again()
    return _got(on, out), wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weights @ squares.T


LAYER_CASES: Mapping[str, LayerCase] = MappingProxyType(
    {
        "rms_norm": _rms_norm,
        "silu_mul": _silu_mul,
        "gelu_mul": _gelu_mul,
        "embed": _embed,
        "write_kv": _write_kv,
        "copy_blocks": _copy_blocks,
        "argmax": _argmax,
        "sample": _sample,
        "verify_greedy": _verify,
    }
)
# What takes the library of products besides.
PRODUCT_CASES: Mapping[str, LayerCase] = MappingProxyType({"multiply": _product, "capture": _graph})
