"""The `messages` of a chat request, read into typed turns.

Deprecated spellings (role `function`, `function_call`) and what lenient clients leave out (`tool_call_id`, arguments as
an object) are understood; `plain` then says that the original bytes are not what an engine should get.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import orjson

from velollm.api.openai.parts import parse_content
from velollm.api.values import at, expect_object, fail, get_list, get_object, get_str, need_list, need_str, rest
from velollm.api.values import unknown_value as unknown
from velollm.messages import Message, Role, ToolCall

__all__ = ["Conversation", "arguments_text"]

JSON: TypeAlias = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
PLAIN_ROLES = ("user", "assistant", "system", "developer")
COMMON = frozenset({"role", "content", "name"})
ASSISTANT = COMMON | {"tool_calls", "function_call", "reasoning_content", "reasoning"}
TOOL = COMMON | {"tool_call_id"}


class Conversation:
    """Reads the array of messages: `turns` in order, and `plain`, which is true when nothing had to be interpreted."""

    def __init__(self, payload: JSON) -> None:
        self.plain = True
        self._last_call = ""
        items = need_list(payload, "messages", min_length=1)
        self.turns = [self._turn(item, number) for number, item in enumerate(items)]

    def _turn(self, value: Any, number: int) -> Message:
        if type(value) is dict and len(value) == 2 and value.get("role") in PLAIN_ROLES:
            content = value.get("content")
            if type(content) is str:  # nearly every turn there is
                return Message(role=value["role"], content=content)
        path = at("messages", number)
        message = expect_object(value, path)
        role = need_str(message, "role", path)
        if role == "assistant":
            return self._assistant(message, path, number)
        if role in ("tool", "function"):
            return self._result(message, path, role)
        if role not in ROLES:
            unknown(at(path, "role"), role, ROLES)
        return Message(
            role=cast("Role", role),
            content=parse_content(message.get("content"), at(path, "content")),
            name=get_str(message, "name", path),
            extra=rest(message, COMMON),
        )

    def _assistant(self, message: JSON, path: str, number: int) -> Message:
        content = message.get("content")
        extra = rest(message, ASSISTANT)
        reasoning = self._reasoning(message, path, extra)
        return Message(
            role="assistant",
            content=None if content is None else parse_content(content, at(path, "content")),
            name=get_str(message, "name", path),
            tool_calls=self._calls(message, path, number),
            reasoning=reasoning,
            extra=extra,
        )

    def _reasoning(self, message: JSON, path: str, extra: JSON) -> str | None:
        for key in ("reasoning_content", "reasoning"):
            value = message.get(key)
            if isinstance(value, str):
                return value
            if value is not None and key == "reasoning":
                extra[key] = value
            elif value is not None:
                fail(at(path, key), "must be a string")
        return None

    def _result(self, message: JSON, path: str, role: str) -> Message:
        content = message.get("content")
        call_id = get_str(message, "tool_call_id", path)
        if role == "function":
            need_str(message, "name", path)
            call_id = call_id or self._last_call or None
        if role == "function" or not call_id or content is None:
            self.plain = False
        return Message(
            role="tool",
            content="" if content is None else parse_content(content, at(path, "content")),
            tool_call_id=call_id or None,
            name=get_str(message, "name", path),
            extra=rest(message, TOOL),
        )

    def _calls(self, message: JSON, path: str, number: int) -> list[ToolCall]:
        items = get_list(message, "tool_calls", path) or []
        where = at(path, "tool_calls")
        calls = [self._call(item, at(where, place), f"call_{number}_{place}") for place, item in enumerate(items)]
        legacy = get_object(message, "function_call", path)
        if legacy is not None:
            self.plain = False
            where = at(path, "function_call")
            self._last_call = f"call_{number}_{len(calls)}"
            name = need_str(legacy, "name", where)
            calls.append(ToolCall(id=self._last_call, name=name, arguments=self._arguments(legacy, where)))
        return calls

    def _call(self, value: Any, path: str, fallback: str) -> ToolCall:
        item = expect_object(value, path)
        if item.get("type") not in (None, "function"):
            fail(at(path, "type"), "must be 'function'; other kinds of tool calls are not supported")
        where = at(path, "function")
        function = expect_object(item.get("function"), where)
        call_id = get_str(item, "id", path)
        if not call_id or "type" not in item:
            self.plain = False
        extra = rest(item, ("id", "type", "function"))
        if more := rest(function, ("name", "arguments")):
            extra["function"] = more
        return ToolCall(
            id=call_id or fallback,
            name=need_str(function, "name", where),
            arguments=self._arguments(function, where),
            extra=extra,
        )

    def _arguments(self, function: JSON, path: str) -> str:
        value = function.get("arguments")
        if isinstance(value, str):
            return value
        if value is not None and not isinstance(value, dict):
            fail(at(path, "arguments"), "must be a string of JSON")
        self.plain = False
        try:
            return arguments_text(value)
        except orjson.JSONEncodeError:
            fail(at(path, "arguments"), "is nested too deeply")


def arguments_text(value: Any) -> str:
    """Arguments as JSON text, whether they came as text, as an object or not at all."""
    if isinstance(value, str):
        return value
    return "{}" if value is None else orjson.dumps(value).decode()
