"""Arguments as pairs of tags: `<arg_key>k</arg_key><arg_value>v</arg_value>`.

GLM, Poolside, Ling 3, Hunyuan 3 and LongCat write them so. Values are verbatim. A key without a value is a cut, never
an empty string.
"""

from __future__ import annotations

import re
from typing import Any

from velollm.toolcalls.calls import WrittenCall
from velollm.toolcalls.source import Source
from velollm.toolcalls.values import Raw, Unreadable

__all__ = ["KEY_OPEN", "read_pairs"]

KEY_OPEN = re.compile(r"<(?:\w+[_:])??arg_key>")
_KEY_END = re.compile(r"</(?:\w+[_:])??arg_key>|(?=<(?:\w+[_:])??arg_value>)")
_VALUE_OPEN = re.compile(r"\s*<(?:\w+[_:])??arg_value>")
_VALUE_END = re.compile(
    r"(?P<close></(?:\w+[_:])??arg_value>)|(?P<next><(?:\w+[_:])??arg_key>)|(?P<call></(?:\w+[_:])??tool_call>)"
)
_AFTER_VALUE = re.compile(
    r"\s*(?:$|<(?:\w+[_:])??arg_key>|</(?:\w+[_:])??tool_calls?\b|<[|｜]|<(?:\w+[_:])??tool_call>|</?\w+>)"
)
_VALUE_CLOSE = re.compile(r"</(?:\w+[_:])??arg_value>")
_CALL_OPEN = re.compile(r"<(?:\w+[_:])??tool_call>")
_CALL_CLOSE = re.compile(r"</(?:\w+[_:])??tool_call\b|<[|｜][^|｜<>\n]{1,60}end[|｜]>")
_SPACE = re.compile(r"\s*")


def read_pairs(source: Source, pos: int, call: WrittenCall) -> int:
    """Fill `call` with the pairs from `pos` on; returns the end.

    Raises:
        Unreadable: a key without a value, or a value that never ends.
    """
    text, limit = source.text, source.limit
    made: dict[str, Any] = {}
    call.arguments = made
    call.quoted = True
    while True:
        space = _SPACE.match(text, pos, limit)
        at = space.end() if space else pos
        opening = KEY_OPEN.match(text, at, limit)
        if opening is None:
            if not _CALL_CLOSE.match(text, at, limit):
                call.supplied += 1
                call.repairs.add("missing_tag")
            return pos
        key_end = _KEY_END.search(text, opening.end(), min(limit, opening.end() + 400))
        if key_end is None:
            raise Unreadable("a key without an end", at, cut=True)
        key = text[opening.end() : key_end.start()].strip()
        if "\n" in key or "<" in key:
            raise Unreadable("a damaged key", at)
        if not key_end[0]:
            call.repairs.add("damaged_tag")
        start = _VALUE_OPEN.match(text, key_end.end(), limit)
        if start is None:
            call.repairs.add("damaged_tag")
        begin = start.end() if start else key_end.end()
        value, pos = _read_value(source, begin, call, lost=start is None)
        made[key] = Raw(value.strip("\n") if start is None else value)


def _read_value(source: Source, begin: int, call: WrittenCall, *, lost: bool) -> tuple[str, int]:
    at = begin
    text, limit = source.text, source.limit
    while True:
        match = _VALUE_END.search(text, at, limit)
        if match is None:
            raise Unreadable("a value without an end", begin, cut=True)
        at = match.end()
        if match["close"]:
            if _AFTER_VALUE.match(text, at, limit):
                return text[begin : match.start()], at
            continue
        value = text[begin : match.start()]
        if lost and not value.strip():
            raise Unreadable("a key without a value", begin)
        close = source.next(_VALUE_CLOSE, at)
        opener = source.next(_CALL_OPEN, at)
        if match["next"] or close > opener or close == limit:
            call.repairs.add("missing_tag")
            return value.rstrip("\n"), match.start()
