"""Anthropic's `tools` and `tool_choice`, and the shape asked for in `output_config` or `output_format`."""

from __future__ import annotations

from typing import Any, TypeAlias

from velollm.api.values import (
    at,
    expect_object,
    fail,
    get_bool,
    get_list,
    get_object,
    get_str,
    hint,
    need_object,
    need_str,
    rest,
    unknown_value,
)
from velollm.errors import UnsupportedError
from velollm.messages import ResponseFormat, Tool, ToolChoice

__all__ = ["read_format", "read_tool_choice", "read_tools"]

JSON: TypeAlias = dict[str, Any]

CHOICES: dict[str, ToolChoice] = {
    "auto": ToolChoice(mode="auto"),
    "any": ToolChoice(mode="required"),
    "none": ToolChoice(mode="none"),
}
FIELDS = frozenset(
    {
        "type", "name", "description", "input_schema", "strict", "cache_control", "allowed_callers", "defer_loading",
        "eager_input_streaming", "input_examples",
    }
)  # fmt: skip


def read_tools(payload: JSON) -> list[Tool]:
    """The client's own tools. Those that Anthropic defines, by a dated type without a schema, are refused: nothing
    here would run them, and no local model was trained on them."""
    return [_tool(item, at("tools", number)) for number, item in enumerate(get_list(payload, "tools") or ())]


def _tool(value: Any, path: str) -> Tool:
    item = expect_object(value, path)
    name = get_str(item, "type", path)
    if name not in (None, "custom"):
        raise UnsupportedError(
            f"{at(path, 'type')} is {name[:60]!r}: tools that Anthropic defines or runs are not supported here; "
            "describe a tool of your own with name, description and input_schema",
            param=at(path, "type"),
        )
    return Tool(
        name=need_str(item, "name", path, empty=False),
        description=get_str(item, "description", path),
        parameters=need_object(item, "input_schema", path),
        strict=get_bool(item, "strict", path),
        extra=rest(item, FIELDS),
    )


def read_tool_choice(payload: JSON, tools: list[Tool]) -> tuple[ToolChoice | None, bool | None]:
    """The choice, and whether calls may be parallel (None: not said)."""
    choice = get_object(payload, "tool_choice")
    if choice is None:
        return None, None
    mode = need_str(choice, "type", "tool_choice")
    alone = get_bool(choice, "disable_parallel_tool_use", "tool_choice")
    parallel = None if alone is None else not alone
    if mode in ("any", "tool") and not tools:
        fail("tool_choice", "asks for a tool call, but the request has no tools")
    if mode in CHOICES:
        return CHOICES[mode], parallel
    if mode != "tool":
        unknown_value("tool_choice.type", mode, (*CHOICES, "tool"))
    name = need_str(choice, "name", "tool_choice")
    names = [tool.name for tool in tools]
    if name not in names:
        fail("tool_choice.name", f"names no tool of this request{hint(name, names)}")
    return ToolChoice(mode="named", name=name), parallel


def read_format(payload: JSON) -> ResponseFormat | None:
    """The schema of `output_config.format`, or of the older `output_format`."""
    config = get_object(payload, "output_config") or {}
    path = at("output_config", "format")
    wanted = get_object(config, "format", "output_config")
    if wanted is None:
        path = "output_format"
        wanted = get_object(payload, "output_format")
    if wanted is None:
        return None
    kind = need_str(wanted, "type", path)
    if kind != "json_schema":
        unknown_value(at(path, "type"), kind, ("json_schema",))
    return ResponseFormat(kind="json_schema", schema=need_object(wanted, "schema", path), strict=True)
