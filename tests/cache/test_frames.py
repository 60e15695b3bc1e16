"""Frames: how a question is put, apart from what it asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.cache.canonical import canonicalize
from velollm.cache.frame_rules import FRAMES, REWRITES
from velollm.cache.frames import Form, parse


def form(text: str) -> Form:
    found = parse(canonicalize(text))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "intent", "body"),
    [
        ("How do I boil an egg?", "HOWTO", ("boil", "egg")),
        ("What is the best way to boil eggs?", "HOWTO", ("boil", "egg")),
        ("Why do cats purr?", "WHY", ("cat", "purr")),
        ("How come cats purr?", "WHY", ("cat", "purr")),
        ("What does a carburetor do?", "PURPOSE", ("carburetor",)),
        ("What is the function of a carburetor?", "PURPOSE", ("carburetor",)),
        ("What does carpe mean?", "MEAN", ("carpe",)),
        ("Is gold heavy?", "YESNO", ("gold", "heavy")),
        ("Who is the author of Emma?", "WHO", ("wrote", "emma")),
        ("With pandas, how do I read a file?", "HOWTO", ("read", "file", "in", "panda")),
    ],
)
def test_intent_and_body(text: str, intent: str, body: tuple[str, ...]) -> None:
    assert intent in form(text).intents
    assert form(text).body == body


def test_tense_modality_and_negation_are_kept_apart_from_the_body() -> None:
    assert form("Who was the mayor of Rome?").moods == {"past"}
    assert form("Who will be the mayor of Rome?").moods == {"future"}
    assert form("Why doesn't my laptop charge?").moods == {"not"} == form("Why does my laptop not charge?").moods
    assert form("Should I eat it?").moods == {"should"}


def test_operands_without_an_order_are_sorted_and_others_are_not() -> None:
    assert form("difference between tea and coffee").body == form("difference between coffee and tea").body
    assert form("convert tea to coffee").body != form("convert coffee to tea").body
    assert form("move from a1 to b1").body == form("move to b1 from a1").body


def test_several_lines_and_nothing_have_no_form() -> None:
    assert parse(canonicalize("one\ntwo")) is None
    assert parse(canonicalize("")) is None


def test_earlier_sentences_are_a_preface() -> None:
    assert form("I am new to yoga. Where do I start?").preface == "i am new to yoga"


@pytest.mark.parametrize("pattern", [p for p, _ in (*REWRITES, *FRAMES)], ids=lambda p: p.pattern[:40])
def test_every_rule_is_anchored_and_fast_on_hostile_text(pattern: object) -> None:
    for text in (
        "what is the " * 40,
        "how " * 120,
        "a " * 240,
        "what of in for and " * 24,
        "give me the best recipe " * 20,
    ):
        pattern.sub("", text[:480])  # type: ignore[attr-defined]


VOCABULARY = [
    "what", "is", "how", "do", "i", "the", "a", "of", "in", "for", "to", "and", "not", "my", "best", "cat",
    "python", "from", "between",
]  # fmt: skip
WORDS = st.lists(st.sampled_from(VOCABULARY))


@given(WORDS)
def test_any_words_have_a_form_or_none_and_never_an_error(words: list[str]) -> None:
    found = parse(canonicalize(" ".join(words)))
    assert found is None or all(found.body)
