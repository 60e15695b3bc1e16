"""The tools of a request: normalised, checked, and compiled once per set.

Accepted are OpenAI's list, bare function dicts, Anthropic's `input_schema` and MCP's `inputSchema`.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from velollm.toolcalls.fitting import Context, Mismatch
from velollm.toolcalls.names import NameMap
from velollm.toolcalls.schema import Schema
from velollm.toolcalls.values import Raw

__all__ = ["InvalidToolError", "Tool", "ToolSet", "check_tools", "compile_tools"]

_WRAPPERS = ("arguments", "input", "parameters", "properties", "args", "params", "kwargs", "tool_input")
_ECHO = frozenset({"type", "properties", "required", "additionalProperties", "$schema", "description", "title"})
_NAME_LIMIT = 256
_CACHE_ENTRIES = 128
_CACHE_KEY_LIMIT = 128 * 1024
_CHECK_LIMIT = 20_000
_LINE_WORDS = (
    "Action:", "Action :", "**Action", "ACTION:", "functools[", "commentary to=", "analysis to=", "assistantcommentary",
    "function call<", ">>>", "print(", "default_api.", "functions.", "function<|", "function<｜", "to=functions.",
    "assistant to=functions.", "assistantto=functions.", "assistant\n", "tool_call:", "tool_calls:", "function_call:",
    '"{\\"', "-> tool/function_call", "->tool/function_call", "analysis<|message|>",
)  # fmt: skip
# A tool's name with its arguments behind it, where an engine has dropped the special tokens around them.
_NAME_FORMS = (
    "{}(", "{}{{", "{} {{", "{}\n{{", "{}\n```", "{}[ARGS]", "{}[CALL_ID]", "{}<|", "{}<｜", "call:{}{{",
    "{}<arg_key>", "{}\n<arg_key>", "{}<parameter", "{}\n<parameter", "<{}>",
)  # fmt: skip


class InvalidToolError(ValueError):
    """The client's tool list is wrong; the message names the tool and the place."""


