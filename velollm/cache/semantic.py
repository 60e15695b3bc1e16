"""The semantic index: retrieval inside one scope, then the guards. Holds prompts and keys, never answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, partial

import attrs
import xxhash

from velollm.cache.guards import HEAD_LINKS, Question, Refusal, judge
from velollm.cache.retrieval import TrigramIndex, VectorIndex, similarity, trigrams

__all__ = ["Embedder", "Match", "SemanticIndex"]

Embedder = Callable[[str], Sequence[float]]

_NEAREST = 12
_TWINS = 4
_REPORTED = 3


@attrs.frozen(kw_only=True)
class Match:
    """A stored prompt that was near: its key, how near, and the guard that refused it (None: it may answer)."""

    key: bytes
    prompt: str
    similarity: float
    refusal: Refusal | None


@attrs.frozen(kw_only=True)
class _Member:
    key: bytes
    prompt: str
    question: Question


class _Partition:
    """The questions of one scope that share a payload, a preface and their figures.

    The guards let two bodies pass that are equal, that differ in the order of a compound, or in where a word is parted:
    those are found by what they have in common. The rest is slips, which only a word that no dictionary knows can be:
    likeness finds them, among all for a question with such a word, and among those that have one for any other.
    """

    __slots__ = ("alike", "odd", "plain", "vectors")

    def __init__(self) -> None:
        self.alike: dict[tuple[str, ...], list[int]] = {}
        self.plain = TrigramIndex()
        self.odd = TrigramIndex()
        self.vectors: VectorIndex | None = None

    def __len__(self) -> int:
        return len(self.plain) + len(self.odd)

    def add(self, slot: int, question: Question, vector: Sequence[float] | None) -> None:
        (self.odd if question.odd else self.plain).add(slot, trigrams(question.form.body))
        if vector is not None:
            self.vectors = self.vectors or VectorIndex()
            self.vectors.add(slot, vector)
        for look in _looks(question):
            self.alike.setdefault(look, []).append(slot)

    def discard(self, slot: int, question: Question) -> None:
        (self.odd if question.odd else self.plain).discard(slot)
        if self.vectors is not None:
            self.vectors.discard(slot)
        for look in _looks(question):
            twins = self.alike[look]
            twins.remove(slot)
            if not twins:
                del self.alike[look]

    def candidates(
        self, question: Question, features: Callable[[], frozenset[str]], vector: Sequence[float] | None, every: bool
    ) -> list[int]:
        """Slots worth judging, the likeliest first; `every`: also those that no guard would let pass."""
        found = [slot for look in _looks(question) for slot in self.alike.get(look, [])[-_TWINS:][::-1]]
        for index in (self.plain, self.odd):
            if len(index) and (every or question.odd or index is self.odd):
                found += [slot for slot, _ in index.search(features(), _NEAREST)]
        if vector is not None and self.vectors is not None:
            found += [slot for slot, _ in self.vectors.search(vector, _NEAREST)]
        return list(dict.fromkeys(found))


def _looks(question: Question) -> tuple[tuple[str, ...], ...]:
    """What questions that the guards let pass have in common: their words in order, their words, or their letters."""
    body = question.form.body
    return tuple({body, tuple(sorted(t for t in body if t not in HEAD_LINKS)), ("".join(body),)})


class SemanticIndex:
    """Bounded: beyond `limit` prompts the oldest is forgotten."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._partitions: dict[bytes, dict[frozenset[str], _Partition]] = {}
        self._members: dict[int, tuple[bytes, _Member]] = {}
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._floors: OrderedDict[bytes, float] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        return len(self._slots)

    def add(
        self, key: bytes, scope: bytes, prompt: str, question: Question, vector: Sequence[float] | None = None
    ) -> None:
        """Enter a prompt under its key; a key that is there already is moved to the young end. `vector`: the
        embedder's, where there is one."""
        self.discard(key)
        where = _partition_of(scope, question)
        partitions = self._partitions.setdefault(where, {})
        partition = partitions.get(question.figures)
        if partition is None:
            partition = partitions[question.figures] = _Partition()
        slot, self._next = self._next, self._next + 1
        partition.add(slot, question, vector)
        self._members[slot] = where, _Member(key=key, prompt=prompt, question=question)
        self._slots[key] = slot
        while len(self._slots) > self._limit:
            self.discard(next(iter(self._slots)))

    def discard(self, key: bytes) -> None:
        """Forget a key; unknown keys are no error."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        where, member = self._members.pop(slot)
        partitions = self._partitions[where]
        partition = partitions[member.question.figures]
        partition.discard(slot, member.question)
        if not len(partition):
            del partitions[member.question.figures]
            if not partitions:
                del self._partitions[where]

    def search(self, scope: bytes, question: Question, vector: Sequence[float] | None = None) -> Match | None:
        """The nearest prompt that every guard lets through."""
        partition = self._partitions.get(_partition_of(scope, question), {}).get(question.figures)
        if partition is None:
            return None
        features = cache(partial(trigrams, question.form.body))
        for slot in partition.candidates(question, features, vector, every=False):
            member = self._members[slot][1]
            if judge(question, member.question, brief=True) is None:
                score = similarity(features(), trigrams(member.question.form.body))
                if score > self._floors.get(member.key, -1.0):
                    return Match(key=member.key, prompt=member.prompt, similarity=round(score, 4), refusal=None)
        return None

    def nearest(self, scope: bytes, question: Question, vector: Sequence[float] | None = None) -> list[Match]:
        """The nearest prompts with the verdict on each, for `explain`."""
        features = trigrams(question.form.body)
        matches = []
        for partition in self._partitions.get(_partition_of(scope, question), {}).values():
            for slot in partition.candidates(question, lambda: features, vector, every=True):
                member = self._members[slot][1]
                refusal = judge(question, member.question)
                score = similarity(features, trigrams(member.question.form.body))
                if refusal is None and score <= self._floors.get(member.key, -1.0):
                    refusal = Refusal(guard="distrusted", detail="a shadow comparison of this entry disagreed")
                matches.append(Match(key=member.key, prompt=member.prompt, similarity=round(score, 4), refusal=refusal))
        return sorted(matches, key=lambda m: (m.refusal is not None, -m.similarity))[:_REPORTED]

    def distrust(self, key: bytes, similarity: float) -> None:
        """A would-be answer of this entry was wrong: from now on it only answers what is nearer than that."""
        self._floors[key] = max(similarity, self._floors.pop(key, 0.0))
        while len(self._floors) > 10_000:
            self._floors.popitem(last=False)

    def floor(self, key: bytes) -> float:
        """How near a question must be for this entry to answer it; 0 where nothing was wrong yet."""
        return self._floors.get(key, 0.0)


def _partition_of(scope: bytes, question: Question) -> bytes:
    form = question.form
    return xxhash.xxh3_128_digest(
        b"\x00".join((scope, form.payload.encode("utf-8", "surrogatepass"), form.preface.encode()))
    )
