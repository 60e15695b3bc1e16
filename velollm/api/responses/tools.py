"""`tools`, `tool_choice` and `text.format` of the Responses API, which are flatter than those of chat completions."""

from __future__ import annotations

from typing import Any, TypeAlias

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
    unknown_value,
)
from velollm.errors import UnsupportedError
from velollm.messages import ResponseFormat, Tool, ToolChoice

__all__ = ["read_format", "read_tooling"]

JSON: TypeAlias = dict[str, Any]

MODES = {
    "auto": ToolChoice(mode="auto"),
    "none": ToolChoice(mode="none"),
    "required": ToolChoice(mode="required"),
}
FIELDS = frozenset(
    {
        "type",
        "name",
        "description",
        "parameters",
        "strict",
        "async",
        "allowed_callers",
        "defer_loading",
        "output_schema",
    }
)


def read_tooling(payload: JSON) -> tuple[list[Tool], ToolChoice | None]:
    """The tools, and how they may be chosen; `allowed_tools` leaves out the others altogether."""
    tools = [_tool(item, at("tools", number)) for number, item in enumerate(get_list(payload, "tools") or ())]
    value = payload.get("tool_choice")
    if value is None:
        return tools, None
    if isinstance(value, str):
        if value not in MODES:
            unknown_value("tool_choice", value, MODES)
        if value == "required" and not tools:
            fail("tool_choice", "asks for a tool call, but the request has no tools")
        return tools, MODES[value]
    choice = expect_object(value, "tool_choice")
    mode = need_str(choice, "type", "tool_choice")
    if mode == "allowed_tools":
        return _allowed(choice, tools)
    if mode != "function":
        _refuse("tool_choice", mode)
    return tools, ToolChoice(
        mode="named", name=_known(need_str(choice, "name", "tool_choice"), tools, "tool_choice.name")
    )


def _tool(value: Any, path: str) -> Tool:
    item = expect_object(value, path)
    name = need_str(item, "type", path)
    if name != "function":
        _refuse(path, name)
    return Tool(
        name=need_str(item, "name", path, empty=False),
        description=get_str(item, "description", path),
        parameters=get_object(item, "parameters", path),
        strict=get_bool(item, "strict", path),
        extra=rest(item, FIELDS),
    )


def _refuse(path: str, name: str) -> None:
    raise UnsupportedError(
        f"{at(path, 'type')} is {name[:60]!r}: only tools of type 'function' are supported; OpenAI's own tools do not "
        "exist here",
        param=at(path, "type"),
    )


def _known(name: str, tools: list[Tool], path: str) -> str:
    names = [tool.name for tool in tools]
    if name not in names:
        fail(path, f"names no tool of this request{hint(name, names)}")
    return name


def _allowed(choice: JSON, tools: list[Tool]) -> tuple[list[Tool], ToolChoice]:
    mode = get_choice(choice, "mode", ("auto", "required"), "tool_choice") or "auto"
    names = set()
    for number, item in enumerate(need_list(choice, "tools", "tool_choice", min_length=1)):
        where = at("tool_choice.tools", number)
        names.add(_known(need_str(expect_object(item, where), "name", where), tools, at(where, "name")))
    return [tool for tool in tools if tool.name in names], MODES[mode]


def read_format(payload: JSON) -> ResponseFormat | None:
    """`text.format`; None for plain text."""
    text = get_object(payload, "text") or {}
    get_choice(text, "verbosity", ("low", "medium", "high"), "text")
    wanted = get_object(text, "format", "text")
    if wanted is None:
        return None
    path = "text.format"
    name = need_str(wanted, "type", path)
    if name not in ("text", "json_object", "json_schema"):
        unknown_value(at(path, "type"), name, ("text", "json_object", "json_schema"))
    if name == "text":
        return None
    if name == "json_object":
        return ResponseFormat(kind="json_object")
    return ResponseFormat(
        kind="json_schema",
        schema=need_object(wanted, "schema", path),
        name=need_str(wanted, "name", path, empty=False),
        strict=get_bool(wanted, "strict", path),
        description=get_str(wanted, "description", path),
    )
