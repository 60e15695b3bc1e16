"""From a value to a call: which shapes of object mean one, and whether it holds against the tool's schema."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import define, field

from velollm.toolcalls.fitting import Context, Mismatch
from velollm.toolcalls.keys import fold
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.result import Call, FixError
from velollm.toolcalls.tools import Tool, ToolSet
from velollm.toolcalls.values import Bare, Lexeme, Raw, Unreadable

__all__ = ["Rejected", "WrittenCall", "calls_in", "settle"]

_NAME_KEYS = ("name", "toolname", "functionname", "tool", "function", "action", "recipientname", "apiname", "method")
_ARGUMENT_KEYS = (
    "arguments", "parameters", "args", "params", "input", "toolinput", "actioninput", "kwargs", "functionargs",
    "toolargs", "toolparameters", "functionarguments", "toolarguments", "argument", "parameter", "functionparameters",
)  # fmt: skip
_ENVELOPES = (
    "functioncall",
    "toolcall",
    "toolcalls",
    "functioncalls",
    "tooluses",
    "calls",
    "function",
    "tooluse",
    "tool",
    "call",
    "command",
    "action",
)
_META = frozenset({"id", "type", "index", "callid", "toolcallid", "thought", "thoughts", "reasoning", "status"})
_RESULTS = frozenset({"result", "results", "output", "outputs", "response", "observation", "toolresult", "iserror"})
_RESULT_TYPES = frozenset({"toolresult", "functioncalloutput", "toolresponse", "functionresponse"})
_MAX_CALLS = 256


class Rejected(Exception):
    """A would-be call that must not run."""

    def __init__(self, error: FixError) -> None:
        super().__init__(error.message)
        self.error = error


@define(slots=True)
class WrittenCall:
    """A call as written: nothing here has been checked against a schema."""

    name: str
    arguments: Any
    supplied: int = 0
    quoted: bool = False
    repairs: set[str] = field(factory=set)
    id: str | None = None
    loose_text: bool = False  # ReAct: the input may be the one parameter itself
    start: int = 0
    end: int = 0


def calls_in(value: Any, tools: ToolSet, depth: int = 0) -> list[WrittenCall] | None:
    """The calls that a JSON value stands for; None where it is something else."""
    if isinstance(value, dict):
        return _calls_in_object(value, tools, depth)
    if isinstance(value, list) and value and depth < 4:
        found: list[WrittenCall] = []
        for item in value[:_MAX_CALLS]:
            inner = calls_in(item, tools, depth + 1)
            if inner is None:
                return None
            found += inner
        return found
    return None


def _calls_in_object(value: dict[str, Any], tools: ToolSet, depth: int) -> list[WrittenCall] | None:
    if not value or len(value) > 64:
        return None
    keys = {fold(key): key for key in value if key}
    if _is_record(value, keys):
        return None
    name_key, tool = _find_name(value, keys, tools)
    if tool is None and depth < 4:
        for envelope in _ENVELOPES:
            key = keys.get(envelope)
            inner = value[key] if key is not None else None
            if isinstance(inner, str) and inner.lstrip()[:1] in ("{", "["):
                inner = _decoded(inner)
            if isinstance(inner, dict | list):
                found = calls_in(inner, tools, depth + 1)
                if found:
                    _carry_id(value, keys, found)
                return found
    if name_key is None:
        return _calls_by_key(value, tools)
    if tool is None:
        keyed = _calls_by_key(value, tools)
        if keyed:
            return keyed
        return [WrittenCall(str(value[name_key]), None)] if _argument_key(keys, name_key) else None
    return _call_of(value, keys, name_key, tool)


def _carry_id(value: dict[str, Any], keys: dict[str, str], found: list[WrittenCall]) -> None:
    given = value.get(keys.get("id", ""))
    if len(found) == 1 and isinstance(given, str) and found[0].id is None:
        found[0].id = given


def _is_record(value: dict[str, Any], keys: dict[str, str]) -> bool:
    """A tool's result or a tool's definition: both carry a tool's name, neither is a call."""
    kind = value.get(keys.get("type", ""))
    if isinstance(kind, str) and fold(kind) in _RESULT_TYPES:
        return True
    if value.get("role") in ("tool", "user", "system", "function"):
        return True
    if "description" in keys:
        for word in ("parameters", "inputschema"):
            inner = value.get(keys.get(word, ""))
            if isinstance(inner, dict) and ("properties" in inner or inner.get("type") == "object" or not inner):
                return True
    return "inputschema" in keys


def _find_name(value: dict[str, Any], keys: dict[str, str], tools: ToolSet) -> tuple[str | None, Tool | None]:
    first: str | None = None
    loose: tuple[str, Tool] | None = None
    for word in _NAME_KEYS:
        key = keys.get(word)
        if key is None or not isinstance(value[key], str) or type(value[key]) is Lexeme:
            continue
        found = tools.find(value[key])
        if found is not None:
            if not found[1]:
                return key, found[0]
            loose = loose or (key, found[0])
        first = first or key
    return loose if loose is not None else (first, None)


def _argument_key(keys: dict[str, str], name_key: str, value: dict[str, Any] | None = None) -> str | None:
    """The key that holds the arguments; of several, the first that holds any."""
    found = [key for word in _ARGUMENT_KEYS if (key := keys.get(word)) is not None and key != name_key]
    filled = [key for key in found if value is not None and value[key] is not None]
    return filled[0] if filled else found[0] if found else None


