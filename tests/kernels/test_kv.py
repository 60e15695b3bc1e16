"""RoPE fused with the writing of the cache, and copies of blocks, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from emulator.executor import Emulator
from support.numbers import TOLERANCE, Floats, error, rounded, widened

from velollm.gpu.kv import copy_blocks, write_kv
from velollm.gpu.rope import rotations

BLOCKS = 5
WRITES = [
    ("fp32", "fp32", 64, 64, False),
    ("fp16", "fp16", 80, 32, True),
    ("bf16", "bf16", 128, 128, True),
    ("fp16", "fp8", 64, 64, True),
    ("bf16", "int8", 96, 96, False),
]


def turned(x: Floats, table: Floats, halves: bool) -> Floats:
    """[tokens, heads, width] by [tokens, rotary / 2, 2], as complex numbers."""
    rotary = 2 * table.shape[1]
    rotation = (table[..., 0] + 1j * table[..., 1])[:, None]
    first, second = (
        (x[..., : rotary // 2], x[..., rotary // 2 : rotary]) if halves else (x[..., :rotary:2], x[..., 1:rotary:2])
    )
    result = (first + 1j * second) * rotation
    out = x.copy()
    if halves:
        out[..., : rotary // 2], out[..., rotary // 2 : rotary] = result.real, result.imag
    else:
        out[..., :rotary:2], out[..., 1:rotary:2] = result.real, result.imag
    return out


@pytest.mark.parametrize(("scalar", "cache", "head_dim", "rotary", "halves"), WRITES)
def test_write(on: Emulator, scalar: str, cache: str, head_dim: int, rotary: int, halves: bool) -> None:
    random = np.random.default_rng(head_dim)
    heads, kv_heads, tokens = 4, 2, 7
    qkv = rounded(random.standard_normal((tokens, heads + 2 * kv_heads, head_dim)), scalar)
    positions = random.integers(0, 50, tokens).astype(np.int32)
    slots = random.permutation(BLOCKS * 16)[:tokens].astype(np.int64)
    slots[3] = -1
    table = rotations(50, rotary)
    scales = random.uniform(0.01, 0.05, (2, kv_heads)).astype(np.float32) if cache in ("fp8", "int8") else None
    caches = [on.empty((BLOCKS, kv_heads, 16, head_dim), cache) for _ in range(2)]
    options = {} if scales is None else {"key_scales": scales[0], "value_scales": scales[1]}
    out = write_kv(on.array(qkv, scalar), *caches, slots, positions, table, halves=halves, on=on, **options)

    exact = widened(qkv, scalar)
    exact[:, : heads + kv_heads] = turned(exact[:, : heads + kv_heads], table[positions].astype(np.float64), halves)
    assert error(widened(on.host(out), scalar), exact[:, :heads]) < TOLERANCE[scalar]
    untouched = np.ones((BLOCKS, 16), bool)
    for number, (kept, part) in enumerate(zip(caches, np.split(exact[:, heads:], 2, axis=1), strict=True)):
        found = on.host(kept)
        for token, slot in enumerate(slots):
            if slot < 0:
                continue
            untouched[slot // 16, slot % 16] = False
            stored = widened(found[slot // 16, :, slot % 16], cache)
            if scales is None:
                assert error(stored, part[token]) < TOLERANCE[scalar]
                continue
            wanted = part[token] / scales[number][:, None]
            step = 1.0 if cache == "int8" else np.maximum(np.abs(wanted) / 8, 2.0**-9)
            assert (
                np.abs(stored - np.clip(wanted, -448, 448) if cache == "fp8" else stored - np.clip(wanted, -127, 127))
                <= 0.51 * step
            ).all()
        bits = found.swapaxes(1, 2)[untouched].view(np.uint8)
        assert (bits == 0xFF).all(), "nothing else is written"


def numbers_of(scalar: str) -> npt.NDArray[Any]:
    """Numbers between, at and beyond those that an 8-bit type has, as one head of a token."""
    if scalar == "int8":
        return np.array([0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127, 200, -127.4, -128, -1000], np.float32)
    special = [0, 2**-10, 3 * 2**-10, 2**-9, 2**-7, 2**-6, 0.0155, 1, 1.0625, 1.1875, 447, 448, 464, 500, -3.3, -6e4]
    return np.array(special, np.float32)


@pytest.mark.parametrize("cache", ["fp8", "int8"])
def test_eight_bits_are_rounded_to_the_nearest(cache: str) -> None:
    """Ties go to even, what is too large becomes the largest."""
    on = Emulator()
    values = numbers_of(cache)
    random = np.random.default_rng(0)
    qkv = np.zeros((8, 3, 64), np.float16)
    qkv[:, 1:] = random.standard_normal((8, 2, 64)) * np.geomspace(1e-3, 300, 64)
    qkv[0, 2, : len(values)] = values
    caches = [on.empty((1, 1, 16, 64), cache) for _ in range(2)]
    slots = np.arange(8, dtype=np.int64)
    write_kv(qkv, *caches, slots, np.zeros(8, np.int32), rotations(1, 64), on=on)
    for number, kept in enumerate(caches):
        expected = widened(rounded(qkv[:, 1 + number].astype(np.float64), cache), cache)
        assert np.array_equal(widened(on.host(kept)[0, 0, :8], cache), expected)


def test_copies(on: Emulator) -> None:
    random = np.random.default_rng(2)
    cache = random.standard_normal((4, 9, 2, 16, 40)).astype(np.float16)
    pairs = np.array([[0, 5], [8, 1], [3, 7]], np.int32)
    array = on.array(cache)
    copy_blocks(array, array, pairs, on=on)
    expected = cache.copy()
    expected[:, pairs[:, 1]] = cache[:, pairs[:, 0]]
    assert np.array_equal(on.host(array), expected)


def test_swapped_out_and_in_again(on: Emulator) -> None:
    random = np.random.default_rng(3)
    cache = random.standard_normal((2, 6, 1, 16, 64)).astype(np.float16)
    array, kept = on.array(cache), on.empty((2, 2, 1, 16, 64), "fp16")
    copy_blocks(array, kept, np.array([[4, 0], [1, 1]], np.int32), on=on)
    array.view()[:, [4, 1]] = np.nan
    copy_blocks(kept, array, np.array([[0, 2], [1, 5]], np.int32), on=on)
    assert np.array_equal(on.host(array)[:, [2, 5]], cache[:, [4, 1]])
    copy_blocks(array, kept, np.empty((0, 2), np.int32), on=on)


def test_what_does_not_fit_is_refused() -> None:
    on = Emulator()
    qkv, table = np.zeros((2, 4, 64), np.float16), rotations(4, 64)
    cache = on.empty((3, 1, 16, 64), "fp16")
    slots, positions = np.zeros(2, np.int64), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="does not fit caches"):
        write_kv(qkv, cache, on.empty((3, 1, 16, 80), "fp16"), slots, positions, table, on=on)
    with pytest.raises(ValueError, match="do not fit"):
        write_kv(qkv, cache, cache, slots[:1], positions, table, on=on)
    with pytest.raises(TypeError, match="slots are int64"):
        write_kv(qkv, cache, cache, positions, positions, table, on=on)
    with pytest.raises(TypeError, match="cannot be kept"):
        write_kv(qkv.astype(np.float32), cache, cache, slots, positions, table, on=on)
    with pytest.raises(ValueError, match="do not fit into"):
        copy_blocks(cache.reshape(1, 3, 16, 64), cache.reshape(1, 3, 8, 128), np.zeros((1, 2), np.int32), on=on)
    with pytest.raises(TypeError, match="pairs are int32"):
        copy_blocks(cache, cache, np.zeros((1, 2), np.int64), on=on)
    with pytest.raises(TypeError, match="keys is written to"):
        write_kv(qkv, np.zeros((3, 1, 16, 64), np.float16), cache, slots, positions, table, on=on)
    assert on.launched == []
