"""The schemas that frameworks make of Python types: `$defs`, `anyOf` with null, references with defaults beside."""

from __future__ import annotations

import enum
import json
from typing import Any, Literal

import pytest

from velollm.toolcalls import check_tools, fix

pydantic = pytest.importorskip("pydantic")


class Priority(enum.Enum):
    LOW = "low_priority"
    HIGH = "high_priority"


class Person(pydantic.BaseModel):
    name: str
    age: int | None = None


class Ticket(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    title: str
    priority: Priority = Priority.LOW
    assignee: Person | None = None
    watchers: list[Person] = pydantic.Field(default_factory=list)
    labels: list[str] | None = None
    state: Literal["open", "in progress", "closed"] = "open"
    estimate: float | None = pydantic.Field(None, ge=0, le=100)
    meta: dict[str, int] = pydantic.Field(default_factory=dict)
    due: int | str | None = None


TOOLS = [{"type": "function", "function": {"name": "file_ticket", "parameters": Ticket.model_json_schema()}}]
STRICT = [{"name": "file_ticket", "input_schema": Ticket.model_json_schema()}]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"title": "x"}, {"title": "x"}),
        ({"title": "x", "priority": "HIGH_PRIORITY"}, {"title": "x", "priority": "high_priority"}),
        ({"title": "x", "priority": None}, {"title": "x"}),
        ({"title": "x", "state": "in_progress"}, {"title": "x", "state": "in progress"}),
        ({"title": "x", "assignee": {"Name": "Al", "age": "7"}}, {"title": "x", "assignee": {"name": "Al", "age": 7}}),
        ({"title": "x", "assignee": '{"name": "Al"}'}, {"title": "x", "assignee": {"name": "Al"}}),
        ({"title": "x", "assignee": None}, {"title": "x", "assignee": None}),
        ({"title": "x", "watchers": {"name": "Al"}}, {"title": "x", "watchers": [{"name": "Al"}]}),
        ({"title": "x", "watchers": '[{"name": "Al"}]'}, {"title": "x", "watchers": [{"name": "Al"}]}),
        ({"title": "x", "labels": "bug"}, {"title": "x", "labels": ["bug"]}),
        ({"title": "x", "labels": '["bug", "ui"]'}, {"title": "x", "labels": ["bug", "ui"]}),
        ({"title": "x", "estimate": "2.5"}, {"title": "x", "estimate": 2.5}),
        ({"title": "x", "meta": {"a": "1"}}, {"title": "x", "meta": {"a": 1}}),
        ({"title": "x", "due": "5"}, {"title": "x", "due": "5"}),
        ({"title": "x", "colour": "red"}, {"title": "x"}),
        ({"title": 5}, {"title": "5"}),
        ({"title": "x", "priority": "urgent"}, None),
        ({"title": "x", "estimate": 101}, None),
        ({"title": "x", "estimate": "many"}, None),
        ({"title": "x", "assignee": {"age": 3}}, None),
        ({"title": "x", "meta": {"a": "b"}}, None),
        ({"priority": "high_priority"}, None),
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, STRICT])
def test_what_pydantic_would_accept(tools: Any, given: Any, meant: Any) -> None:
    check_tools(tools)
    result = fix([{"function": {"name": "file_ticket", "arguments": json.dumps(given)}}], tools)
    assert [call.arguments for call in result.calls] == ([] if meant is None else [meant])
    for call in result.calls:
        Ticket.model_validate(call.arguments)
