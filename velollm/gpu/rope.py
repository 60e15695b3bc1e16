"""Rotary position embeddings as a table of cosines and sines, stretched in every way that llama.cpp knows.

    angle[position, i] = position * base^(-2i / rotary)            Su et al. 2021, arXiv:2104.09864
    linear    position / factor                                    Chen et al. 2023, arXiv:2306.15595
    ntk       base * factor^(rotary / (rotary - 2))                "NTK-aware scaled RoPE", r/LocalLLaMA 2023
    yarn      linear for slow pairs, nothing for fast ones, a ramp between; amplitude 1 + 0.1 ln(factor)
                                                                   Peng et al. 2023, arXiv:2309.00071
    longrope  a divisor for each i, one set up to the original context and one beyond
                                                                   Ding et al. 2024, arXiv:2402.13753

Llama 3's scaling comes as divisors as well (`rope_freqs.weight` in a GGUF file): `divisors`.
"""

from __future__ import annotations

from math import floor, log, pi, sqrt
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

__all__ = ["RopeScaling", "llama3_divisors", "rotations"]

Floats = npt.NDArray[np.float64]


@attrs.frozen(kw_only=True, eq=False)
class RopeScaling:
    """How angles are changed.

    `factor` is how much longer the context is than the `original_context` that the model was trained for. `beta_fast`
    and `beta_slow` are the turns between which YaRN's ramp lies, `extrapolation` its share (1: all of it). `amplitude`
    is what cosines and sines are multiplied with besides. `divisors` [rotary / 2] divide the frequencies; for longrope
    `short_divisors` are taken for contexts of no more than `original_context`.
    """

    kind: Literal["none", "linear", "ntk", "yarn", "longrope"] = "none"
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    extrapolation: float = 1.0
    amplitude: float | None = None
    divisors: Any = None
    short_divisors: Any = None

    def __attrs_post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"a context cannot be stretched by {self.factor}")
        if self.kind in ("yarn", "longrope") and self.original_context <= 0:
            raise ValueError(f"{self.kind} needs the original context")
        if self.kind == "longrope" and (self.divisors is None or self.short_divisors is None):
            raise ValueError("longrope needs both sets of divisors")


def rotations(
    context: int, rotary: int, *, base: float = 10_000.0, scaling: RopeScaling | None = None
) -> npt.NDArray[np.float32]:
    """[context, rotary / 2, 2] fp32: the cosine and the sine for each position and each pair of numbers of a head.

    Angles are computed in float64, so that those of the 100,000th token are as exact as those of the first.
    """
    scaling = scaling or RopeScaling()
    if rotary % 2 or rotary <= 0:
        raise ValueError(f"{rotary} numbers of a head do not turn in pairs")
    if scaling.kind == "ntk":
        base *= scaling.factor ** (rotary / (rotary - 2))
    frequencies = base ** (-np.arange(0, rotary, 2) / rotary)
    frequencies = frequencies / _divisors(scaling, context, rotary)
    amplitude = 1.0
    if scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.kind == "yarn":
        ramp = _ramp(scaling, rotary, base) * scaling.extrapolation
        frequencies = frequencies / scaling.factor * (1 - ramp) + frequencies * ramp
        amplitude = 1 + 0.1 * log(scaling.factor) if scaling.extrapolation else 1.0
    elif scaling.kind == "longrope" and scaling.amplitude is None and scaling.factor > 1:
        amplitude = sqrt(1 + log(scaling.factor) / log(scaling.original_context))
    amplitude *= scaling.amplitude if scaling.amplitude is not None else 1.0
    angles = np.outer(np.arange(context), frequencies)
    return np.stack([np.cos(angles) * amplitude, np.sin(angles) * amplitude], axis=-1).astype(np.float32)


def llama3_divisors(
    rotary: int,
    *,
    base: float = 500_000.0,
    factor: float = 8.0,
    low: float = 1.0,
    high: float = 4.0,
    original_context: int = 8192,
) -> Floats:
    """What Llama 3.1 divides its frequencies by: nothing for the fast, `factor` for the slow, between them a blend.

    As transformers' `rope_type: llama3`, and as llama.cpp writes into `rope_freqs.weight`.
    """
    wavelengths = 2 * pi * base ** (np.arange(0, rotary, 2) / rotary)
    smooth = np.clip((original_context / wavelengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _divisors(scaling: RopeScaling, context: int, rotary: int) -> Floats:
    given = scaling.divisors
    if scaling.kind == "longrope" and context <= scaling.original_context:
        given = scaling.short_divisors
    if given is None:
        return np.ones(rotary // 2)
    divisors = np.asarray(given, np.float64)
    if divisors.shape != (rotary // 2,):
        raise ValueError(f"{divisors.shape} divisors for {rotary // 2} pairs")
    return divisors


def _ramp(scaling: RopeScaling, rotary: int, base: float) -> Floats:
    """1 for pairs that turn often within the original context, 0 for those that turn seldom (ggml's rope_yarn_ramp)."""

    def pair(turns: float) -> float:
        return rotary * log(scaling.original_context / (turns * 2 * pi)) / (2 * log(base))

    low = max(0, floor(pair(scaling.beta_fast)))
    high = min(rotary - 1, -floor(-pair(scaling.beta_slow)))
    return np.asarray(1 - np.clip((np.arange(rotary // 2) - low) / max(0.001, high - low), 0, 1))
