"""A JSON reader that forgives what models get wrong, never invents a value, and keeps number lexemes.

One pass, iterative, linear: no recursion, no backtracking. Strict JSON goes through the standard library's scanner;
only what that refuses is read here. What is forgiven: quotes of all kinds and none, missing or doubled commas,
comments, Python literals, raw newlines, bad escapes, missing or wrong closing brackets behind complete values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from attrs import define, field

from velollm.toolcalls.strings import BARE_PATH, OPENERS, read_string
from velollm.toolcalls.values import Bare, Lexeme, Unreadable, to_number

__all__ = ["MAX_DEPTH", "Reading", "read_json", "read_lenient", "read_strict"]

MAX_DEPTH = 512
"""Deeper nesting is refused. Python's own json and orjson stop near 1,000."""

_SKIP = re.compile(r"(?:[\s\ufeff\u00a0\u200b]+|//[^\n]*|/\*.*?\*/|#[^\n]*)*", re.DOTALL)
_TOKEN = re.compile(r"[^\s,\]}\[{:\"<;()]+")
_BARE = re.compile(r"[^\n,\]}\[{:\"<;]+")
_KEY = re.compile(r"[^\W\d][\w$.\-]*|\d+|\$\w+|@\w+")
_PROPER_KEY = re.compile(r'"([^"\\\n]*)"\s*:')
_LOST_QUOTE = re.compile(r"[\"'“]([A-Za-z_$][\w$.\-]{0,80})[ ]?[:：](?=\s*[\"'“{\[]|\s+[\dtfnTFN-])")
_COLON = re.compile(r"[\"']?\s*(?:[:：]|=>?)")
_BEHIND = re.compile(r"```|\[/?[A-Z][A-Z_]{2,}\]")
_LITERALS = {"true": True, "false": False, "null": None, "none": None, "undefined": None, "nil": None}
_NOT_FINITE = {"nan", "infinity", "-infinity", "+infinity", "inf", "-inf", "-nan"}
_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_ESCAPED_QUOTES = re.compile(r"[\[{\s]{0,40}\\\"")
_ESCAPE_PAIR = re.compile(r"\\([\\\"])")


@define(slots=True)
class Reading:
    """A value read from text.

    `supplied` counts closing brackets that were not there, `repairs` names what was mended.
    """

    value: Any
    end: int
    supplied: int = 0
    repairs: set[str] = field(factory=set)


class _Conflict(Exception):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Conflict
    return made


_decoder: Any = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=Lexeme, parse_float=Lexeme, parse_constant=Lexeme, strict=False
)
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once
_WINDOW = 4096


def _strict(text: str, pos: int) -> tuple[Any, int]:
    """The value at `pos` and its end. Raises ValueError, StopIteration or RecursionError.

    The scanner counts the lines of all it was given when it fails, so that it is given no more than it needs.
    """
    if len(text) <= _WINDOW:
        return _scan(text, pos)
    size = _WINDOW
    while True:
        window = text[pos : pos + size]
        try:
            value, end = _scan(window, 0)
            return value, pos + end
        except (ValueError, StopIteration) as error:
            whole = pos + size >= len(text)
            if whole or not _cut_short(error, len(window)):
                raise
        size *= 4


def _cut_short(error: Exception, size: int) -> bool:
    """Whether the scanner failed because its window ends."""
    if isinstance(error, json.JSONDecodeError):
        return error.pos >= size - 12 or error.msg.startswith("Unterminated")
    return bool(error.args) and error.args[0] >= size - 12


def read_json(text: str, pos: int = 0, limit: int | None = None) -> Reading:
    """The value that begins at `pos`: by the strict scanner if it can, else by the lenient one.

    Raises:
        Unreadable: no value, too deep, or cut off in mid-value.
    """
    if limit is None:
        limit = len(text)
    try:
        return read_strict(text, pos, limit)
    except Unreadable:
        return read_lenient(text, pos, limit)


def read_strict(text: str, pos: int, limit: int) -> Reading:
    """As `read_json`, by the strict scanner alone. Raw newlines in strings are let pass; drive paths are not."""
    try:
        value, end = _strict(text, pos)
    except (ValueError, StopIteration, _Conflict, RecursionError):
        raise Unreadable("no strict JSON", pos) from None
    if end > limit or type(value) is Lexeme:
        raise Unreadable("no strict JSON", pos)
    if text.find("\\", pos, end) >= 0:
        span = text[pos:end]
        if BARE_PATH.search(span) or _LONE_SURROGATE.search(span):
            raise Unreadable("an escape that means itself", pos)
    return Reading(value, end)


