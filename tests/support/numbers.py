"""Numbers as kernels hold them: bfloat16 and 8-bit floats as their bits, and what they stand for in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCE", "Floats", "error", "rounded", "widened"]

Floats = npt.NDArray[np.float64]
TOLERANCE = {"fp32": 3e-6, "fp16": 2e-3, "bf16": 1.5e-2}  # of the largest value: a few roundings of the type


def rounded(x: npt.NDArray[Any], scalar: str) -> npt.NDArray[Any]:
    """`x` to the nearest number of the type, ties to even."""
    if scalar == "bf16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if scalar == "fp8":
        order = np.argsort(FP8, kind="stable")
        middles = (FP8[order][1:] + FP8[order][:-1]) / 2
        at = np.searchsorted(middles, np.clip(x, -448, 448))
        tied = (at < len(middles)) & (middles[np.minimum(at, len(middles) - 1)] == x) & (order[at] % 2 == 1)
        return POSITIONS[order[at + tied]]
    if scalar == "int8":
        return np.clip(np.rint(x), -127, 127).astype(np.int8)
    return np.ascontiguousarray(x, {"fp32": np.float32, "fp16": np.float16}[scalar])


def widened(x: npt.NDArray[Any], scalar: str) -> Floats:
    """The numbers that `x` stands for."""
    if scalar == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if scalar == "fp8":
        return ALL_FP8[x]
    return x.astype(np.float64)


def error(got: Floats, expected: Floats) -> float:
    """The largest difference, as a share of the largest number that should have come; NaN where there is one."""
    return float(np.abs(got - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30))


def _fp8(bits: int) -> float:
    """e4m3 by its definition: OCP 8-bit Floating Point Specification 1.0, table 1."""
    sign, exponent, mantissa = -1.0 if bits & 0x80 else 1.0, bits >> 3 & 15, bits & 7
    if bits & 0x7F == 0x7F:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


ALL_FP8 = np.array([_fp8(bits) for bits in range(256)])
POSITIONS = np.array([bits for bits in range(256) if bits & 0x7F != 0x7F and bits != 0x80], np.uint8)
FP8 = ALL_FP8[POSITIONS]
