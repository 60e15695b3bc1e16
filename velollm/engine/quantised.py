"""Quantised weights of GGUF files as float32. Needs NumPy. Layouts: ggml-common.h and ggml-quants.c of llama.cpp.

Q4_0 Q4_1 Q5_0 Q5_1 Q8_0      blocks of 32 weights with one scale, those of _1 with a minimum as well
Q2_K Q3_K Q4_K Q5_K Q6_K      blocks of 256 in parts of 16 or 32, whose scales are quantised themselves
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from velollm.models.gguf_types import TENSOR_TYPES

__all__ = ["QUANTISED", "dequantised"]

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
SHIFTS = np.array([0, 2, 4, 6], np.uint8)


def dequantised(kind: int, data: Bytes) -> Floats:
    """The weights in `data`, whole blocks of the tensor type `kind`, one of `QUANTISED`, in their order."""
    _, size = TENSOR_TYPES[kind]
    weights: Floats = QUANTISED[kind](data.reshape(-1, size)).reshape(-1)
    return weights


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at the byte `at` of each block, as [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(blocks: Bytes) -> Bytes:
    """The low halves of all bytes, then the high ones: [..., n] to [..., 2 * n]."""
    return np.concatenate([blocks & 15, blocks >> 4], axis=-1)


def _bits(blocks: Bytes) -> Bytes:
    """Single bits, the lowest of the first byte first: [blocks, n] to [blocks, 8 * n]."""
    return np.unpackbits(blocks, axis=-1, bitorder="little")


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    fives = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4
    return _half(blocks, 0) * (fives.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


def _pairs(data: Bytes) -> Bytes:
    """Two bits at a time of each run of 32 bytes, the lowest first: [blocks, 32 * n] to [blocks, 8 * n, 16]."""
    runs: Bytes = data.reshape(len(data), -1, 1, 32) >> SHIFTS[:, None] & np.uint8(3)
    return runs.reshape(len(data), -1, 16)


def _q2_k(blocks: Bytes) -> Floats:
    scales = blocks[:, :16, None]
    steps, lowest = _half(blocks, 80)[..., None] * (scales & 15), _half(blocks, 82)[..., None] * (scales >> 4)
    return np.asarray(steps * _pairs(blocks[:, 16:80]) - lowest)


def _q3_k(blocks: Bytes) -> Floats:
    low, high = _nibbles(blocks[:, 96:104]), blocks[:, None, 104:108] >> SHIFTS[:, None] & 3
    scales = (low | high.reshape(-1, 16) << 4).astype(np.float32) - 32
    top = (blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(-1, 16, 16)
    threes = _pairs(blocks[:, 32:96]).astype(np.float32) - 4 * (1 - top.astype(np.float32))
    return np.asarray((_half(blocks, 108) * scales)[..., None] * threes)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 8 scales and the 8 minima, of 6 bits each, in 12 bytes: [blocks, 8] twice."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    return scales, np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)


def _scaled(blocks: Bytes, numbers: Bytes) -> Floats:
    """`numbers` [blocks, 8, 32] by the scales and minima in front of a block of Q4_K or Q5_K."""
    scales, minima = _six_bits(blocks[:, 4:16])
    steps, lowest = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return np.asarray(steps[..., None] * numbers - lowest[..., None])


def _q4_k(blocks: Bytes) -> Floats:
    return _scaled(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Bytes) -> Floats:
    top: Bytes = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return _scaled(blocks, _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | top << np.uint8(4))


def _q6_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 16, 16)
    sixes = (low | _pairs(blocks[:, 128:192]) << 4).astype(np.float32) - 32
    scales = blocks[:, 192:208].view(np.int8)
    return np.asarray((_half(blocks, 208) * scales)[..., None] * sixes)


QUANTISED: Mapping[int, Callable[[Bytes], Any]] = MappingProxyType(
    {
        2: _q4_0,
        3: _q4_1,
        6: _q5_0,
        7: _q5_1,
        8: _q8_0,
        10: _q2_k,
        11: _q3_k,
        12: _q4_k,
        13: _q5_k,
        14: _q6_k,
    }
)
