"""The canonical form: what may be taken away, and what never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.cache.canonical import canonicalize

OPENINGS = (
    "",
    "Hi! ",
    "Hello, ",
    "Hey there, ",
    "Please ",
    "Could you please tell me ",
    "Do you know ",
    "Quick question: ",
)
CLOSINGS = ("", "?", " please?", ", thanks!", "? Thank you.", " ?? thx")


def signature(text: str) -> bytes:
    return canonicalize(text).signature


@given(st.sampled_from(OPENINGS), st.sampled_from(CLOSINGS), st.booleans())
def test_courtesy_case_and_punctuation_do_not_matter(opening: str, closing: str, shout: bool) -> None:
    core = "what the capital of Peru is"
    text = opening + core + closing
    assert canonicalize(text.upper() if shout else text).bare == "what the capital of peru is"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What's DNA?", "what is dna"),
        ("Can you explain DNA?", "Explain DNA."),
        ("Would you mind explaining DNA?", "explain dna"),
        ("I was wondering how DNA works.", "How DNA works"),
        ("  What   is\tDNA ", "What is DNA"),
        ("Explain “DNA”", 'explain "DNA"'),
        ("Please help me understand recursion", "explain recursion"),
    ],
)
def test_one_question(one: str, other: str) -> None:
    assert signature(one) == signature(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is DNA?", "What is RNA?"),
        ("Can you swim?", "Swim."),
        ("How do I say please?", "How do I say?"),
        ("How do you spell thanks", "How do you spell"),
        ("What is `x`?", "What is `X`?"),
        ("Translate: hello", "Translate: Hello"),
        ("a\nb", "a b"),
        ("print:\n  x", "print:\n x"),
        ("What is 1.0?", "What is 10?"),
        ("Do not explain DNA", "Explain DNA"),
        ("hello", "hi"),
    ],
)
def test_two_questions(one: str, other: str) -> None:
    assert signature(one) != signature(other)


@pytest.mark.parametrize("text", ["please", "thanks", "hi", "Hello there!", "could you please", "ok, thank you"])
def test_courtesy_alone_is_the_question(text: str) -> None:
    assert canonicalize(text).bare


@given(st.text(max_size=80))
def test_a_form_is_stable(text: str) -> None:
    assert canonicalize(text) == canonicalize(text)


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_payload_is_compared_to_the_letter(one: str, other: str) -> None:
    left, right = (f"Translate to French: x{text.strip()}x" for text in (one, other))
    if one.strip() != other.strip():
        assert signature(left) != signature(right)


@pytest.mark.parametrize("unit", ["please ", "hi, ", "so, ", "thanks ", "can you ", "could you please ", ". , "])
def test_time_is_linear_in_hostile_text(unit: str) -> None:
    assert canonicalize(unit * (4096 // len(unit))).signature
