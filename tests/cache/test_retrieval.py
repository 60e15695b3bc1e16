"""Candidates by trigrams and by vectors, against a plain scan."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from velollm.cache.retrieval import TrigramIndex, VectorIndex, similarity, trigrams

WORDS = [a + b for a in ("egg", "plan", "river", "stone", "cloud") for b in ("", "s", "er", "ing", "ly")]
BODIES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(tuple), max_size=60)


@given(st.frozensets(st.text(max_size=3)), st.frozensets(st.text(max_size=3)))
def test_similarity_is_symmetric_and_bounded(a: frozenset[str], b: frozenset[str]) -> None:
    assert 0 <= similarity(a, b) == similarity(b, a) <= 1
    assert similarity(a, a) == 1


@settings(max_examples=40)
@example(bodies=[("egg",)] * 12 + [("egg", "eggs")] * 12 + [("eggs",)], asked=["eggs"], gone=set())
@given(BODIES, st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.sets(st.integers(0, 59)))
def test_an_index_finds_what_a_scan_finds(bodies: list[tuple[str, ...]], asked: list[str], gone: set[int]) -> None:
    index = TrigramIndex()
    for slot, body in enumerate(bodies):
        index.add(slot, trigrams(body))
    for slot in gone:
        index.discard(slot)
    features = trigrams(asked)
    alive = {slot: similarity(features, trigrams(body)) for slot, body in enumerate(bodies) if slot not in gone}
    found = index.search(features, 3)
    assert len(index) == len(alive)
    assert all(alive[slot] == score for slot, score in found)
    best = max(alive.values(), default=0.0)
    if best > 0.5:
        assert found[0][1] == best


def test_a_search_costs_the_same_in_a_large_index() -> None:
    index = TrigramIndex()
    for slot in range(20_000):
        index.add(slot, trigrams([f"word{chr(97 + slot % 26)}", "common", f"thing{chr(97 + slot // 26 % 26)}"]))
    index.add(20_000, trigrams(["rare", "zebra"]))
    assert index.search(trigrams(["zebra", "common"]), 1)[0][0] == 20_000
    assert len(index._shortlist(trigrams(["common", "worda"]), 8)) == 8


def _embed(text: str) -> list[float]:
    rng = random.Random(text)
    return [rng.gauss(0, 1) for _ in range(8)]


@pytest.fixture(params=["numpy", "plain"])
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> VectorIndex:
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "numpy", None)
    else:
        pytest.importorskip("numpy")
    return VectorIndex()


def test_vectors(vectors: VectorIndex) -> None:
    assert vectors.search(_embed("anything"), 3) == []
    for slot in range(200):
        vectors.add(slot, _embed(f"text {slot}"))
    for slot in (*range(0, 200, 3), 199, 199, 5000):
        vectors.discard(slot)
    for slot in range(200):
        (found, score), *_ = vectors.search(_embed(f"text {slot}"), 2)
        kept = slot % 3 != 0 and slot != 199
        assert (found == slot) == kept
        assert (score > 0.999) == kept


def test_a_vector_of_nothing_is_near_nothing(vectors: VectorIndex) -> None:
    vectors.add(1, [0.0] * 8)
    assert vectors.search([0.0] * 8, 1) == [(1, 0.0)]


def test_vectors_of_another_embedder_are_left_out(vectors: VectorIndex) -> None:
    vectors.add(1, [1.0, 0.0])
    vectors.add(2, [1.0, 0.0, 0.0])
    vectors.add(3, [])
    vectors.discard(2)
    assert vectors.search([1.0, 0.0], 5) == [(1, 1.0)]
    assert vectors.search([1.0, 0.0, 0.0], 5) == []
    assert vectors.search([], 5) == []
