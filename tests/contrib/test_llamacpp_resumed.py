"""The token ids of what was said: found for certain, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from velollm.continuation import Token
from velollm.contrib.llamacpp.resumed import MOST_QUESTIONS, Tokens, likely_tokens, rest_of, said_tokens
from velollm.messages import ChatRequest

pytestmark = pytest.mark.anyio

VOCABULARY = [
    "Hel",
    "lo",
    "Hello",
    " world",
    " wor",
    "ld",
    "!",
    " ",
    "H",
    "e",
    "l",
    "o",
    "w",
    "r",
    "d",
    "\n",
    "x",
    "\n\n",
]
IDS = {text: number for number, text in enumerate(VOCABULARY)}


class Tokenizer:
    """Takes the longest piece it knows; with `space`, it puts a space in front of a text, as SentencePiece does."""

    def __init__(self, *, space: bool = False) -> None:
        self.space = space
        self.asked: list[str] = []

    async def __call__(self, text: str) -> list[Token]:
        self.asked.append(text)
        rest = " " + text if self.space else text
        found: list[Token] = []
        while rest:
            piece = max((one for one in VOCABULARY if rest.startswith(one)), key=len)
            found.append((IDS[piece], piece.encode()))
            rest = rest[len(piece) :]
        return found


def ids(*pieces: str) -> list[int]:
    return [IDS[piece] for piece in pieces]


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize(
    "pieces", [["Hello", " world", "!"], ["Hel", "lo", " world"], ["H", "e", "l", "lo", " wor", "ld"], ["Hello"]]
)
async def test_tokens_are_those_that_were_made(pieces: Sequence[str], space: bool) -> None:
    assert await said_tokens(pieces, Tokenizer(space=space)) == Tokens(ids(*pieces), len(pieces))


async def test_a_piece_that_is_no_token_ends_what_is_known() -> None:
    assert await said_tokens(["Hello", "Hello!", " world"], Tokenizer()) == Tokens(ids("Hello"), 1)
    found = await likely_tokens(["Hello", "Hello!", " world"], Tokens(ids("Hello"), 1), Tokenizer())
    assert found == Tokens(ids("Hello", "Hello", "!", " world"), 3)


async def test_what_may_have_been_held_back_is_not_certain() -> None:
    assert await said_tokens(["Hello", " world"], Tokenizer(), ["w!"]) == Tokens(ids("Hello"), 1)
    assert await said_tokens(["Hello", " world"], Tokenizer(), ["d!", "\n"]) == Tokens(ids("Hello", " world"), 2)


async def test_questions_are_bounded_and_asked_once() -> None:
    tokenizer = Tokenizer()
    assert (await said_tokens(["Hel", "lo"] * 50, tokenizer)).pieces == 100
    assert len(tokenizer.asked) == 3
    assert MOST_QUESTIONS <= 1000


def test_the_completion_behind_them() -> None:
    request = ChatRequest(prompt="x", max_tokens=10, think=True, stop=["y"])
    asked = rest_of(request, [1, 2], Tokens([3, 4], 2))
    assert asked.prompt == [1, 2, 3, 4]
    assert (asked.max_tokens, asked.stop, asked.raw, asked.stream) == (8, ["y"], True, True)
    assert rest_of(ChatRequest(prompt="x"), [1], Tokens([], 0)).max_tokens is None
