"""Text to tokens: what is words and what must agree to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.cache.tokens import is_verbatim, tokenize


def said(text: str) -> str:
    return " ".join(tokenize(text).tokens)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("What's DNA?", "what is dna"),
        ("Why doesn't it work?", "why does not it work"),
        ("the dog's bone", "the dog 's bone"),
        ("I'm sure you'll see they've won", "i am sure you will see they have won"),
        ("1,000 and 2,5", "1000 and 2,5"),
        ("5km, 20 % and $30", "5 km , 20 % and $ 30"),
        ("state-of-the-art", "state of the art"),
        ("U.S. law", "US law"),
        ("Tell us about the US", "tell us about the US"),
        ("who is the WHO", "who is the WHO"),
        ("two of twelve", "2 of 12"),
        ("a dose of it", "a dose of it"),
        ("what dose it do", "what does it do"),
        ("Hello 👋 there!!!", "hello there"),
        ("Node.js and C++", "node.js and c++"),
        (
            "“quoted” – dash",  # noqa: RUF001  # the dash is the point
            '"quoted , dash',
        ),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert said(text) == tokens


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is `a b`?", "What is `a  b`?"),
        ("What is `A`?", "What is `a`?"),
        ('What is "Cat"?', 'What is "cat"?'),
        ("What is x++?", "What is ++x?"),
        ("What is a[0]?", "What is a[1]?"),
        ("Explain [a-z]+", "Explain [a-z]*"),
        ("What is -5?", "What is 5?"),
        ("What is 1.5?", "What is 15?"),
        ("Explain 5M", "Explain 5m"),
        ("user_id", "userid"),
        ("What is polish?", "What is the Polish?"),
    ],
)
def test_what_stays_apart(one: str, other: str) -> None:
    assert said(one) != said(other)


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("Translate to French: good morning", "good morning"),
        ("Summarize:  The  cat.", "The  cat."),
        ("Hi! I have a question: what is DNA?", ""),
        ("Can you help me with this: what is DNA?", ""),
        ("What is 10:30?", ""),
        ("Explain `a: b`", ""),
    ],
)
def test_what_follows_the_colon(text: str, payload: str) -> None:
    assert tokenize(text).payload == payload


def test_names_are_what_stands_capitalised_within_a_sentence() -> None:
    assert tokenize("Where was Marie Curie born?").names == {"marie", "curie"}
    assert tokenize("WHERE WAS MARIE CURIE BORN?").names == frozenset()
    assert tokenize("Where Was Marie Curie Born?").names == frozenset()


@given(st.text(max_size=60))
def test_tokens_have_no_white_space_and_no_empty_one(text: str) -> None:
    for token in tokenize(text).tokens:
        assert token
        assert not token.isspace()
        assert is_verbatim(token) in (True, False)


@given(st.text(alphabet="ab`\"' :.,?(\n", max_size=60))
def test_the_same_text_has_the_same_tokens_whatever_white_space_surrounds_it(text: str) -> None:
    assert tokenize(f"  {text} ").tokens == tokenize(text).tokens


@pytest.mark.parametrize("unit", ["`", '"', "'", "(", "a.", "-", ":", "1,", "hello, ", "please "])
def test_time_is_linear_in_hostile_text(unit: str) -> None:
    assert isinstance(tokenize(unit * (40_000 // len(unit))).tokens, tuple)
