"""Forced tool calls for engines that constrain output, but do not obey `tool_choice`. No I/O.

    request ─▶ forced_call ─▶ .schema constrains the answer ─▶ text ─▶ CallReader ─▶ ToolCallDeltas
                                                               events ─▶ as_calls ─▶ events

One tool that must be called: the answer is its arguments. One of several: `{"name": ..., "arguments": {...}}`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator
from typing import Any, TypeAlias

import attrs

from velollm.errors import BackendProtocolError, RequestError
from velollm.messages import ChatEvent, ChatRequest, Tool, ToolCallDelta

__all__ = ["CallReader", "ForcedCall", "as_calls", "forced_call"]

JSON: TypeAlias = dict[str, Any]

OPENING = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]{1,256})"\s*,\s*"arguments"\s*:\s*')
LONGEST_OPENING = 4096
MAX_DEPTH = 200
SPACE = " \t\r\n"
HELD = SPACE + "}"


@attrs.frozen(kw_only=True)
class ForcedCall:
    """What the answer must be: JSON of `schema`. With `name`, the arguments of that tool; without, a whole call."""

    schema: JSON
    name: str | None


def forced_call(request: ChatRequest) -> ForcedCall | None:
    """What `request` forces, or None. Raises `RequestError` when the tool that it names is not among its tools."""
    choice = request.tool_choice
    if choice is None or choice.mode not in ("required", "named"):
        return None
    tools = [tool for tool in request.tools if choice.mode == "required" or tool.name == choice.name]
    if not tools:
        raise RequestError(f"tool_choice asks for {choice.name!r}, which is not among the tools", param="tool_choice")
    if len(tools) == 1:
        return ForcedCall(schema=_parameters(tools[0]), name=tools[0].name)
    return ForcedCall(schema=_any_call(tools), name=None)


def _parameters(tool: Tool) -> JSON:
    schema = tool.parameters or {}
    known = ("type", "$ref", "anyOf", "oneOf", "allOf")
    return schema if any(key in schema for key in known) else {"type": "object", **schema}


def _any_call(tools: list[Tool]) -> JSON:
    """A call of any of the tools; their schemas move, so references within them move along."""
    definitions = {
        f"tool{number}": _moved(_parameters(tool), f"#/$defs/tool{number}") for number, tool in enumerate(tools)
    }
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/tool{number}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    return {"anyOf": calls, "$defs": definitions}


def _moved(node: Any, root: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise RequestError("the parameters of a tool are nested too deeply", param="tools")
    if isinstance(node, list):
        return [_moved(item, root, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(value, root, depth + 1) for key, value in node.items()}
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


async def as_calls(
    events: AsyncGenerator[ChatEvent, None], forced: ForcedCall, backend: str
) -> AsyncGenerator[ChatEvent, None]:
    """Events whose text is the JSON of a call, as events of a tool call."""
    readers: dict[int, CallReader] = {}
    async for event in events:
        new = attrs.evolve(event, text="", wire=None, raw=None)
        if event.text or event.finish_reason is not None:
            reader = readers.get(event.index)
            if reader is None:
                reader = readers[event.index] = CallReader(forced, f"call_{secrets.token_hex(12)}", backend)
            new.tool_calls = [*event.tool_calls, *reader.feed(event.text)]
            if event.finish_reason is not None and not event.tool_calls:
                new.tool_calls += reader.end(cut=event.finish_reason == "length")
                if event.finish_reason == "stop":
                    new.finish_reason = "tool_calls"
        yield new


class CallReader:
    """Turns the text of one constrained answer, piece by piece, into a tool call named `call_id`.

    Arguments stream on as they come, without the white space that small models strew between them.
    """

    def __init__(self, forced: ForcedCall, call_id: str, backend: str) -> None:
        self._call_id = call_id
        self._backend = backend
        self._name = forced.name
        self._whole = forced.name is None  # the outermost brace belongs to the call, not to its arguments
        self._begun = False
        self._pending = ""
        self._tight = _Tight()

    def feed(self, text: str) -> list[ToolCallDelta]:
        """The pieces of the call that `text` completes."""
        deltas = []
        self._pending += text
        if not self._begun and not self._begin():
            return []
        if self._name is not None:
            deltas.append(ToolCallDelta(0, self._call_id, self._name))
            self._name = None
        ready = self._pending.rstrip(HELD) if self._whole else self._pending
        self._pending = self._pending[len(ready) :]
        if arguments := self._tight.feed(ready):
            deltas.append(ToolCallDelta(0, arguments=arguments))
        return deltas

    def end(self, *, cut: bool) -> list[ToolCallDelta]:
        """The rest; `cut` says that the engine stopped at the limit of tokens, so that the call may be incomplete."""
        if not self._begun:
            if cut:
                return []
            raise self._disobeyed()
        rest = self._pending.rstrip(SPACE)
        if self._whole and not cut:
            rest = rest.removesuffix("}")
        arguments = self._tight.feed(rest)
        return [ToolCallDelta(0, arguments=arguments)] if arguments else []

    def _begin(self) -> bool:
        text = self._pending.lstrip(SPACE)
        if text and text[0] != "{":
            raise self._disobeyed()
        if not self._whole:
            self._pending, self._begun = text, bool(text)
            return self._begun
        match = OPENING.match(self._pending)
        if match is None:
            if len(self._pending) > LONGEST_OPENING:
                raise self._disobeyed()
            return False
        self._name, self._pending, self._begun = match[1], self._pending[match.end() :], True
        return True

    def _disobeyed(self) -> BackendProtocolError:
        return BackendProtocolError(
            f"{self._backend} answered with something else than the tool call that was asked for", backend=self._backend
        )


class _Tight:
    """Drops white space between the tokens of JSON, and keeps that within strings."""

    PIECES = re.compile(r'[ \t\r\n]+|"')
    ESCAPED = re.compile(r'\\.?|"', re.DOTALL)

    def __init__(self) -> None:
        self._inside = False
        self._escape = False

    def feed(self, text: str) -> str:
        out, at = [], 0
        if self._escape and text:
            out.append(text[0])
            at, self._escape = 1, False
        while match := (self.ESCAPED if self._inside else self.PIECES).search(text, at):
            out.append(text[at : match.start()])
            found = match[0]
            at = match.end()
            if found[0] in SPACE:
                continue
            out.append(found)
            if found == '"':
                self._inside = not self._inside
            elif found == "\\":
                self._escape = True
        out.append(text[at:])
        return "".join(out)
