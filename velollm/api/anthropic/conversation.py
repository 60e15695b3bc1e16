"""`system` and `messages` of Anthropic's dialect, read into typed turns.

One turn of the user may hold tool results and more: each result becomes a turn of role `tool`, in order, and what is
left one turn of role `user` after them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

from velollm.api.anthropic.blocks import READERS, block_type, flatten, read_parts, refuse_elsewhere
from velollm.api.values import (
    at,
    expect_list,
    expect_object,
    fail,
    get_bool,
    get_str,
    need_list,
    need_object,
    need_str,
    unknown_value,
)
from velollm.messages import Message, Part, ToolCall

__all__ = ["read_conversation"]

JSON: TypeAlias = dict[str, Any]

ROLES = ("user", "assistant", "system")
BLOCKS = frozenset({*READERS, "tool_use", "tool_result", "thinking", "redacted_thinking"})
RESULT_BLOCKS = frozenset(READERS)
BILLING = "x-anthropic-billing-header"


def read_conversation(payload: JSON) -> list[Message]:
    """All turns, the system prompt first."""
    system = _system(payload.get("system"))
    reader = _Reader()
    for number, item in enumerate(need_list(payload, "messages", min_length=1)):
        path = at("messages", number)
        reader.turn(expect_object(item, path), path)
    return system + reader.turns


def _system(value: Any) -> list[Message]:
    if value is None:
        return []
    text = _system_text(value, "system")
    return [Message(role="system", content=text)] if text else []


def _system_text(value: Any, path: str) -> str:
    """The texts as one, without Claude Code's billing line, which differs in every request and so spoils every prefix
    cache behind it."""
    if isinstance(value, str):
        return value.partition("\n")[2].lstrip("\n") if value.startswith(BILLING) else value
    if not isinstance(value, list):
        fail(path, "must be a string or an array of text blocks")
    texts = []
    for number, item in enumerate(value):
        where = at(path, number)
        block = expect_object(item, where)
        block_type(block, where, ("text",))
        texts.append(need_str(block, "text", where))
    return "\n\n".join(text for text in texts if text and not text.startswith(BILLING))


class _Reader:
    """Reads turn after turn, and remembers which call has which name: results give ids alone, engines want names."""

    def __init__(self) -> None:
        self.turns: list[Message] = []
        self._names: dict[str, str] = {}

    def turn(self, message: JSON, path: str) -> None:
        role = need_str(message, "role", path)
        if role not in ROLES:
            unknown_value(at(path, "role"), role, ROLES)
        content = message.get("content")
        where = at(path, "content")
        if role == "system":
            self.turns.append(Message(role="system", content=_system_text(content, where)))
        elif isinstance(content, str):
            self.turns.append(Message(role="user" if role == "user" else "assistant", content=content))
        elif not isinstance(content, list):
            fail(where, "is required and must be a string or an array of content blocks")
        elif role == "user":
            self._user(content, where)
        else:
            self._assistant(content, where)

    def _user(self, content: list[Any], path: str) -> None:
        parts: list[Part] = []
        results = 0
        for number, item in enumerate(content):
            where = at(path, number)
            block = expect_object(item, where)
            name = block_type(block, where, BLOCKS)
            if name == "tool_result":
                results += 1
                self.turns.append(self._result(block, where))
            elif name in READERS:
                parts += read_parts(block, name, where)
            else:
                refuse_elsewhere(name, "user", where)
        if parts or not results:
            self.turns.append(Message(role="user", content=flatten(parts)))

    def _result(self, block: JSON, path: str) -> Message:
        call_id = need_str(block, "tool_use_id", path, empty=False)
        value = block.get("content")
        where = at(path, "content")
        parts: list[Part] = []
        if not isinstance(value, str) and value is not None:
            for number, item in enumerate(expect_list(value, where)):
                inner = at(where, number)
                piece = expect_object(item, inner)
                parts += read_parts(piece, block_type(piece, inner, RESULT_BLOCKS), inner)
        return Message(
            role="tool",
            content=value if isinstance(value, str) else flatten(parts),
            tool_call_id=call_id,
            name=self._names.get(call_id),
            is_error=get_bool(block, "is_error", path) or False,
        )

    def _assistant(self, content: list[Any], path: str) -> None:
        parts: list[Part] = []
        calls: list[ToolCall] = []
        thoughts: list[str] = []
        for number, item in enumerate(content):
            where = at(path, number)
            block = expect_object(item, where)
            name = block_type(block, where, BLOCKS)
            if name == "tool_use":
                calls.append(self._call(block, where))
            elif name == "thinking":
                thoughts.append(need_str(block, "thinking", where))
                get_str(block, "signature", where)
            elif name == "redacted_thinking":
                need_str(block, "data", where)  # nobody but Anthropic can read it
            elif name in READERS:
                parts += read_parts(block, name, where)
            else:
                refuse_elsewhere(name, "assistant", where)
        self.turns.append(
            Message(
                role="assistant",
                content=flatten(parts) if parts or not calls else None,
                tool_calls=calls,
                reasoning="\n\n".join(thoughts) or None,
            )
        )

    def _call(self, block: JSON, path: str) -> ToolCall:
        call_id = need_str(block, "id", path, empty=False)
        name = need_str(block, "name", path, empty=False)
        self._names[call_id] = name
        try:
            arguments = orjson.dumps(need_object(block, "input", path)).decode()
        except orjson.JSONEncodeError:
            fail(at(path, "input"), "is nested too deeply")
        return ToolCall(id=call_id, name=name, arguments=arguments)
