"""Calls written as Python: `f(a=1, b="x")`, alone, in a list, or line by line (Llama 4, LFM2, Olmo 3, Gemma 3)."""

from __future__ import annotations

import re
from typing import Any

from velollm.toolcalls.calls import WrittenCall
from velollm.toolcalls.lenient import Reading, read_json, read_lenient
from velollm.toolcalls.strings import read_string
from velollm.toolcalls.tools import ToolSet
from velollm.toolcalls.values import Bare, Lexeme, Unreadable, to_number

__all__ = ["CALL_HEAD", "read_call", "read_calls", "read_keywords"]

CALL_HEAD = re.compile(r"[A-Za-z_][\w.\-/:]{0,200}\(")
_KEYWORD = re.compile(r"\s*[\"']?([A-Za-z_][\w.\-]*)[\"']?\s*[=:](?!=)\s*")
_TOKEN = re.compile(r"[^\s,()\[\]{}\"'=]+")
_SPACE = re.compile(r"(?:\s+|#[^\n]*\n)*")
_PREFIX = re.compile(r"[rRbBfFuU]{1,2}(?=[\"'])")
_NAMES = {"true": True, "false": False, "none": None, "null": None}
_MAX_CALLS = 256


def read_calls(text: str, pos: int, limit: int, tools: ToolSet) -> tuple[list[WrittenCall], int]:
    """Calls from `[f(), g()]`, or from `f()` and what follows it on the same terms. ([], pos) where there are none."""
    start = pos
    bracket = text.startswith("[", pos)
    if bracket:
        pos += 1
    found: list[WrittenCall] = []
    while len(found) < _MAX_CALLS:
        at = _skip(text, pos, limit)
        head = CALL_HEAD.match(text, at, limit)
        if head is None:
            break
        try:
            call, end = read_call(text, at, limit, tools)
        except Unreadable:
            if not found:
                return [], start
            break
        call.start, call.end = at, end
        found.append(call)
        pos = end
        at = _skip(text, pos, limit)
        if text.startswith((",", ";"), at):
            pos = at + 1
        elif not (bracket or "\n" in text[pos:at]):
            break
    if not found:
        return [], start
    if bracket:
        at = _skip(text, pos, limit)
        if text.startswith("]", at):
            pos = at + 1
        else:
            for call in found:
                call.repairs.add("missing_bracket")
            found[-1].supplied += 1
    return found, pos


def _skip(text: str, pos: int, limit: int) -> int:
    match = _SPACE.match(text, pos, limit)
    return match.end() if match else pos


def read_call(text: str, pos: int, limit: int, tools: ToolSet) -> tuple[WrittenCall, int]:
    """One `name(...)`.

    Raises:
        Unreadable: it is none, or it is cut off.
    """
    head = CALL_HEAD.match(text, pos, limit)
    if head is None:
        raise Unreadable("no call", pos)
    name = head[0][:-1]
    if name == "print":
        inner = _skip(text, head.end(), limit)
        if text.startswith("print(", inner):
            raise Unreadable("no call", pos)
        call, end = read_call(text, inner, limit, tools)
        at = _skip(text, end, limit)
        return call, at + 1 if text.startswith(")", at) else end
    if tools.find(name) is None:
        raise Unreadable("no tool", pos)
    arguments, end, supplied = read_keywords(text, head.end(), limit, tools=tools, name=name)
    call = WrittenCall(name, arguments, supplied=supplied, quoted=True)
    if supplied:
        call.repairs.add("missing_bracket")
    return call, end


