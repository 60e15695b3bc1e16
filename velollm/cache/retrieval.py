"""Candidates for the guards to judge: by shared character trigrams, or by vectors of an embedder. Retrieval only
ranks."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["TrigramIndex", "VectorIndex", "similarity", "trigrams"]

_SCAN_BUDGET = 2000
_LINEAR = 24


def trigrams(words: Iterable[str]) -> frozenset[str]:
    """The character trigrams of each word with its ends marked; short words and numbers whole."""
    out: set[str] = set()
    for word in words:
        marked = f" {word} "
        if len(marked) <= 4 or not word.isalpha():
            out.add(marked)
        else:
            out.update(marked[i : i + 3] for i in range(len(marked) - 2))
    return frozenset(out)


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Dice's coefficient of two sets of trigrams, 0 to 1."""
    return _overlap(a, tuple(b))


def _overlap(features: frozenset[str], others: tuple[str, ...]) -> float:
    return 2 * len(features.intersection(others)) / (len(features) + len(others)) if features or others else 1.0


class TrigramIndex:
    """An inverted index. A search reads the rarest trigrams first and stops at a budget, so that it costs the same at a
    hundred entries and at a hundred thousand."""

    def __init__(self) -> None:
        self._features: dict[int, tuple[str, ...]] = {}
        self._names: dict[str, str] = {}  # each trigram once, whoever has it
        self._postings: dict[str, array[int]] = {}
        self._dead = 0

    def __len__(self) -> int:
        return len(self._features)

    def add(self, slot: int, features: frozenset[str]) -> None:
        """Enter a slot; slots are never used twice."""
        self._features[slot] = kept = tuple(self._names.setdefault(feature, feature) for feature in features)
        if len(self._features) > _LINEAR and not self._postings:
            self._rebuild()
        elif self._postings:
            self._post(slot, kept)

    def discard(self, slot: int) -> None:
        """Forget a slot. Its postings go when half of all are dead."""
        if self._features.pop(slot, None) is not None and self._postings:
            self._dead += 1
            if self._dead > len(self._features) + _LINEAR:
                self._rebuild()

    def search(self, features: frozenset[str], k: int) -> list[tuple[int, float]]:
        """The k most similar slots with their similarity, best first."""
        if not self._postings:
            counts: Iterable[int] = self._features
        else:
            counts = self._shortlist(features, 4 * k)
        known = self._features
        scored = ((_overlap(features, known[slot]), slot) for slot in counts if slot in known)
        return [(slot, score) for score, slot in heapq.nlargest(k, scored)]

    def _shortlist(self, features: frozenset[str], size: int) -> list[int]:
        found = sorted((p for f in features if (p := self._postings.get(f)) is not None), key=len)
        counts: Counter[int] = Counter()
        scanned = 0
        for posting in found:
            if scanned and scanned + len(posting) > _SCAN_BUDGET:
                break
            counts.update(posting[-_SCAN_BUDGET:])
            scanned += len(posting)
        # What has much besides has as much in common as what is the same: those that may be more than half alike are
        # ranked by how much alike they are, and the rest by what they have in common.
        wanted, known = len(features), self._features
        alike = [slot for slot, count in counts.items() if 3 * count > wanted and slot in known]
        if len(alike) > size:
            return heapq.nlargest(size, alike, key=lambda slot: counts[slot] / (wanted + len(known[slot])))
        return list({*alike, *heapq.nlargest(size, counts, key=counts.__getitem__)})

    def _post(self, slot: int, features: tuple[str, ...]) -> None:
        for feature in features:
            self._postings.setdefault(feature, array("I")).append(slot)

    def _rebuild(self) -> None:
        self._names = {name: name for features in self._features.values() for name in features}
        self._postings = {}
        self._dead = 0
        for slot, features in self._features.items():
            self._post(slot, features)


class VectorIndex:
    """Cosine similarity over vectors of one length; NumPy if it is there, plain Python if not."""

    def __init__(self) -> None:
        self._slots: list[int] = []
        self._places: dict[int, int] = {}
        self._length = 0
        self._rows: Any = None
        self._plain: list[list[float]] = []
        try:
            import numpy as np
        except ImportError:
            self._np: Any = None
        else:
            self._np = np

    def add(self, slot: int, vector: Sequence[float]) -> None:
        """Enter a vector. An empty one, or one of another length than the first, is left out."""
        self._length = self._length or len(vector)
        if not vector or len(vector) != self._length:
            return
        at = self._places[slot] = len(self._slots)
        self._slots.append(slot)
        if self._np is None:
            self._plain.append(_unit(vector))
            return
        if self._rows is None:
            self._rows = self._np.zeros((64, self._length), dtype="float32")
        elif at == len(self._rows):
            self._rows = self._np.concatenate([self._rows, self._np.zeros_like(self._rows)])
        self._rows[at] = _unit(vector)

    def discard(self, slot: int) -> None:
        """Forget a slot; the last row takes its place."""
        at = self._places.pop(slot, None)
        if at is None:
            return
        last = len(self._slots) - 1
        if at != last:
            self._slots[at] = self._slots[last]
            self._places[self._slots[at]] = at
        del self._slots[last]
        if self._np is None:
            self._plain[at] = self._plain[last]
            del self._plain[last]
        else:
            self._rows[at] = self._rows[last]

    def search(self, vector: Sequence[float], k: int) -> list[tuple[int, float]]:
        """The k nearest slots with their cosine, best first."""
        if not self._slots or len(vector) != self._length:
            return []
        unit = _unit(vector)
        if self._np is None:
            scores: Any = [sum(map(float.__mul__, row, unit)) for row in self._plain]
            best = heapq.nlargest(k, range(len(scores)), key=scores.__getitem__)
        else:
            query = self._np.asarray(unit, dtype="float32")
            # Not `@`: its threads wait for each other, which takes thirty times as long on a busy machine.
            scores = self._np.einsum("ij,j->i", self._rows[: len(self._slots)], query)
            if len(scores) > k:
                best = self._np.argpartition(-scores, k)[:k].tolist()
                best.sort(key=lambda at: -scores[at])
            else:
                best = self._np.argsort(-scores).tolist()
        return [(self._slots[at], float(scores[at])) for at in best]


def _unit(vector: Sequence[float]) -> list[float]:
    values = [float(x) for x in vector]
    norm = sum(x * x for x in values) ** 0.5
    return [x / norm for x in values] if norm else values