class Tool:
    """One tool: its name and the schema its arguments must meet."""

    __slots__ = ("name", "properties", "required", "schema")

    def __init__(self, name: str, parameters: Any) -> None:
        self.name = name
        self.schema = Schema(parameters)
        node = self.schema.root
        try:
            node = node.target(Context())
        except Mismatch:
            pass
        self.properties: Mapping[str, Any] = node.properties
        self.required: tuple[str, ...] = node.required

    @property
    def sole_parameter(self) -> str | None:
        """The one parameter that a lone value must be meant for."""
        names = self.required if len(self.required) == 1 else tuple(self.properties)
        return names[0] if len(names) == 1 else None

    def fit(self, arguments: dict[str, Any], ctx: Context) -> dict[str, Any]:
        """`arguments` as the schema wants them.

        Raises:
            Mismatch: they cannot be had so.
        """
        try:
            made = self.schema.root.fit(self._unwrapped(arguments, ctx), ctx)
        except (RecursionError, OverflowError):
            raise Mismatch("", "nested too deeply or too large a number") from None
        if not isinstance(made, dict):
            raise Mismatch("", "arguments are no object")
        return made

    def _unwrapped(self, arguments: dict[str, Any], ctx: Context) -> dict[str, Any]:
        """Arguments that came one level too deep: in a wrapper key, or in an echo of the schema itself."""
        for _ in range(3):
            inner = self._inner(arguments)
            if inner is None:
                return arguments
            ctx.note("unwrapped_arguments")
            arguments = inner
        return arguments

    def _inner(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        if not arguments or len(arguments) > len(_ECHO):
            return None
        echoed = arguments.get("properties")
        if isinstance(echoed, dict) and "properties" not in self.properties and _is_echo(arguments):
            if echoed and not any(_is_definition(value) for value in echoed.values()):
                return echoed
            raise Mismatch("", "a tool's definition, not a call")
        if len(arguments) != 1:
            return None
        (key, value), *_ = arguments.items()
        if key not in _WRAPPERS or key in self.properties or self.schema.root.keys.variant(key) is not None:
            return None
        if isinstance(value, str):
            value = _object_from(value)
        return value if isinstance(value, dict) else None


def _is_echo(arguments: dict[str, Any]) -> bool:
    """Whether `arguments` look like the tool's schema, given back."""
    return arguments.keys() <= _ECHO and (len(arguments) == 1 or arguments.get("type") == "object")


def _is_definition(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str | list) and "value" not in value


def _object_from(text: str) -> Any:
    from velollm.toolcalls.lenient import read_json
    from velollm.toolcalls.values import Unreadable

    if not text.lstrip().startswith("{"):
        return None
    text = str(text).strip() if isinstance(text, Raw) else text.strip()
    try:
        reading = read_json(text)
    except Unreadable:
        return None
    return None if text[reading.end :].strip() or reading.supplied else reading.value


class ToolSet:
    """All tools of one request, by name."""

    __slots__ = ("_checked", "_prefixes", "_words", "names", "tools")

    def __init__(self, tools: Iterable[Any]) -> None:
        self._checked = False
        self._words: frozenset[str] | None = None
        self._prefixes: frozenset[str] | None = None
        self.tools: dict[str, Tool] = {}
        for entry in tools:
            name, parameters = _parts(entry)
            known_kind = parameters is None or isinstance(parameters, Mapping | bool)
            if isinstance(name, str) and name and name not in self.tools and known_kind:
                self.tools[name] = Tool(name, {} if parameters is None else parameters)
        self.names = NameMap(self.tools)

    def __bool__(self) -> bool:
        return bool(self.tools)

    @property
    def line_words(self) -> frozenset[str]:
        """What may open a call at the start of a line without a bracket: a tool's name and `(`, or a family's word."""
        if self._words is None:
            named = {form.format(name) for name in self.tools if len(name) <= _NAME_LIMIT for form in _NAME_FORMS}
            self._words = frozenset(named.union(_LINE_WORDS))
        return self._words

    @property
    def line_prefixes(self) -> frozenset[str]:
        """Every beginning of a line word."""
        if self._prefixes is None:
            self._prefixes = frozenset(word[:size] for word in self.line_words for size in range(1, len(word) + 1))
        return self._prefixes

    def check(self, tools: Any) -> None:
        """As `check_tools`, for the tools this set was compiled from; what has passed once is not checked again."""
        if not self._checked:
            check_tools(tools)
            self._checked = True

    def find(self, name: str) -> tuple[Tool, str] | None:
        """The tool that `name` means, and the kind of repair that took; None where it means none."""
        found = self.names.find(name)
        return (self.tools[found[0]], found[1]) if found else None


def _parts(entry: Any) -> tuple[Any, Any]:
    if not isinstance(entry, Mapping):
        return None, None
    inner = entry.get("function")
    if isinstance(inner, Mapping):
        entry = inner
    for key in ("parameters", "input_schema", "inputSchema"):
        if entry.get(key) is not None:
            return entry.get("name"), entry[key]
    return entry.get("name"), None


class _Cache:
    """A bounded, locked store of compiled sets, keyed by the tools' own bytes: no collisions, no stale sets."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sets: OrderedDict[bytes, ToolSet] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tools: Any) -> ToolSet:
        key = _fingerprint(tools)
        if key is None or len(key) > _CACHE_KEY_LIMIT:
            return ToolSet(tools)
        with self._lock:
            found = self._sets.get(key)
            if found is not None:
                self._sets.move_to_end(key)
                return found
        made = ToolSet(orjson.loads(key))
        with self._lock:
            self._sets[key] = made
            while len(self._sets) > self._size:
                self._sets.popitem(last=False)
        return made


def _fingerprint(tools: Any) -> bytes | None:
    try:
        return orjson.dumps(tools)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        key = json.dumps(tools).encode()
        orjson.loads(key)
    except (TypeError, ValueError, RecursionError):
        return None
    return key


_cache = _Cache(_CACHE_ENTRIES)


def compile_tools(tools: Any) -> ToolSet:
    """The compiled set for a request's `tools`; from the cache where the same tools were seen before."""
    if isinstance(tools, ToolSet):
        return tools
    if not tools or isinstance(tools, str | bytes):
        return _NO_TOOLS
    return _cache.get(tools if isinstance(tools, list) else list(tools))


_NO_TOOLS = ToolSet(())


def check_tools(tools: Any) -> None:
    """Refuse a tool list that is the client's mistake.

    Raises:
        InvalidToolError: no name, a name used twice, or a schema that cannot be one.
    """
    if tools is None:
        return
    if not isinstance(tools, list | tuple):
        raise InvalidToolError(f"tools: a list is needed, not {type(tools).__name__}")
    seen: set[str] = set()
    for index, entry in enumerate(tools):
        name, parameters = _parts(entry)
        where = f"tools[{index}]"
        if not isinstance(name, str) or not name.strip():
            raise InvalidToolError(f"{where}: a function needs a name")
        if len(name) > _NAME_LIMIT:
            raise InvalidToolError(f"{where}: a name of {len(name)} characters; at most {_NAME_LIMIT} are allowed")
        if name in seen:
            raise InvalidToolError(f"{where}: the name {name!r} is used twice")
        seen.add(name)
        if parameters is not None:
            _check_schema(parameters, name)


def _check_schema(root: Any, name: str) -> None:
    if not isinstance(root, Mapping):
        raise InvalidToolError(f"tool {name!r}: parameters must be an object")
    kind = root.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidToolError(f"tool {name!r}: parameters.type must be 'object', not {kind!r:.40}")
    schema = Schema(root)
    queue: list[tuple[Any, str, int]] = [(root, "parameters", 0)]
    steps = 0
    while queue:
        part, path, depth = queue.pop()
        steps += 1
        if steps > _CHECK_LIMIT:
            return
        if depth > 256:
            raise InvalidToolError(f"tool {name!r}: {path[:80]}… is nested too deeply")
        _check_part(part, path, name, schema)
        if isinstance(part, Mapping):
            queue.extend((child, where, depth + 1) for child, where in _children(part, path))


def _check_part(part: Any, path: str, name: str, schema: Schema) -> None:
    def fail(message: str) -> InvalidToolError:
        return InvalidToolError(f"tool {name!r}: {path[-200:]}{message}")

    if isinstance(part, bool):
        return
    if not isinstance(part, Mapping):
        raise fail(f" must be a schema, not {type(part).__name__}")
    kinds = part.get("type")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind is not None and not isinstance(kind, str):
            raise fail(f".type must be a string, not {kind!r:.40}")
    for word, wanted in (("properties", Mapping), ("required", list), ("enum", list), ("anyOf", list), ("oneOf", list)):
        if word in part and not isinstance(part[word], wanted):
            raise fail(f".{word} must be {'an object' if wanted is Mapping else 'a list'}")
    pointer = part.get("$ref")
    if isinstance(pointer, str) and pointer.startswith("#") and schema.resolve(pointer) is None:
        raise fail(f".$ref {pointer!r:.80} does not resolve")
    if pointer is not None and not isinstance(pointer, str):
        raise fail(".$ref must be a string")


def _children(part: Mapping[str, Any], path: str) -> list[tuple[Any, str]]:
    found: list[tuple[Any, str]] = []
    for word in ("properties", "patternProperties", "$defs", "definitions"):
        inner = part.get(word)
        if isinstance(inner, Mapping):
            found.extend((child, f"{path}.{word}.{key}") for key, child in inner.items())
    for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
        inner = part.get(word)
        if isinstance(inner, list):
            found.extend((child, f"{path}.{word}[{index}]") for index, child in enumerate(inner))
    single = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
    found.extend((part[word], f"{path}.{word}") for word in single if word in part and not isinstance(part[word], list))
    return found
