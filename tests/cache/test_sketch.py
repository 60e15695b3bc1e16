"""The sketch never tells two prompts apart that have one canonical form."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.pairs import FOLDER, read_pairs

from velollm.cache.canonical import canonicalize
from velollm.cache.lexicon import CONTRACTIONS, GERUNDS, MISSPELLINGS, NUMBER_WORDS
from velollm.cache.sketch import sketch

WORDS = st.sampled_from(
    [
        *CONTRACTIONS, *CONTRACTIONS.values(), *MISSPELLINGS, *NUMBER_WORDS, *GERUNDS, "shouldn't", "Mightn't", "1,000",
        "20000", "1,23,456", "photosynthesis", "N.A.S.D.A.Q.", "nasdaq", "NASDAQ", "e-mail-server", "`Some Code`",
        '"Quoted Words"', "'single ones'", "snake_case", "café", "na\u0131ve", "zero\u200bwidth", "don\u2019t",
        "\u201csmart\u201d",
        "$2,500", "500km", "C++", "I", "US", "Turkey", "\n", "```", ":", ",", ".", "?", "—", "…", "🙂",
    ]
)  # fmt: skip
FRAMES = st.sampled_from(
    [
        "{}", "Hi there! {}", "hello, {}", "Please {}", "{}, please?", "{} Thanks a lot!",
        "Could you please tell me {}",
        "I was wondering if you could help me understand {}", "Quick question about gravity waves: {}", '"{}"',
        "Would you mind explaining {}", "I'd really appreciate it if you could explain {}", "{} have a great day",
        "I have a question for you: {}", "  {}  ", "{}\n", "\u201c{}\u201d", "{} if you don't mind",
    ]
)  # fmt: skip


def variants(text: str) -> list[str]:
    return [text, text.upper(), text.lower(), text.title(), text.replace("'", "\u2019"), text.replace(" ", "  ")]


@given(st.lists(WORDS, min_size=1, max_size=7), FRAMES, FRAMES)
@example(["shouldn't", "photosynthesis"], "{}", "Quick question about gravity waves: {}")
@example(["N.A.S.D.A.Q."], "{}", "{}")
def test_one_form_one_sketch(words: list[str], one: str, other: str) -> None:
    core = " ".join(words)
    sketches: dict[bytes, set[int]] = {}
    for text in {text for frame in (one, other) for text in variants(frame.format(core))}:
        sketches.setdefault(canonicalize(text).signature, set()).add(sketch(text))
    assert all(len(found) == 1 for found in sketches.values())


@given(st.text(max_size=60), FRAMES)
def test_any_text(text: str, frame: str) -> None:
    for variant in variants(frame.format(text)):
        if canonicalize(variant).signature == canonicalize(text).signature:
            assert sketch(variant) == sketch(text)


@pytest.mark.parametrize("name", ["tuned", "held", "fresh"])
def test_labelled_pairs(name: str) -> None:
    by_form: dict[bytes, set[int]] = {}
    for pair in read_pairs(FOLDER / f"{name}.jsonl"):
        for text in (pair.a, pair.b):
            by_form.setdefault(canonicalize(text).signature, set()).add(sketch(text))
    assert all(len(sketches) == 1 for sketches in by_form.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Why is the sky blue? Explain it to child 00000001.", "Why is the sky blue? Explain it to child 00000002."),
        ("What is photosynthesis?", "What is osmosis?"),
        ("Write a poem about autumn", "Write a poem about summer"),
        ("Что такое фотосинтез?", "Что такое гравитация?"),
    ],
)
def test_different_questions(one: str, other: str) -> None:
    assert sketch(one) != sketch(other)
