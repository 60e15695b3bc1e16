"""The `input` of a request: items in a row, read into typed turns.

What the model said in one turn are several items (reasoning, message, function calls); they become one turn again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias, cast

from velollm.api.responses.parts import read_content
from velollm.api.values import (
    at,
    expect_list,
    expect_object,
    fail,
    get_list,
    get_str,
    kind,
    need_str,
    unknown_value,
)
from velollm.errors import RequestError, UnsupportedError
from velollm.messages import Message, Role, ToolCall

__all__ = ["read_input"]

JSON: TypeAlias = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")


def read_input(payload: JSON) -> list[Message]:
    """All turns, the instructions first."""
    instructions = get_str(payload, "instructions")
    turns = [Message(role="system", content=instructions)] if instructions else []
    value = payload.get("input")
    if isinstance(value, str):
        return [*turns, Message(role="user", content=value)]
    if not isinstance(value, list):
        fail("input", "is required" if value is None else f"must be a string or an array of items, not {kind(value)}")
    reader = _Reader()
    for number, item in enumerate(expect_list(value, "input", min_length=1)):
        path = at("input", number)
        reader.item(expect_object(item, path), path)
    return turns + reader.turns


class _Reader:
    def __init__(self) -> None:
        self.turns: list[Message] = []
        self._names: dict[str, str] = {}
        self._thoughts: list[str] = []
        self._readers: dict[str, Callable[[JSON, str], None]] = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._result,
            "reasoning": self._reasoning,
            "item_reference": self._reference,
        }

    def item(self, item: JSON, path: str) -> None:
        """Read one item; without a type it is a message, or a reference when it has nothing but an id."""
        name = get_str(item, "type", path) or ("message" if "role" in item or "id" not in item else "item_reference")
        reader = self._readers.get(name)
        if reader is not None:
            reader(item, path)
        elif name.endswith(("_call", "_call_output", "_output", "_request", "_response")) or "compaction" in name:
            raise UnsupportedError(
                f"{at(path, 'type')} is {name[:60]!r}: tools that OpenAI runs do not exist here; leave such items out",
                param=at(path, "type"),
            )
        else:
            unknown_value(at(path, "type"), name, self._readers)

    def _message(self, item: JSON, path: str) -> None:
        role = need_str(item, "role", path)
        if role not in ROLES:
            unknown_value(at(path, "role"), role, ROLES)
        content = read_content(item.get("content"), at(path, "content"))
        reasoning = self._take_thoughts() if role == "assistant" else None
        self.turns.append(Message(role=cast("Role", role), content=content, reasoning=reasoning))

    def _call(self, item: JSON, path: str) -> None:
        call = ToolCall(
            id=need_str(item, "call_id", path, empty=False),
            name=need_str(item, "name", path, empty=False),
            arguments=need_str(item, "arguments", path),
        )
        self._names[call.id] = call.name
        if not self.turns or self.turns[-1].role != "assistant" or self._thoughts:
            self.turns.append(Message(role="assistant", reasoning=self._take_thoughts()))
        self.turns[-1].tool_calls.append(call)

    def _result(self, item: JSON, path: str) -> None:
        call_id = need_str(item, "call_id", path, empty=False)
        name = self._names.get(call_id) or get_str(item, "name", path)
        content = read_content(item.get("output"), at(path, "output"))
        self.turns.append(Message(role="tool", content=content, tool_call_id=call_id, name=name))

    def _reasoning(self, item: JSON, path: str) -> None:
        """The thoughts themselves where they are there, else their summary; `encrypted_content` is OpenAI's alone."""
        for key in ("content", "summary"):
            texts = []
            for number, value in enumerate(get_list(item, key, path) or ()):
                where = at(at(path, key), number)
                texts.append(need_str(expect_object(value, where), "text", where))
            if texts:
                self._thoughts += texts
                return

    def _take_thoughts(self) -> str | None:
        thoughts = "\n\n".join(self._thoughts)
        self._thoughts.clear()
        return thoughts or None

    def _reference(self, item: JSON, path: str) -> NoReturn:
        raise RequestError(
            f"{path} refers to a stored item, but nothing is stored here: send the item itself", param=path
        )
