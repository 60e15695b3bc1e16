"""Labelled pairs of questions: which of them the cache may answer from each other, and which it must not.

`tuned` was looked at while the rules were written. `held` was not, nor was `fresh` before it was first measured (98.8 %
precision, 82 % recall): they say what to expect of unseen questions.
Where two readers could differ, a pair is labelled as different.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson
from support.cache import answer, ask

from velollm.cache import ResponseCache

__all__ = ["FOLDER", "Pair", "Score", "read_pairs", "score"]

FOLDER = Path(__file__).parents[1] / "cache" / "pairs"


@attrs.frozen(kw_only=True)
class Pair:
    """Two questions with what was said before them."""

    category: str
    a: str
    b: str
    same_answer: bool
    a_context: list[dict[str, Any]] = attrs.field(factory=list)
    b_context: list[dict[str, Any]] = attrs.field(factory=list)
    id: str = ""

    def directions(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The request that was stored and the one that is asked, both ways round."""
        a, b = ask(self.a, *self.a_context), ask(self.b, *self.b_context)
        yield a, b
        yield b, a


@attrs.define(kw_only=True)
class Score:
    """Hits and questions by label and category."""

    hits: Counter[tuple[bool, str]] = attrs.field(factory=Counter)
    asked: Counter[tuple[bool, str]] = attrs.field(factory=Counter)

    def total(self, counter: Counter[tuple[bool, str]], same: bool) -> int:
        """The sum over the categories of a label."""
        return sum(n for (label, _), n in counter.items() if label is same)

    @property
    def recall(self) -> float:
        """The share of equal questions that were answered."""
        return self.total(self.hits, True) / self.total(self.asked, True)

    @property
    def precision(self) -> float:
        """The share of answers that were right."""
        right, wrong = self.total(self.hits, True), self.total(self.hits, False)
        return right / (right + wrong) if right + wrong else 1.0

    def false_hits(self) -> dict[str, float]:
        """The share of wrong answers by category of hard negatives."""
        return {name: self.hits[False, name] / n for (label, name), n in sorted(self.asked.items()) if not label}


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file of JSON lines."""
    return [Pair(**orjson.loads(line)) for line in path.read_text().splitlines()]


def score(pairs: list[Pair]) -> Score:
    """Ask every pair both ways, each time of a cache that holds the other question alone."""
    result = Score()
    for pair in pairs:
        for stored, asked in pair.directions():
            with ResponseCache(semantic="on") as cache:
                cache.store("t", stored, answer())
                result.asked[pair.same_answer, pair.category] += 1
                result.hits[pair.same_answer, pair.category] += cache.lookup("t", asked) is not None
    return result