def read_keywords(
    text: str, pos: int, limit: int, *, closing: str = ")", tools: ToolSet | None = None, name: str = ""
) -> tuple[dict[str, Any], int, int]:
    """`a=1, b="x"` up to `closing`: (arguments, end, closing brackets supplied)."""
    made: dict[str, Any] = {}
    loose: list[Any] = []
    while True:
        pos = _skip(text, pos, limit)
        if pos >= limit or (closing and text[pos] == "<" and made):
            if closing:
                return _named(made, loose, tools, name), pos, 1
            return made, pos, 0
        if closing and text[pos] == closing:
            return _named(made, loose, tools, name), pos + 1, 0
        if text.startswith("**", pos):
            pos += 2
        keyword = _KEYWORD.match(text, pos, limit)
        if keyword:
            pos = keyword.end()
        value, pos = _read_value(text, pos, limit, closing)
        if keyword:
            made[keyword[1]] = value
        elif not closing:
            raise Unreadable("no keyword", pos)
        else:
            loose.append(value)
        pos = _skip(text, pos, limit)
        if pos < limit and text[pos] == ",":
            pos += 1
            if _skip(text, pos, limit) >= limit:
                raise Unreadable("cut off after a comma", pos, cut=True)
        elif not _ends_arguments(text, pos, limit, closing) and not (keyword and _KEYWORD.match(text, pos, limit)):
            raise Unreadable("no comma between arguments", pos)


def _ends_arguments(text: str, pos: int, limit: int, closing: str) -> bool:
    return pos >= limit or text[pos] == closing or (closing != "" and text[pos] == "<")


def _named(made: dict[str, Any], loose: list[Any], tools: ToolSet | None, name: str) -> dict[str, Any]:
    """Positional arguments: a dict is the arguments, a lone value is the lone parameter, all else is a guess."""
    if not loose:
        return made
    if len(loose) == 1 and not made:
        if isinstance(loose[0], dict):
            return loose[0]
        found = tools.find(name) if tools is not None else None
        sole = found[0].sole_parameter if found is not None else None
        if sole is not None:
            return {sole: loose[0]}
    raise Unreadable("positional arguments", 0)


def _read_value(text: str, pos: int, limit: int, closing: str) -> tuple[Any, int]:
    if pos >= limit:
        raise Unreadable("an argument without a value", pos, cut=True)
    prefix = _PREFIX.match(text, pos, limit)
    if prefix:
        pos = prefix.end()
    char = text[pos]
    if char in "\"'" or char in "“‘":
        return _read_text(text, pos, limit)
    if char in "{[":
        reading: Reading = read_json(text, pos, limit)
        if reading.supplied:
            raise Unreadable("an argument is cut off", pos, cut=True)
        return reading.value, reading.end
    if char == "(":
        return _read_tuple(text, pos, limit)
    match = _TOKEN.match(text, pos, limit)
    if match is None:
        raise Unreadable("no value", pos)
    token, end = match[0], match.end()
    if end >= len(text) and token.lower() not in _NAMES:
        raise Unreadable("text ends in a value", pos, cut=True)
    if token.lower() in _NAMES:
        return _NAMES[token.lower()], end
    if to_number(token) is not None or token.lower() in ("nan", "inf", "infinity"):
        return Lexeme(token), end
    following = _skip(text, end, limit)
    if following < limit and text[following] in ",)" and token[0].isalpha():
        return Bare(token), end
    raise Unreadable("no value", pos)


def _read_text(text: str, pos: int, limit: int) -> tuple[str, int]:
    """A string, or several that stand side by side and are one."""
    parts: list[str] = []
    while True:
        value, end, _ = read_string(text, pos, limit, "keyword", 0)
        parts.append(value)
        pos = _skip(text, end, limit)
        if pos >= limit or text[pos] not in "\"'":
            return "".join(parts), end


def _read_tuple(text: str, pos: int, limit: int) -> tuple[list[Any], int]:
    end = text.find(")", pos, min(limit, pos + 2000))
    if end < 0:
        raise Unreadable("an argument is cut off", pos, cut=True)
    inner = "[" + text[pos + 1 : end] + "]"
    reading = read_lenient(inner, 0, len(inner))
    if reading.end != len(inner):
        raise Unreadable("no tuple", pos)
    return reading.value, end + 1
