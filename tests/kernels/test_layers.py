"""Norms, gates and embeddings against float64."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.executor import Emulator
from support.numbers import TOLERANCE, Floats, error, rounded, widened

from velollm.gpu.layers import embed, gelu_mul, rms_norm, silu_mul

SCALARS = ("fp32", pytest.param("fp16", marks=pytest.mark.e2e), "bf16")


def normed(x: Floats, weight: Floats, epsilon: float) -> Floats:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("width", [8, 64, 264, 4096])
def test_rms_norm(on: Emulator, scalar: str, width: int) -> None:
    random = np.random.default_rng(width)
    x, residual, weight = (rounded(random.standard_normal(shape), scalar) for shape in ((3, width), (3, width), width))
    arrays = [on.array(one, scalar) for one in (x, weight)]
    out = rms_norm(*arrays, epsilon=1e-6, on=on)
    expected = normed(widened(x, scalar), widened(weight, scalar), 1e-6)
    assert error(widened(on.host(out), scalar), expected) < TOLERANCE[scalar]

    sum_ = on.array(residual, scalar)
    out = rms_norm(*arrays, epsilon=1e-6, residual=sum_, on=on)
    added = rounded(widened(x, scalar) + widened(residual, scalar), scalar)
    assert np.array_equal(on.host(sum_), added)
    expected = normed(widened(added, scalar), widened(weight, scalar), 1e-6)
    assert error(widened(on.host(out), scalar), expected) < TOLERANCE[scalar]


def test_epsilon_counts() -> None:
    on = Emulator()
    x = np.full((1, 8), 1e-3, np.float32)
    (value,) = set(rms_norm(x, np.ones(8, np.float32), epsilon=1e-6, on=on).ravel().tolist())
    assert value == pytest.approx(1 / np.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("width", [8, 2056])
def test_gates(on: Emulator, scalar: str, width: int) -> None:
    x = rounded(np.random.default_rng(width).standard_normal((3, 2 * width)) * 4, scalar)
    x[0, :2] = rounded(np.array([100.0, -100.0]), scalar)
    gate, up = np.split(widened(x, scalar), 2, axis=1)
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    for call, expected in ((silu_mul, gate / (1 + np.exp(-gate)) * up), (gelu_mul, gelu * up)):
        got = widened(on.host(call(on.array(x, scalar), on=on)), scalar)
        assert error(got, expected) < TOLERANCE[scalar]


@pytest.mark.parametrize("scalar", SCALARS)
def test_embed(on: Emulator, scalar: str) -> None:
    table = rounded(np.random.default_rng(0).standard_normal((7, 1032)), scalar)
    ids = np.array([6, 0, 3, 3, -1, 7], np.int32)
    got = on.host(embed(on.array(table, scalar), ids, on=on))
    assert np.array_equal(got[:4], table[[6, 0, 3, 3]])
    assert not got[4:].any()


def test_what_does_not_fit_is_refused() -> None:
    on = Emulator()
    with pytest.raises(ValueError, match="multiple of 16 bytes"):
        rms_norm(np.ones((1, 6), np.float16), np.ones(6, np.float16), on=on)
    with pytest.raises(ValueError, match="weights fp32"):
        rms_norm(np.ones((1, 8), np.float16), np.ones(8, np.float32), on=on)
    with pytest.raises(ValueError, match="a residual"):
        rms_norm(np.ones((1, 8), np.float16), np.ones(8, np.float16), residual=on.empty((2, 8), "fp16"), on=on)
    with pytest.raises(ValueError, match="multiple of 32 bytes"):
        silu_mul(np.ones((1, 24), np.float16), on=on)
    with pytest.raises(TypeError, match="named by int64"):
        embed(np.ones((4, 8), np.float16), np.zeros(1, np.int64), on=on)
    assert on.launched == []
