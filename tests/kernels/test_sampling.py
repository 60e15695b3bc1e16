"""Sampling against NumPy: the cuts, the draw word for word, and what stands of a draft."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulator.executor import Emulator
from support.draws import drawn, kept, philox
from support.numbers import rounded, widened

from velollm.gpu.sampling import argmax, sample, verify_greedy


def test_philox_gives_the_published_words() -> None:
    """kat_vectors of Random123, philox4x32 10."""
    zeros, ones = np.zeros(4, np.uint64), np.full(4, 0xFFFFFFFF, np.uint64)
    assert [f"{word:08x}" for word in philox(zeros, (0, 0))] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    got = [f"{word:08x}" for word in philox(ones, (0xFFFFFFFF, 0xFFFFFFFF))]
    assert got == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


@pytest.mark.parametrize("scalar", ["fp32", "bf16", pytest.param("fp16", marks=pytest.mark.e2e)])
@pytest.mark.parametrize("width", [1, 33, 5003])
def test_argmax(on: Emulator, scalar: str, width: int) -> None:
    logits = rounded(np.random.default_rng(width).standard_normal((4, width)), scalar)
    logits[1] = rounded(np.full(1, -np.inf), scalar)
    logits[2, width // 2 :] = rounded(np.full(1, 7.0), scalar)
    got = on.host(argmax(on.array(logits, scalar), on=on))
    assert got.tolist() == widened(logits, scalar).argmax(-1).tolist()


CUTS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    {"top_k": 200, "top_p": 0.5, "temperature": 2.0},
    {"top_p": 0.0},
]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_draws_are_those_of_numpy(on: Emulator, cuts: dict[str, Any]) -> None:
    random = np.random.default_rng(8)
    logits = (random.standard_normal((6, 517)) * 3).astype(np.float32)
    seeds = np.array([0, 1, 2**63 + 5, 77, 2**32, 12345], np.uint64)
    got = sample(logits, seeds=seeds, positions=np.arange(6), on=on, **cuts)
    for row, token in enumerate(got):
        values = logits[row].astype(np.float64)
        left = kept(values, cuts.get("top_k", 0), cuts.get("top_p", 1), cuts.get("min_p", 0))
        assert token == drawn(values, left, cuts.get("temperature", 1.0), int(seeds[row]), row)


def test_rows_have_their_own_settings() -> None:
    on = Emulator(seed=2)
    logits = np.random.default_rng(1).standard_normal((3, 100)).astype(np.float16)
    got = sample(logits, seeds=5, positions=[0, 1, 2], temperature=[0, 1, 0], top_k=[0, 1, 0], on=on)
    assert got.tolist() == logits.argmax(-1).tolist(), "greedy, or the only one left"
    alone = sample(logits[1:2], seeds=5, positions=[1], on=on)
    among = sample(logits, seeds=5, positions=[0, 1, 2], on=on)
    assert alone[0] == among[1], "what a row draws does not depend on the others"


def test_draws_follow_the_distribution() -> None:
    """Pearson's chi-square over 1,600 draws of 8 tokens: 7 degrees of freedom, 24.3 is passed once in a thousand."""
    on = Emulator()
    logits = np.log(np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02], np.float32))
    drawn_ = sample(np.tile(logits, (40, 1)), seeds=np.arange(40), positions=0, on=on)
    counts = np.bincount(drawn_, minlength=8).astype(float)
    for position in range(1, 40):
        left = np.ones(8, bool)
        counts += np.bincount(
            [drawn(logits.astype(float), left, 1.0, seed, position) for seed in range(40)], minlength=8
        )
    expected = np.exp(logits.astype(float)) * counts.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 24.3


def test_what_is_masked_is_never_drawn(on: Emulator) -> None:
    logits = np.full((5, 70), -np.inf, np.float32)
    logits[:, [3, 69]] = [0, -1]
    got = sample(logits, seeds=range(5), positions=0, top_k=50, top_p=0.999, on=on)
    assert set(got.tolist()) <= {3, 69}


def test_verify(on: Emulator) -> None:
    drafts = np.array([[5, 6, 7], [5, 6, 7], [9, 1, -1], [4, -1, -1], [-1, -1, -1]], np.int32)
    starts = np.array([0, 4, 8, 11, 13, 14], np.int32)
    chosen = np.array([5, 6, 7, 8, 5, 2, 7, 8, 3, 1, 4, 4, 11, 12], np.int32)
    counts, tokens = verify_greedy(drafts, chosen, starts, on=on)
    assert counts.tolist() == [3, 1, 0, 1, 0]
    assert tokens.tolist() == [[5, 6, 7, 8], [5, 2, -1, -1], [3, -1, -1, -1], [4, 11, -1, -1], [12, -1, -1, -1]]


def test_what_does_not_fit_is_refused() -> None:
    on = Emulator()
    with pytest.raises(TypeError, match="logits are"):
        argmax(np.zeros((2, 0), np.float32), on=on)
    with pytest.raises(TypeError, match="logits are"):
        argmax(np.zeros((2, 3), np.int32), on=on)
    with pytest.raises(ValueError, match="at most 31"):
        verify_greedy(np.zeros((1, 32), np.int32), np.zeros(3, np.int32), np.array([0, 3], np.int32), on=on)
    with pytest.raises(TypeError, match="are int32"):
        verify_greedy(np.zeros((1, 3), np.int64), np.zeros(3, np.int32), np.array([0, 3], np.int32), on=on)
    assert on.launched == []
