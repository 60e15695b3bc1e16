"""The semantic index: retrieval inside one scope, then the guards. Holds prompts and keys, never answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import attrs
import xxhash

from velollm.cache.guards import Question, Refusal, judge
from velollm.cache.retrieval import TrigramIndex, VectorIndex, similarity, trigrams

__all__ = ["Embedder", "Match", "SemanticIndex"]

Embedder = Callable[[str], Sequence[float]]

_NEAREST = 12
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
    """The questions of one scope that share a payload and a preface."""

    __slots__ = ("by_body", "trigrams", "vectors")

    def __init__(self) -> None:
        self.trigrams = TrigramIndex()
        self.vectors = VectorIndex()
        self.by_body: dict[tuple[str, ...], list[int]] = {}


class SemanticIndex:
    """Bounded: beyond `limit` prompts the oldest is forgotten."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._partitions: dict[bytes, _Partition] = {}
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
        partition = self._partitions.get(where)
        if partition is None:
            partition = self._partitions[where] = _Partition()
        slot, self._next = self._next, self._next + 1
        features = trigrams(question.form.body)
        partition.trigrams.add(slot, features)
        if vector is not None:
            partition.vectors.add(slot, vector)
        partition.by_body.setdefault(question.form.body, []).append(slot)
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
        partition = self._partitions[where]
        partition.trigrams.discard(slot)
        partition.vectors.discard(slot)
        twins = partition.by_body[member.question.form.body]
        twins.remove(slot)
        if not twins:
            del partition.by_body[member.question.form.body]
        if not len(partition.trigrams):
            del self._partitions[where]

    def search(self, scope: bytes, question: Question, vector: Sequence[float] | None = None) -> Match | None:
        """The nearest prompt that every guard lets through."""
        return next((m for m in self._judged(scope, question, vector) if m.refusal is None), None)

    def nearest(self, scope: bytes, question: Question, vector: Sequence[float] | None = None) -> list[Match]:
        """The nearest prompts with the verdict on each, for `explain`."""
        return self._judged(scope, question, vector, report=True)[:_REPORTED]

    def distrust(self, key: bytes, similarity: float) -> None:
        """A would-be answer of this entry was wrong: from now on it only answers what is nearer than that."""
        self._floors[key] = max(similarity, self._floors.pop(key, 0.0))
        while len(self._floors) > 10_000:
            self._floors.popitem(last=False)

    def _judged(
        self, scope: bytes, question: Question, vector: Sequence[float] | None, report: bool = False
    ) -> list[Match]:
        partition = self._partitions.get(_partition_of(scope, question))
        if partition is None:
            return []
        features = trigrams(question.form.body)
        matches = []
        for slot in self._candidates(partition, question, features, vector):
            _, member = self._members[slot]
            refusal = judge(question, member.question, brief=not report)
            if refusal is not None and not report:
                continue
            score = similarity(features, trigrams(member.question.form.body))
            if refusal is None and score <= self._floors.get(member.key, -1.0):
                refusal = Refusal(guard="distrusted", detail="a shadow comparison of this entry disagreed")
            matches.append(Match(key=member.key, prompt=member.prompt, similarity=round(score, 4), refusal=refusal))
            if refusal is None and not report:
                return matches[-1:]
        return sorted(matches, key=lambda m: (m.refusal is not None, -m.similarity))

    def _candidates(
        self, partition: _Partition, question: Question, features: frozenset[str], vector: Sequence[float] | None
    ) -> list[int]:
        twins = partition.by_body.get(question.form.body, [])[-4:][::-1]
        near = [slot for slot, _ in partition.trigrams.search(features, _NEAREST)]
        if vector is not None:
            near += [slot for slot, _ in partition.vectors.search(vector, _NEAREST)]
        return list(dict.fromkeys([*twins, *near]))


def _partition_of(scope: bytes, question: Question) -> bytes:
    form = question.form
    return xxhash.xxh3_128_digest(
        b"\x00".join((scope, form.payload.encode("utf-8", "surrogatepass"), form.preface.encode()))
    )
