"""The `context` of `/api/generate`: numbers that a client sends back to go on with a conversation. No I/O.

Ollama's are token ids, which mean nothing to another engine, nor after a layer has changed the answer. Ours are the
conversation itself, byte by byte, behind a mark that is no token id; nothing has to be kept for them.
"""

from __future__ import annotations

from typing import Any, cast

import orjson

from velollm.messages import ChatRequest, Message, Role

__all__ = ["forget", "recall", "remember"]

MARK = [0x56454C4F, 0x4C4C4D01]  # vocabularies end far below
ROLES = ("system", "user", "assistant")


def remember(request: ChatRequest, said: str) -> list[int] | None:
    """The context after the answer `said`; None where there is none: of raw prompts, and behind an engine's own."""
    if request.raw or request.asks_nothing or request.suffix is not None or request.extra.get("context"):
        return None
    turns = [(message.role, message.text) for message in request.messages]
    if isinstance(request.prompt, str):
        turns.append(("user", request.prompt))
    return [*MARK, *orjson.dumps([*turns, ("assistant", said)])]


def recall(numbers: list[int]) -> list[Message] | None:
    """The turns in a context of ours; None when it is an engine's. Raises `ValueError` when it is damaged."""
    if numbers[: len(MARK)] != MARK:
        return None
    turns: Any = orjson.loads(bytes(numbers[len(MARK) :]))
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        raise ValueError("context")
    return [Message(role=cast(Role, role), content=text) for role, text in turns]


def forget(turns: list[Message], system: str | None) -> list[Message]:
    """The turns with the system prompt that is given now, where one is, in place of the former."""
    if not system:
        return turns
    return [Message(role="system", content=system), *(turn for turn in turns if turn.role != "system")]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and turn[0] in ROLES and isinstance(turn[1], str)
