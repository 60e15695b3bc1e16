"""The scalings of RoPE against formulas written down another way, as in transformers' modeling_rope_utils."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from velollm.gpu.rope import RopeScaling, llama3_divisors, rotations

Floats = npt.NDArray[np.float64]


def frequencies(table: npt.NDArray[np.float32]) -> tuple[Floats, float]:
    """What a table turns by at its second position, and its amplitude."""
    return np.arctan2(table[1, :, 1], table[1, :, 0]).astype(np.float64), float(np.hypot(*table[1, 0]))


def plain(rotary: int, base: float) -> Floats:
    return np.array([base ** (-2 * pair / rotary) for pair in range(rotary // 2)])


def test_plain() -> None:
    table = rotations(4096, 64)
    angles = np.array([[position * one for one in plain(64, 10_000)] for position in (0, 1, 4095)])
    assert np.allclose(table[[0, 1, 4095], :, 0], np.cos(angles), atol=1e-6)
    assert np.allclose(table[[0, 1, 4095], :, 1], np.sin(angles), atol=1e-6)
    assert table.shape == (4096, 32, 2)


def test_linear_and_ntk() -> None:
    got, _ = frequencies(rotations(2, 64, scaling=RopeScaling(kind="linear", factor=4)))
    assert np.allclose(got, plain(64, 10_000) / 4, rtol=1e-5)
    got, _ = frequencies(rotations(2, 64, scaling=RopeScaling(kind="ntk", factor=4)))
    assert got[0] == pytest.approx(1)
    assert got[-1] == pytest.approx(plain(64, 10_000)[-1] / 4, rel=1e-4), "the slowest turns as if it were linear"


@pytest.mark.parametrize(("factor", "original", "base", "rotary"), [(4, 32_768, 1e6, 128), (40, 4096, 1e4, 64)])
def test_yarn(factor: float, original: int, base: float, rotary: int) -> None:
    scaling = RopeScaling(kind="yarn", factor=factor, original_context=original)
    got, amplitude = frequencies(rotations(2, rotary, base=base, scaling=scaling))

    def correction(turns: float) -> float:
        return rotary * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(correction(32)), 0), min(math.ceil(correction(1)), rotary - 1)
    kept = 1 - np.clip((np.arange(rotary // 2) - low) / (high - low), 0, 1)
    expected = plain(rotary, base) / factor * (1 - kept) + plain(rotary, base) * kept
    assert np.allclose(got, expected, rtol=1e-5)
    assert amplitude == pytest.approx(0.1 * math.log(factor) + 1, rel=1e-6)
    assert got[0] == pytest.approx(1)
    assert got[-1] == pytest.approx(expected[-1], rel=1e-5)


def test_longrope_changes_with_the_context() -> None:
    short, long = np.linspace(1, 2, 16), np.linspace(1, 40, 16)
    scaling = RopeScaling(kind="longrope", factor=32, original_context=4096, divisors=long, short_divisors=short)
    for context, divisors in ((4096, short), (4097, long)):
        got, amplitude = frequencies(rotations(context, 32, scaling=scaling))
        assert np.allclose(got, plain(32, 10_000) / divisors, rtol=1e-5)
        assert amplitude == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)), rel=1e-6)


def test_llama3() -> None:
    """The band edges of Llama 3.1: wavelengths under 2048 stay, over 8192 are eight times as long."""
    divisors = llama3_divisors(128)
    lengths = 2 * np.pi / plain(128, 500_000)
    assert np.allclose(divisors[lengths < 2048], 1)
    assert np.allclose(divisors[lengths > 8192], 8)
    between = divisors[(lengths > 2048) & (lengths < 8192)]
    assert ((between > 1) & (between < 8)).all()
    got, _ = frequencies(rotations(2, 128, base=500_000, scaling=RopeScaling(divisors=divisors)))
    assert np.allclose(got, plain(128, 500_000) / divisors, rtol=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="original context"):
        RopeScaling(kind="yarn", factor=4)
    with pytest.raises(ValueError, match="both sets"):
        RopeScaling(kind="longrope", factor=4, original_context=4096)
    with pytest.raises(ValueError, match="stretched by 0"):
        RopeScaling(kind="linear", factor=0)
    with pytest.raises(ValueError, match="in pairs"):
        rotations(4, 5)
    with pytest.raises(ValueError, match="divisors for 4 pairs"):
        rotations(4, 8, scaling=RopeScaling(divisors=[1.0]))
