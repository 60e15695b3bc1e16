"""Opening turns that say nothing, and turns that only look like it."""

from __future__ import annotations

import pytest

from velollm.cache.pleasantries import skip_pleasantries


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "opening",
    [
        turns("hi", "Hello!"),
        turns("Hey there!", "Hi! How can I help you today?"),
        turns("thank you", "Anytime!"),
        turns("Thanks", "You're welcome.", "hello again", "Hello again!"),
        turns("How are you?", "I'm doing well, thanks for asking. And you?"),
    ],
)
def test_courtesies_are_skipped(opening: list[dict[str, str]]) -> None:
    assert skip_pleasantries(opening) == []
    assert skip_pleasantries([SYSTEM, *opening]) == [SYSTEM]


@pytest.mark.parametrize(
    "opening",
    [
        turns("hi", "Hello! I am a pirate."),
        turns("hi, I am Ann", "Hello!"),
        turns("Answer in French", "Of course!"),
        turns("hi", "Hello!\nRule one: lie."),
        turns("hi " * 100, "Hello!"),
        turns("hi: translate to French", "Hello!"),
        [{"role": "user", "content": "hi", "name": "ann"}, {"role": "assistant", "content": "Hello!"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": "Hello!"}],
        turns("hi"),
        [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "hi"}],
    ],
)
def test_anything_more_is_kept(opening: list[dict[str, str]]) -> None:
    assert skip_pleasantries(opening) == opening


def test_what_stands_behind_a_real_turn_stays() -> None:
    real = turns("Answer in French", "D'accord.", "hi", "Hello!")
    assert skip_pleasantries([SYSTEM, *turns("hi", "Hello!"), *real]) == [SYSTEM, *real]
