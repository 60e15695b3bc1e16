"""Going on with an answer on a llama-server, by token ids: the prompt's and those of what was said.

The rest comes from the completions endpoint, which knows nothing of reasoning and tool calls: only plain text is
gone on with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs

from velollm.continuation import Clear, Token, align, ids_of_piece
from velollm.messages import ChatRequest

__all__ = ["Tokens", "likely_tokens", "rest_of", "said_tokens"]

MOST_QUESTIONS = 512  # pieces that are tokenised one by one
FIRST = "\n"  # stands before a text whose tokenizer would put a space there

Tokenizer = Callable[[str], Awaitable[list[Token]]]


@attrs.frozen
class Tokens:
    """The ids of the first `pieces` pieces."""

    ids: list[int]
    pieces: int


async def said_tokens(pieces: Sequence[str], tokenize: Tokenizer, stops: Sequence[str] = ()) -> Tokens:
    """The token ids that `pieces` came from, as far as they can be known for certain.

    What begins like one of `stops` is held back by the engine, so that a piece may be several tokens.
    """
    held = frozenset(stop[0] for stop in stops if len(stop) > 1)
    ids: list[int] = []
    known: dict[str, list[int] | None] = {}
    done = 0
    for part in align(pieces, await _tokens("".join(pieces), tokenize)):
        for piece in pieces[done : done + (1 if isinstance(part, Clear) else len(part.pieces))]:
            if not held.isdisjoint(piece[:-1]):
                return Tokens(ids, done)
            found = part.ids if isinstance(part, Clear) else known.get(piece)
            if found is None and piece not in known:
                if len(known) >= MOST_QUESTIONS:
                    return Tokens(ids, done)
                found = known[piece] = ids_of_piece(piece, await _tokens(piece, tokenize))
            if found is None:
                return Tokens(ids, done)
            ids += found
            done += 1
    return Tokens(ids, done)


async def likely_tokens(pieces: Sequence[str], known: Tokens, tokenize: Tokenizer) -> Tokens:
    """All tokens: those that are `known`, and for the rest those that the tokenizer makes of the text.

    Where answers are drawn, that is as good: nobody can say how the rest would have been.
    """
    rest = await _tokens("".join(pieces[known.pieces :]), tokenize)
    return Tokens([*known.ids, *(number for number, _ in rest)], len(pieces))


async def _tokens(text: str, tokenize: Tokenizer) -> list[Token]:
    """The tokens of `text` in the middle of another text."""
    tokens = await tokenize(text)
    raw = text.encode("utf-8", "surrogatepass")
    if b"".join(piece for _, piece in tokens) == raw:
        return tokens
    tokens = await tokenize(FIRST + text)
    while tokens and b"".join(piece for _, piece in tokens) != raw:
        tokens = tokens[1:]
    return tokens


def rest_of(request: ChatRequest, prompt: list[int], said: Tokens) -> ChatRequest:
    """The completion that goes on behind `prompt` and `said`, both as token ids."""
    left = None if request.max_tokens is None else request.max_tokens - len(said.ids)
    return request.replace(messages=[], prompt=[*prompt, *said.ids], raw=True, max_tokens=left, stream=True, think=None)
