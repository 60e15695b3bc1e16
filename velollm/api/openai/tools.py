"""`tools`, `tool_choice` and `response_format`, and their deprecated forerunners `functions` and `function_call`."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

from velollm.api.values import (
    at,
    expect_object,
    fail,
    get_bool,
    get_choice,
    get_list,
    get_object,
    get_str,
    hint,
    need_list,
    need_object,
    need_str,
    rest,
)
from velollm.api.values import unknown_value as unknown
from velollm.errors import UnsupportedError
from velollm.messages import ResponseFormat, Tool, ToolChoice

__all__ = ["Tooling", "parse_response_format", "parse_tooling"]

JSON: TypeAlias = dict[str, Any]

MODES: dict[str, ToolChoice] = {
    "auto": ToolChoice(mode="auto"),
    "none": ToolChoice(mode="none"),
    "required": ToolChoice(mode="required"),
}
FIELDS = frozenset({"tools", "tool_choice", "functions", "function_call"})
FORMATS = ("text", "json_object", "json_schema", "structural_tag")


@attrs.frozen
class Tooling:
    """The tools of a request and how they may be chosen; `plain` as in `Conversation`."""

    tools: list[Tool]
    choice: ToolChoice | None
    plain: bool = True


def parse_tooling(payload: JSON) -> Tooling:
    """Read `tools` and `tool_choice`, or `functions` and `function_call`."""
    if FIELDS.isdisjoint(payload):
        return Tooling([], None)
    tools = [_tool(item, at("tools", number)) for number, item in enumerate(get_list(payload, "tools") or ())]
    if functions := get_list(payload, "functions"):
        found = [_function(item, at("functions", number)) for number, item in enumerate(functions)]
        return Tooling(tools + found, _function_call(payload.get("function_call"), found), plain=False)
    value = payload.get("tool_choice")
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return _allowed(value, tools)
    return Tooling(tools, _choice(value, tools), plain=bool(tools) or payload.get("tools") is None)


def _tool(value: Any, path: str) -> Tool:
    item = expect_object(value, path)
    name = get_str(item, "type", path)
    if name not in (None, "function"):
        raise UnsupportedError(
            f"{at(path, 'type')} must be 'function': tools of other kinds are not supported", param=at(path, "type")
        )
    tool = _function(item.get("function"), at(path, "function"))
    if tool.extra:
        tool.extra = {"function": tool.extra}
    tool.extra.update(rest(item, ("type", "function")))
    return tool


def _function(value: Any, path: str) -> Tool:
    function = expect_object(value, path)
    return Tool(
        name=need_str(function, "name", path, empty=False),
        description=get_str(function, "description", path),
        parameters=get_object(function, "parameters", path),
        strict=get_bool(function, "strict", path),
        extra=rest(function, ("name", "description", "parameters", "strict")),
    )


def _choice(value: Any, tools: list[Tool]) -> ToolChoice | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value not in MODES:
            unknown("tool_choice", value, MODES)
        if value == "required":
            _need_tools(tools)
        return MODES[value]
    choice = expect_object(value, "tool_choice")
    if choice.get("type") not in (None, "function"):
        unknown("tool_choice.type", str(choice["type"]), ("function", "allowed_tools"))
    if isinstance(choice.get("function"), dict):
        name = need_str(choice["function"], "name", "tool_choice.function")
        return _named(name, tools, "tool_choice.function.name")
    return _named(need_str(choice, "name", "tool_choice"), tools, "tool_choice.name")


def _function_call(value: Any, tools: list[Tool]) -> ToolChoice | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value not in ("auto", "none"):
            unknown("function_call", value, ("auto", "none"))
        return MODES[value]
    call = expect_object(value, "function_call")
    return _named(need_str(call, "name", "function_call"), tools, "function_call.name")


def _named(name: str, tools: list[Tool], path: str) -> ToolChoice:
    _need_tools(tools)
    names = [tool.name for tool in tools]
    if name not in names:
        fail(path, f"names no tool of this request{hint(name, names)}")
    return ToolChoice(mode="named", name=name)


def _need_tools(tools: list[Tool]) -> None:
    if not tools:
        fail("tool_choice", "asks for a tool call, but the request has no tools")


def _allowed(value: JSON, tools: list[Tool]) -> Tooling:
    """`allowed_tools` leaves only some of the tools: the others are not shown to the model at all."""
    path = "tool_choice.allowed_tools"
    inner = value.get("allowed_tools")
    allowed = value if inner is None else expect_object(inner, path)
    mode = get_choice(allowed, "mode", ("auto", "required"), path) or "auto"
    names = set()
    for number, item in enumerate(need_list(allowed, "tools", path, min_length=1)):
        where = at(at(path, "tools"), number)
        entry = expect_object(item, where)
        function = entry if "name" in entry else need_object(entry, "function", where)
        names.add(_named(need_str(function, "name", where), tools, where).name)
    return Tooling([tool for tool in tools if tool.name in names], MODES[mode], plain=False)


def parse_response_format(payload: JSON) -> ResponseFormat | None:
    """The shape the answer must have; None for plain text.

    A `schema` beside `json_object`, and one directly in `json_schema`'s place, are llama-server's spellings.
    """
    found = get_object(payload, "response_format")
    if found is None:
        return None
    name = need_str(found, "type", "response_format")
    if name not in FORMATS:
        unknown("response_format.type", name, FORMATS)
    if name in ("text", "structural_tag"):
        return None
    if name == "json_object" and found.get("schema") is None:
        return ResponseFormat(kind="json_object")
    path = "response_format"
    if found.get("json_schema") is not None or found.get("schema") is None:
        found = need_object(found, "json_schema", path)
        path = "response_format.json_schema"
    schema = found.get("schema")
    if not isinstance(schema, bool) and schema is not None:
        expect_object(schema, at(path, "schema"))
    return ResponseFormat(
        kind="json_schema",
        schema={} if schema is None else schema,
        name=get_str(found, "name", path),
        strict=get_bool(found, "strict", path),
        description=get_str(found, "description", path),
    )