def read_lenient(text: str, pos: int, limit: int) -> Reading:
    """As `read_json`, without trying the strict scanner."""
    if _ESCAPED_QUOTES.match(text, pos, limit):
        inner = _ESCAPE_PAIR.sub(r"\1", text[pos:limit])
        reading = _Reader(inner, 0, len(inner)).read()
        reading.repairs.add("escaped_json")
        # The end in the outer text: count the escapes that were folded before it.
        reading.end = pos + _unfolded(text, pos, limit, reading.end)
        return reading
    reading = _Reader(text, pos, limit).read()
    if not reading.repairs:
        reading.repairs.add("json")
    return reading


def _unfolded(text: str, pos: int, limit: int, folded: int) -> int:
    shift = 0
    for match in _ESCAPE_PAIR.finditer(text, pos, limit):
        if match.start() - pos - shift >= folded:
            break
        shift += 1
    return folded + shift


_FIRST_KEY, _KEY_STATE, _VALUE, _ITEM, _AFTER = range(5)


class _Reader:
    """The state of one reading: a stack of open containers and what is expected next."""

    __slots__ = ("after_comma", "key", "limit", "pos", "repairs", "result", "stack", "state", "supplied", "text")

    def __init__(self, text: str, pos: int, limit: int) -> None:
        self.text = text
        self.pos = pos
        self.limit = limit
        self.stack: list[tuple[dict[str, Any] | list[Any], str | None]] = []
        self.state = _VALUE
        self.key: str | None = None
        self.after_comma = False
        self.result: Any = None
        self.supplied = 0
        self.repairs: set[str] = set()

    def read(self) -> Reading:
        steps: tuple[Callable[[str], None], ...] = (self._first_key, self._key, self._value, self._item, self._after)
        text, limit = self.text, self.limit
        while True:
            skipped = _SKIP.match(text, self.pos, limit)
            if skipped and skipped.end() > self.pos:
                if text.find("/", self.pos, skipped.end()) >= 0 or text.find("#", self.pos, skipped.end()) >= 0:
                    self.repairs.add("comment")
                self.pos = skipped.end()
            if self.pos >= limit or (text[self.pos] in "<`[" and self._at_markup()):
                return self._finish()
            steps[self.state](text[self.pos])
            if not self.stack and self.state == _AFTER:
                return Reading(self.result, self.pos, self.supplied, self.repairs)

    def _at_markup(self) -> bool:
        """Whether the value must be over: behind it stands a tag, a fence, or a control token."""
        if self.text[self.pos] == "<":
            return not self.text.startswith(('<|"|>', "<escape>"), self.pos)
        return self.state == _AFTER and _BEHIND.match(self.text, self.pos, self.limit) is not None

    def _finish(self) -> Reading:
        """The text ends, or markup begins, with brackets open: legal only behind a complete value."""
        if not self.stack or self.state != _AFTER:
            raise Unreadable("text ends where a value or key is due", self.pos, cut=True)
        self.supplied += len(self.stack)
        self.repairs.add("missing_bracket")
        while self.stack:
            self._pop()
        return Reading(self.result, self.pos, self.supplied, self.repairs)

    # -- values

    def _value(self, char: str) -> None:
        if char in OPENERS or char == "<":
            place = "object" if self.stack and type(self.stack[-1][0]) is dict else "array"
            value, self.pos, repaired = read_string(self.text, self.pos, self.limit, place, len(self.stack))
            if repaired:
                self.repairs.add("string")
            self._put(value)
        elif char == "{" or char == "[":
            if len(self.stack) >= MAX_DEPTH:
                raise Unreadable("nested too deeply", self.pos)
            made: dict[str, Any] | list[Any] = {} if char == "{" else []
            self._attach(made)
            self.stack.append((made, self.key))
            self.state = _FIRST_KEY if char == "{" else _ITEM
            self.after_comma = False
            self.pos += 1
        elif char in ",}]:;":
            raise Unreadable("a value is missing", self.pos)
        else:
            self._scalar()

    def _scalar(self) -> None:
        match = _TOKEN.match(self.text, self.pos, self.limit)
        if match is None:
            raise Unreadable("no value", self.pos)
        token = match[0]
        end = match.end()
        low = token.lower()
        if low in _LITERALS:
            if token not in ("true", "false", "null"):
                self.repairs.add("literal")
            self.pos = end
            self._put(_LITERALS[low])
            return
        if end >= len(self.text):
            raise Unreadable("text ends in a number or word", self.pos, cut=True)
        if low in _NOT_FINITE or to_number(token) is not None:
            if not _is_json_number(token):
                self.repairs.add("number")
            self.pos = end
            self._put(Lexeme(token))
            return
        match = _BARE.match(self.text, self.pos, self.limit)
        assert match is not None
        end = match.end()
        if end >= self.limit or self.text[end] in ':"[{;':
            raise Unreadable("no value", self.pos, cut=end >= self.limit)
        self.repairs.add("unquoted")
        self.pos = end
        self._put(Bare(match[0].strip()))

    def _put(self, value: Any) -> None:
        self._attach(value)
        self.state = _AFTER

    def _attach(self, value: Any) -> None:
        if not self.stack:
            self.result = value
            return
        holder = self.stack[-1][0]
        if type(holder) is list:
            holder.append(value)
            return
        assert isinstance(holder, dict)
        assert self.key is not None
        if self.key in holder:
            self.repairs.add("duplicate_key")
            if _kind(holder[self.key]) != _kind(value):
                raise Unreadable(f"key {self.key!r} twice with values of different types", self.pos)
        holder[self.key] = value

    # -- containers

    def _first_key(self, char: str) -> None:
        if char == "}":
            self._close()
            return
        self._key(char)

    def _key(self, char: str) -> None:
        if char == "}" or char == "]":
            if self.after_comma:
                self.repairs.add("comma")
            self._close_as(char)
        elif char == ",":
            self.repairs.add("comma")
            self.pos += 1
        else:
            self._read_key(char)

    def _read_key(self, char: str) -> None:
        text, limit = self.text, self.limit
        proper = _PROPER_KEY.match(text, self.pos, limit)
        if proper:
            self.key = proper[1]
            self.pos = proper.end()
            self.state = _VALUE
            return
        lost = _LOST_QUOTE.match(text, self.pos, limit)
        if lost:
            self.key = lost[1]
            self.pos = lost.end()
            self.repairs.add("key_quotes")
            self.state = _VALUE
            return
        if char in OPENERS or char == "<":
            self.key, self.pos, repaired = read_string(text, self.pos, limit, "key", len(self.stack))
            if repaired:
                self.repairs.add("string")
        else:
            match = _KEY.match(text, self.pos, limit)
            if match is None:
                raise Unreadable("no key", self.pos)
            self.key = match[0]
            self.pos = match.end()
            self.repairs.add("key_quotes")
        colon = _COLON.match(text, self.pos, limit)
        if colon:
            self.pos = colon.end()
        else:
            skipped = _SKIP.match(text, self.pos, limit)
            at = skipped.end() if skipped else self.pos
            if at >= limit:
                raise Unreadable("a key without a value", self.pos, cut=True)
            if text[at] == ":":
                at += 1
            elif text[at] not in "\"'{[":
                raise Unreadable("a key without a value", self.pos)
            self.repairs.add("colon")
            self.pos = at
        self.state = _VALUE

    def _item(self, char: str) -> None:
        if char == "]" or char == "}":
            if self.after_comma:
                self.repairs.add("comma")
            self._close_as(char)
        elif char == ",":
            self.repairs.add("comma")
            self.pos += 1
        else:
            self._value(char)

    def _after(self, char: str) -> None:
        if char == "," or char == ";":
            if char == ";":
                self.repairs.add("comma")
            self.pos += 1
            self.after_comma = True
            self.state = _ITEM if type(self.stack[-1][0]) is list else _KEY_STATE
        elif char == "}" or char == "]":
            self._close_as(char)
        elif char in OPENERS or char in "{[" or char.isalnum() or char in "_-+":
            self.repairs.add("comma")
            self.after_comma = False
            self.state = _ITEM if type(self.stack[-1][0]) is list else _KEY_STATE
            if char in "{[" and self.state == _KEY_STATE:
                raise Unreadable("a bracket where a key is due", self.pos)
        else:
            raise Unreadable(f"unexpected {char!r}", self.pos)

    def _close_as(self, char: str) -> None:
        """Close by `char`, which may be of the wrong kind or close more than one container."""
        top = self.stack[-1][0]
        wanted = dict if char == "}" else list
        if type(top) is wanted:
            self._close()
            return
        others = any(type(holder) is wanted for holder, _ in self.stack)
        if others and not self._comma_behind():
            self.repairs.add("missing_bracket")
            while type(self.stack[-1][0]) is not wanted:
                self.supplied += 1
                self._pop()
            self._close()
            return
        if char == "}" and not others and self._comma_behind():
            self.repairs.add("extra_bracket")  # of an item that is closed already
            self.pos += 1
            return
        self.repairs.add("wrong_bracket")
        self._close()

    def _comma_behind(self) -> bool:
        skipped = _SKIP.match(self.text, self.pos + 1, self.limit)
        at = skipped.end() if skipped else self.pos + 1
        if not self.text.startswith(",", at):
            return False
        top = self.stack[-1][0]
        return not (type(top) is dict and self.text[at + 1 : at + 40].lstrip()[:1] in "\"'")

    def _close(self) -> None:
        self.pos += 1
        self._pop()

    def _pop(self) -> None:
        _, self.key = self.stack.pop()
        self.after_comma = False
        self.state = _AFTER


_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def _is_json_number(token: str) -> bool:
    return _JSON_NUMBER.fullmatch(token) is not None


def _kind(value: object) -> type:
    return str if type(value) in (str, Bare) else type(value)
