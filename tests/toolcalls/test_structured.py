"""Calls that an engine has taken apart already, badly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.toolcall_damage import INSIDE, NONE_ADDED, NOTE, ROUTE
from support.toolcall_formats import TOOLS

from velollm.toolcalls import fix


def calls_of(*entries: Any, reason: str | None = None) -> list[Any]:
    return [(call.name, call.arguments) for call in fix(list(entries), TOOLS, reason).calls]


def entry(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


@pytest.mark.parametrize("damage", [name for name in INSIDE if "name" not in name])
@pytest.mark.parametrize("call", [("write_note", NOTE), ("plan_route", ROUTE)])
def test_damaged_arguments(call: tuple[str, dict[str, Any]], damage: str) -> None:
    name, given = call
    text = json.dumps(given)
    expected = given
    if damage in NONE_ADDED and "limit_km" in text:
        expected = {**given, "options": {**given["options"], "depart": None}}
    assert calls_of(entry(name, INSIDE[damage](text))) == [(name, expected)]


@pytest.mark.parametrize(
    "broken",
    [
        json.dumps(json.dumps(NOTE)),
        json.dumps(json.dumps(json.dumps(NOTE))),
        f"```json\n{json.dumps(NOTE)}\n```",
        f"{json.dumps(NOTE)}</tool_call>",
        f"{json.dumps(NOTE)}<|im_end|>",
        f"{json.dumps(NOTE)}{json.dumps(NOTE)}",
        f"{json.dumps(NOTE)}\n```",
        json.dumps(NOTE).replace('"', '\\"'),
        json.dumps([NOTE]),
        json.dumps({"arguments": NOTE}),
        json.dumps({"name": "write_note", "arguments": NOTE}),
        json.dumps({"input": json.dumps(NOTE)}),
        json.dumps({"type": "object", "properties": NOTE}),
        json.dumps({**NOTE, "": ""}),
        json.dumps(NOTE)[:-1],
        json.dumps(NOTE) + "}",
        str(NOTE),
        NOTE,
        [NOTE],
        {"arguments": NOTE},
        {"parameters": NOTE},
        "path='a/b.md', body=\"Hi there, it's 5 o'clock\", mode='new'",
        "".join(f"<parameter={key}>{value}</parameter>" for key, value in NOTE.items()),
    ],
)
def test_arguments_of_any_kind(broken: Any) -> None:
    assert calls_of(entry("write_note", broken)) == [("write_note", NOTE)]


@pytest.mark.parametrize(
    "shape",
    [
        {"name": "write_note", "arguments": NOTE},
        {"function": {"name": "write_note", "arguments": NOTE}},
        {"name": "write_note", "input": NOTE},
        {"type": "tool_use", "id": "toolu_1", "name": "write_note", "input": NOTE},
        {"function": {"name": "write_note", "parameters": NOTE}},
        {"function": {"name": "", "arguments": json.dumps({"name": "write_note", "arguments": NOTE})}},
        {"function": {"name": json.dumps({"name": "write_note", "arguments": NOTE}), "arguments": ""}},
        {"function": {"name": "write_note<|channel|>commentary", "arguments": NOTE}},
        {"function": {"name": "functions.write_note:0", "arguments": NOTE}},
        {"function": {"name": "Write Note", "arguments": NOTE}},
    ],
)
def test_calls_of_any_shape(shape: Any) -> None:
    assert calls_of(shape) == [("write_note", NOTE)]


@pytest.mark.parametrize(
    "broken",
    [
        entry("erase_note", NOTE),
        entry("", NOTE),
        entry("write_note", {"path": "a"}),
        entry("write_note", json.dumps(NOTE)[:30]),
        entry("write_note", ""),
        entry("write_note", "[]"),
        entry("write_note", "no JSON at all"),
        entry("write_note", 5),
        entry("write_note", [NOTE, NOTE]),
        entry("write_note", json.dumps(NOTE) + json.dumps({**NOTE, "path": "other"})),
        entry("write_note", '{"path": "a", "path": ["b"], "body": "x"}'),
        {"function": "write_note"},
        {},
        None,
        "write_note",
        7,
    ],
)
def test_what_is_no_call(broken: Any) -> None:
    result = fix([broken, entry("list_ports", "{}")], TOOLS)
    assert [call.name for call in result.calls] == ["list_ports"]
    assert len(result.errors) == 1


def test_cut_by_the_limit() -> None:
    text = json.dumps(NOTE)
    assert calls_of(entry("write_note", text), reason="length") == [("write_note", NOTE)]
    for end in range(1, len(text)):
        assert calls_of(entry("write_note", text[:end]), reason="length") == []


def test_ids_are_kept() -> None:
    result = fix([entry("list_ports", ""), {"name": "list_ports", "arguments": {}}], TOOLS, dedupe=False)
    assert [call.id for call in result.calls] == ["call_1", None]
