"""The semantic index: bounded, one scope apart from the other, and judged by the guards."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import integers, sampled_from

from velollm.cache.request import read_prompt
from velollm.cache.semantic import SemanticIndex

PROMPTS = (
    "How do I boil an egg?", "What is the best way to boil eggs?", "How do I boil 2 eggs?", "Why do cats purr?",
    "How come cats purr?", "Translate to French: cat", "Translate to French: dog", "Who wrote Emma?",
)  # fmt: skip


def add(index: SemanticIndex, number: int, prompt: str, scope: bytes = b"s") -> bytes:
    key = number.to_bytes(16, "big")
    question = read_prompt(prompt)
    assert question is not None
    index.add(key, scope, prompt, question)
    return key


def search(index: SemanticIndex, prompt: str, scope: bytes = b"s") -> bytes | None:
    question = read_prompt(prompt)
    assert question is not None
    found = index.search(scope, question)
    return None if found is None else found.key


def test_a_paraphrase_is_found_in_its_scope_alone() -> None:
    index = SemanticIndex()
    key = add(index, 1, "How do I boil an egg?")
    assert search(index, "What is the best way to boil eggs?") == key
    assert search(index, "What is the best way to boil eggs?", b"other") is None
    assert search(index, "How do I fry an egg?") is None


def test_the_youngest_of_equals_answers() -> None:
    index = SemanticIndex()
    add(index, 1, "Why do cats purr?")
    key = add(index, 2, "How come cats purr?")
    assert search(index, "Explain why cats purr.") == key


def test_a_distrusted_entry_answers_only_what_is_nearer() -> None:
    index = SemanticIndex()
    key = add(index, 1, "How do I purchase a car?")
    question = read_prompt("How do I buy an automobile?")
    assert question is not None
    found = index.search(b"s", question)
    assert found is not None
    index.distrust(key, found.similarity)
    assert index.search(b"s", question) is None
    refused = index.nearest(b"s", question)[0].refusal
    assert refused is not None
    assert refused.guard == "distrusted"


def test_beyond_its_limit_the_oldest_is_forgotten() -> None:
    index = SemanticIndex(limit=3)
    for number in range(10):
        add(index, number, f"What is thing {number}?")
    assert len(index) == 3
    assert search(index, "What is thing 0?") is None
    assert search(index, "What is thing 9?") is not None


def test_vectors_only_retrieve() -> None:
    index = SemanticIndex()
    question, other = read_prompt("How do I boil an egg?"), read_prompt("Who wrote Emma?")
    assert question is not None
    assert other is not None
    index.add(b"k" * 16, b"s", "How do I boil an egg?", question, [1.0, 0.0])
    assert index.search(b"s", other, [1.0, 0.0]) is None
    assert index.nearest(b"s", other, [1.0, 0.0])[0].refusal is not None
    assert index.search(b"s", question, [0.0, 1.0]) is not None


class IndexAgainstModel(RuleBasedStateMachine):
    """Whatever is added and discarded, the index holds what a dictionary holds."""

    def __init__(self) -> None:
        super().__init__()
        self.index = SemanticIndex()
        self.model: dict[bytes, str] = {}

    @rule(number=integers(0, 9), prompt=sampled_from(PROMPTS))
    def add(self, number: int, prompt: str) -> None:
        self.model[add(self.index, number, prompt)] = prompt

    @rule(number=integers(0, 9))
    def discard(self, number: int) -> None:
        self.index.discard(number.to_bytes(16, "big"))
        self.model.pop(number.to_bytes(16, "big"), None)

    @invariant()
    def same(self) -> None:
        assert len(self.index) == len(self.model)
        for prompt in PROMPTS:
            found = search(self.index, prompt)
            assert found is None or found in self.model
            assert found is not None or prompt not in self.model.values()
        if not self.model:
            assert not self.index._partitions


TestIndexAgainstModel = IndexAgainstModel.TestCase
TestIndexAgainstModel.settings = settings(max_examples=30, stateful_step_count=20)
