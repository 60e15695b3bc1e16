"""Sampling: what is cut off, what is drawn, what is reported."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from velollm.engine.sampling import Draw, NothingAllowed, Sampler, SamplingParams

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], np.float32))
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def drawn(logits: np.ndarray = LOGITS, count: int = 4000, **params: Any) -> dict[int, float]:
    sampler = Sampler(SamplingParams(**{**OFF, "seed": 1, **params}))
    seen = Counter(sampler.sample(logits, [0], 1) for _ in range(count))
    return {token: number / count for token, number in sorted(seen.items())}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.06, 4: 0.04}),
        ({"top_k": 2}, {0: 2 / 3, 1: 1 / 3}),
        ({"top_p": 0.7}, {0: 2 / 3, 1: 1 / 3}),
        ({"top_p": 0.001}, {0: 1.0}),
        ({"min_p": 0.2}, {0: 0.5 / 0.9, 1: 0.25 / 0.9, 2: 0.15 / 0.9}),
        ({"temperature": 0.5}, {0: 0.716, 1: 0.179, 2: 0.064}),
        ({"temperature": 0}, {0: 1.0}),
        ({"logit_bias": {0: -100.0, 1: -100.0}}, {2: 0.6, 3: 0.24, 4: 0.16}),
        ({"logit_bias": {3: 100.0, 99: 5.0}}, {3: 1.0}),
        ({"typical_p": 0.2}, {1: 1.0}),
    ],
)
def test_distributions(params: dict[str, Any], expected: dict[int, float]) -> None:
    seen = drawn(**params)
    for token, share in expected.items():
        assert seen[token] == pytest.approx(share, abs=0.03)
    if params.get("temperature", 1) != 0.5:
        assert seen.keys() == expected.keys()


def test_many_candidates_are_drawn_as_a_few_would_be() -> None:
    logits = np.full(5000, -30, np.float32)
    logits[4000:4005] = LOGITS
    assert {token - 4000: share for token, share in drawn(logits, top_p=0.999999).items()} == drawn()


def test_seeds() -> None:
    def take(**params: Any) -> list[int]:
        sampler = Sampler(SamplingParams(**{**OFF, **params}))
        return [sampler.sample(LOGITS, [0], 1) for _ in range(40)]

    assert take(seed=3) == take(seed=3) != take(seed=4)
    assert take() != take()
    assert take(seed=-1) == take(seed=-1)
    forks = [Sampler(SamplingParams(**OFF, seed=3)).fork(number) for number in (0, 1)]
    assert [[fork.sample(LOGITS, [0], 1) for _ in range(40)] for fork in forks] == [take(seed=3), take(seed=4)]


def test_penalties() -> None:
    def best(tokens: list[int], num_prompt: int, **params: Any) -> int:
        return Sampler(SamplingParams(temperature=0, **params)).sample(LOGITS, tokens, num_prompt)

    assert best([0], 1, presence_penalty=5) == 0, "the prompt does not count"
    assert best([3, 0], 1, presence_penalty=5) == 1
    assert best([3, 0, 1], 1, frequency_penalty=0.5) == 0
    assert best([3, 0, 0, 0], 1, frequency_penalty=0.5) == 1
    assert best([0], 1, repeat_penalty=3.0) == 1, "here it does"
    assert best([0, 4, 4], 1, repeat_penalty=3.0, repeat_last_n=2) == 0
    assert best([0, 4, 4], 1, repeat_penalty=3.0, repeat_last_n=-1) == 1
    assert best([0], 1, repeat_penalty=3.0, repeat_last_n=0) == 0


def test_logprobs_are_those_before_any_change() -> None:
    sampler = Sampler(SamplingParams(logprobs=3, logit_bias={4: 100.0}, temperature=0))
    token = sampler.sample(LOGITS, [0], 1)
    found = sampler.logprob(LOGITS, token)
    assert found.token == 4
    assert np.exp(found.value) == pytest.approx(0.04, rel=1e-4)
    assert [token for token, _ in found.top] == [0, 1, 2]
    assert np.exp([value for _, value in found.top]) == pytest.approx([0.5, 0.25, 0.15], rel=1e-4)


class Only:
    done = False

    def __init__(self, *allowed: int) -> None:
        self.allowed = allowed
        self.taken: list[int] = []

    def restrict(self, logits: np.ndarray) -> np.ndarray:
        out = np.full_like(logits, -np.inf)
        out[list(self.allowed)] = logits[list(self.allowed)]
        return out

    def accept(self, token: int) -> None:
        self.taken.append(token)

    def copy(self) -> Only:
        return Only(*self.allowed)


def test_constraints() -> None:
    only = Only(2, 4)
    sampler = Sampler(SamplingParams(**OFF, seed=1), only)
    assert {sampler.sample(LOGITS, [0], 1) for _ in range(60)} == {2, 4}
    assert len(only.taken) == 60
    with pytest.raises(NothingAllowed):
        Sampler(SamplingParams(), Only()).sample(LOGITS, [0], 1)


def test_who_may_draw_where_the_logits_lie() -> None:
    """Whoever needs no more than logits; what no 32 bits hold is bounded, as it changes nothing."""
    wild = SamplingParams(temperature=1e300, top_k=10**12, top_p=7.0, min_p=3.0, seed=-1)
    assert Sampler(wild).draw(9) == Draw(
        temperature=1e30, top_k=2**31 - 1, top_p=1.0, min_p=1.0, seed=2**64 - 1, position=9
    )
    assert Sampler(wild).sample(np.array([1.0, 3.0, 2.0], np.float32), [0], 1) == 1
    greedy = Sampler(SamplingParams(temperature=0, top_k=3)).draw(1)
    assert greedy is not None
    assert (greedy.temperature, greedy.top_k) == (0, 0)
    unseeded = [Sampler(SamplingParams()).draw(0) for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    for more in ({"logprobs": 0}, {"repeat_penalty": 1.1}, {"typical_p": 0.9}, {"logit_bias": {3: 1.0}}):
        assert Sampler(SamplingParams(**more)).draw(0) is None, more