def _call_of(value: dict[str, Any], keys: dict[str, str], name_key: str, tool: Tool) -> list[WrittenCall] | None:
    argument_key = _argument_key(keys, name_key, value)
    if argument_key is not None and argument_key in tool.properties and not _is_container(value[argument_key]):
        argument_key = None  # a flat argument that happens to be called `input` or `args`
    given = value.get(keys.get("id", ""))
    call = WrittenCall(str(value[name_key]), {}, id=given if isinstance(given, str) else None)
    rest = {
        key: item
        for key, item in value.items()
        if key not in (name_key, argument_key) and (key in tool.properties or fold(key) not in _META)
    }
    results = [key for key in rest if fold(key) in _RESULTS and key not in tool.properties]
    if results:
        return None
    if argument_key is not None:
        call.arguments = value[argument_key]
        if fold(argument_key) not in ("arguments", "parameters"):
            call.repairs.add("key_variant")
        strays = {key: item for key, item in rest.items() if _is_property(key, tool)}
        if strays and isinstance(call.arguments, dict) and not strays.keys() & call.arguments.keys():
            call.arguments = {**call.arguments, **strays}
            call.repairs.add("misplaced_key")
        return [call]
    rest.pop(keys.get("type", ""), None) if value.get(keys.get("type", "")) in ("function", "tool_use") else None
    if rest:
        if not all(_is_property(key, tool) for key in rest):
            return None
        call.arguments = rest
        call.repairs.add("flat_arguments")
    return [call]


def _is_container(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.lstrip()[:1] == "{")


def _is_property(key: str, tool: Tool) -> bool:
    return key in tool.properties or tool.schema.root.keys.variant(key) is not None


def _calls_by_key(value: dict[str, Any], tools: ToolSet) -> list[WrittenCall] | None:
    """`{"get_tides": {...}}`: each key a tool, each value its arguments."""
    found = []
    for key, item in value.items():
        if isinstance(item, str) and item.lstrip()[:1] == "{":
            item = _decoded(item)
        if not (isinstance(item, dict) or item is None):
            return None
        named = tools.find(key)
        if named is None or named[1] == "name_distance":
            return None
        found.append(WrittenCall(key, item, repairs={"tool_as_key"}))
    return found or None


def _decoded(text: str) -> Any:
    try:
        reading = read_json(text.strip())
    except Unreadable:
        return None
    return reading.value


def settle(written: WrittenCall, tools: ToolSet, cut: bool, repairs: Counter[str]) -> Call:
    """The call, with its arguments as the schema wants them; what was mended is added to `repairs`.

    Raises:
        Rejected: unknown tool, truncated, or arguments that do not validate.
    """
    if cut and written.supplied:
        raise Rejected(FixError(kind="truncated", message="the answer was cut off inside this call", name=written.name))
    named = tools.find(written.name)
    if named is None:
        named = _by_fit(written, tools)
    if named is None:
        raise Rejected(
            FixError(kind="unknown_tool", message=f"no tool is called {written.name!r:.80}", name=written.name)
        )
    tool, kind = named
    ctx = Context(quoted=written.quoted)
    try:
        arguments = tool.fit(_as_object(written, tool, ctx, cut), ctx)
    except Mismatch as error:
        raise Rejected(FixError(kind="invalid_arguments", message=f"{tool.name}: {error}", name=tool.name)) from None
    for word in written.repairs:
        ctx.repairs[word] += 1
    if kind:
        ctx.repairs[kind] += 1
    repairs.update(ctx.repairs)
    return Call(tool.name, arguments, id=written.id)


def _by_fit(written: WrittenCall, tools: ToolSet) -> tuple[Tool, str] | None:
    """A bare counter instead of a name: the one tool whose schema the arguments fit."""
    if not written.name.strip().isdigit():
        return None
    fitting = [tool for tool in tools.tools.values() if _fits(tool, written)]
    return (fitting[0], "name_by_schema") if len(fitting) == 1 else None


def _fits(tool: Tool, written: WrittenCall) -> bool:
    ctx = Context()
    try:
        given = _as_object(written, tool, ctx, False)
        tool.fit(given, ctx)
    except Mismatch:
        return False
    return all(_is_property(key, tool) for key in given)


def _as_object(written: WrittenCall, tool: Tool, ctx: Context, cut: bool) -> dict[str, Any]:
    value = written.arguments
    for _ in range(5):
        if isinstance(value, dict):
            return value
        if value is None or value == "" or value == []:
            return {}
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            ctx.note("unwrapped_arguments")
            value = value[0]
            continue
        if not isinstance(value, str) or type(value) is Lexeme:
            break
        if not value.strip():
            return {}
        value = _from_text(value, written, tool, ctx, cut)
    raise Mismatch("", "arguments are no object")


def _from_text(text: str, written: WrittenCall, tool: Tool, ctx: Context, cut: bool) -> Any:
    from velollm.toolcalls.arguments import read_arguments

    try:
        reading = read_arguments(text, tool)
    except Unreadable as error:
        if written.loose_text and not error.cut and text.lstrip()[:1] not in ("{", "["):
            return _sole_argument(text, tool)
        raise Mismatch("", str(error)) from None
    if cut and reading.supplied:
        raise Mismatch("", "the answer was cut off inside the arguments")
    for word in reading.repairs:
        ctx.note(word)
    if isinstance(reading.value, str | Lexeme | Bare | Raw) and written.loose_text and reading.value:
        return _sole_argument(str(reading.value), tool)
    if isinstance(reading.value, str):
        ctx.note("double_encoded")
    elif not written.loose_text and "json_text" not in written.repairs:
        written.repairs.add("arguments_as_text") if written.id is None else None
    return reading.value


def _sole_argument(text: str, tool: Tool) -> dict[str, Any]:
    """ReAct writes the input of a one-parameter tool as plain text."""
    if tool.sole_parameter is None:
        raise Mismatch("", "arguments are no object")
    return {tool.sole_parameter: Raw(text.strip().strip("\"'"))}
