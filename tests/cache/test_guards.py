"""The guards: whatever differs and is not accounted for refuses the hit, and says why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.cache.canonical import canonicalize
from velollm.cache.guards import Question, Refusal, judge, read

NOUNS = ("cat", "dog", "river", "engine", "poem", "violin", "garden", "planet")
VERBS = ("clean", "paint", "move", "describe", "grow")


def question(text: str) -> Question:
    found = read(canonicalize(text))
    assert found is not None
    return found


def refusal(one: str, other: str) -> Refusal | None:
    verdict = judge(question(one), question(other))
    assert (verdict is None) == (judge(question(other), question(one)) is None), "a verdict has no direction"
    return verdict


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I boil an egg?", "What's the best way to boil an egg?"),
        ("How do I buy a car?", "How do I purchase a car?"),
        ("What is the capital of Peru?", "Which city is Peru's capital?"),
        ("How do I rename a git branch?", "How can I rename a branch in git?"),
        ("What is the recipie for bananna bread?", "What is the recipe for banana bread?"),
        ("In Excel, how do I freeze a row?", "How do I freeze a row in Excel?"),
        ("What is the difference between tea and coffee?", "How does coffee differ from tea?"),
        ("Who is the author of Emma?", "Who wrote Emma?"),
        ("ice cream recipe", "icecream recipe"),
    ],
)
def test_the_same_question(one: str, other: str) -> None:
    assert refusal(one, other) is None


@pytest.mark.parametrize(
    ("one", "other", "guard"),
    [
        ("Cook 2 eggs", "Cook 3 eggs", "number"),
        ("What is PHP 8.1?", "What is PHP 8.3?", "number"),
        ("Explain `a+b`", "Explain `a-b`", "code"),
        ("Why do cats swim?", "Why don't cats swim?", "negation"),
        ("Which birds fly?", "Which birds never fly?", "negation"),
        ("A salad with nuts", "A salad without nuts", "negation"),
        ("When was Bach born?", "Where was Bach born?", "question"),
        ("Who is the mayor?", "Who was the mayor?", "tense"),
        ("What is in the box?", "What is on the box?", "preposition"),
        ("What should he eat?", "What should she eat?", "person"),
        ("Sort a list in Rust", "Sort a list in Ruby", "technology"),
        ("Can cats eat dogs?", "Can dogs eat cats?", "order"),
        ("Move from Rome to Oslo", "Move from Oslo to Rome", "order"),
        ("Translate to French: cat", "Translate to French: dog", "payload"),
        ("I am old. What is yoga?", "I am young. What is yoga?", "context"),
        ("Write a poem", "Write poems", "singular"),
        ("Write the poem", "Write a poem", "article"),
        ("How far is Mars in km?", "How far is Mars in mi?", "unit"),
        ("Where was Obama born?", "Where was Osama born?", "word"),
        ("What is the tallest tree?", "What is a tall tree?", "word"),
    ],
)
def test_the_guard_that_refuses(one: str, other: str, guard: str) -> None:
    verdict = refusal(one, other)
    assert verdict is not None
    assert verdict.guard == guard
    assert str(verdict).startswith(guard)


@given(
    st.sampled_from(VERBS), st.sampled_from(NOUNS), st.sampled_from(NOUNS), st.sampled_from(("to", "for", "on", "from"))
)
def test_arguments_never_trade_places(verb: str, one: str, other: str, link: str) -> None:
    verdict = refusal(f"How do I {verb} a {one} {link} a {other}?", f"How do I {verb} a {other} {link} a {one}?")
    assert (verdict is None) == (one == other)


@given(st.sampled_from(VERBS), st.sampled_from(NOUNS), st.integers(0, 99), st.integers(0, 99))
def test_numbers_always_count(verb: str, noun: str, one: int, other: int) -> None:
    verdict = refusal(f"{verb} {one} {noun}s", f"{verb} {other} {noun}s")
    assert (verdict is None) == (one == other)


VOCABULARY = [
    "what", "is", "how", "do", "i", "the", "a", "of", "in", "for", "to", "and", "not", "my", "best", "cat", "dog",
    "python", "from", "between", "3", "`x`",
]  # fmt: skip
WORDS = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=9)


@given(WORDS)
def test_every_question_is_itself(words: list[str]) -> None:
    asked = read(canonicalize(" ".join(words)))
    assert asked is None or judge(asked, asked) is None


@given(WORDS, WORDS)
def test_verdicts_have_no_direction(one: list[str], other: list[str]) -> None:
    a, b = read(canonicalize(" ".join(one))), read(canonicalize(" ".join(other)))
    if a is not None and b is not None:
        assert (judge(a, b) is None) == (judge(b, a) is None)


@given(WORDS, st.sampled_from(["not", "never", "7", "`y`", "without", "london", "all", "before"]), st.integers(0, 9))
def test_a_word_more_is_another_question(words: list[str], added: str, at: int) -> None:
    a = read(canonicalize(" ".join(words)))
    b = read(canonicalize(" ".join([*words[:at], added, *words[at:]])))
    if a is not None and b is not None and added not in words:
        assert judge(a, b) is not None
