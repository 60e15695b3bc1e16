"""Calls that a backend has already taken apart, badly: OpenAI's and Ollama's shapes, with arguments of any kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from velollm.toolcalls.argkeys import KEY_OPEN, read_pairs
from velollm.toolcalls.calls import Rejected, WrittenCall, calls_in, settle
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.markup import read_body
from velollm.toolcalls.native import read_native
from velollm.toolcalls.result import Call, FixError
from velollm.toolcalls.source import Source
from velollm.toolcalls.tools import ToolSet
from velollm.toolcalls.values import Unreadable

__all__ = ["settle_structured"]

_MAX_CALLS = 256


def settle_structured(
    given: Iterable[Any], tools: ToolSet, cut: bool, repairs: Counter[str]
) -> tuple[list[Call], list[FixError]]:
    """The calls of `given` that validate, and an error for each that does not."""
    calls: list[Call] = []
    errors: list[FixError] = []
    for index, entry in enumerate(given):
        if index >= _MAX_CALLS:
            errors.append(FixError(kind="too_many", message=f"more than {_MAX_CALLS} calls"))
            break
        try:
            calls += _settled(entry, tools, cut, repairs)
        except Rejected as rejected:
            errors.append(rejected.error)
    return calls, errors


def _settled(entry: Any, tools: ToolSet, cut: bool, repairs: Counter[str]) -> list[Call]:
    name, arguments, given = _parts(entry)
    inner = _inner_calls(name, arguments, tools)
    if inner:
        made: list[Call] = []
        repairs["nested_call"] += 1
        for written in inner:
            written.id = written.id or (given if len(inner) == 1 else None)
            made.append(settle(written, tools, cut, repairs))
        return made
    written = WrittenCall(name, arguments, id=given, repairs={"json_text"})
    if isinstance(arguments, str) and arguments.lstrip().startswith("<"):
        _read_markup(written, arguments, tools)
    return [settle(written, tools, cut, _Dropping(repairs))]


def _read_markup(written: WrittenCall, text: str, tools: ToolSet) -> None:
    """Arguments that stayed in a model's markup: parameters, or pairs of keys and values."""
    source = Source(text, tools)
    made = WrittenCall(written.name, None)
    begin = len(text) - len(text.lstrip())
    try:
        end = read_pairs(source, begin, made) if KEY_OPEN.match(text, begin) else read_body(source, begin, made)
    except Unreadable:
        return
    if made.arguments and not text[end:].strip():
        written.arguments, written.quoted = made.arguments, True
        written.repairs.add("markup")


class _Dropping(Counter[str]):
    """Passes counts on, but for the mark that says the arguments were text by rights."""

    def __init__(self, target: Counter[str]) -> None:
        super().__init__()
        self._target = target

    def update(self, other: Any = None, /, **_: int) -> None:
        for kind, count in (other or {}).items():
            if kind != "json_text":
                self._target[kind] += count


def _parts(entry: Any) -> tuple[str, Any, str | None]:
    if not isinstance(entry, Mapping):
        name = getattr(entry, "name", "")
        return str(name), getattr(entry, "arguments", None), getattr(entry, "id", None)
    body = entry.get("function")
    holder: Mapping[str, Any] = body if isinstance(body, Mapping) else entry
    name = holder.get("name")
    if name is None and isinstance(body, str):
        name = body
    arguments = None
    for key in ("arguments", "input", "parameters", "args"):
        if holder.get(key) is not None:
            arguments = holder[key]
            break
    given = entry.get("id")
    return str(name or ""), arguments, given if isinstance(given, str) and given else None


def _inner_calls(name: str, arguments: Any, tools: ToolSet) -> list[WrittenCall] | None:
    """A whole call that slipped into the name, or into the arguments of a call without a name."""
    if tools.find(name) is not None and not any(mark in name for mark in "({"):
        return _same_inside(name, arguments, tools)
    text = name if any(mark in name for mark in "({<") else arguments
    if isinstance(text, dict):
        return calls_in(text, tools) if not name.strip() else None
    if not isinstance(text, str) or (text is arguments and name.strip()):
        return None
    try:
        found, _ = read_native(Source(text, tools), 0)
    except Unreadable:
        return None
    if text is name and arguments not in (None, "", "{}", {}):
        return None
    return found or None


def _same_inside(name: str, arguments: Any, tools: ToolSet) -> list[WrittenCall] | None:
    """`{"name": f, "arguments": {…}}` as the arguments of `f` itself."""
    if isinstance(arguments, str) and '"name"' in arguments[:100]:
        try:
            arguments = read_json(arguments.strip()).value
        except Unreadable:
            return None
    if not isinstance(arguments, dict) or not 2 <= len(arguments) <= 3:
        return None
    found = tools.find(name)
    if found is None or not isinstance(arguments.get("name"), str) or "name" in found[0].properties:
        return None
    inner = calls_in(arguments, tools)
    if inner and len(inner) == 1 and tools.find(inner[0].name) is not None:
        same = tools.find(inner[0].name)
        return inner if same is not None and same[0] is found[0] else None
    return None
