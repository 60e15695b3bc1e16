"""Strings in broken JSON: where one ends when its inner quotes are not escaped, and what its escapes mean."""

from __future__ import annotations

import re

from velollm.toolcalls.values import Unreadable

__all__ = ["BARE_PATH", "OPENERS", "decode_escapes", "read_string"]

OPENERS = {
    '"': '"',
    "'": "'",
    "“": "”",
    "”": "”",
    "„": "“",
    "‘": "’",
    "’": "’",
    "「": "」",
    "`": "`",
    "＂": "＂",
    '<|"|>': '<|"|>',
    "<escape>": "<escape>",
}
"""Opening quote → closing quote. The last two are the string tokens of Gemma 4 and FunctionGemma."""

_SPACE = re.compile(r"\s*")
_STOPS = {
    quote: re.compile(f"[{re.escape(quote)}\\\\]" if quote != "”" else '[”"\\\\]')
    for quote in {*OPENERS.values()}
    if len(quote) == 1
}
_KEY_AHEAD = re.compile(
    r"[\s,;]*(?:[\"'“”‘’`＂][^\"'“”‘’\n]{0,120}[\"'“”‘’`＂]\s*[:=]|[\"'][A-Za-z_$][\w$.\-]{0,80} ?:\s*[\"'\[{\d]"
    r"|[A-Za-z_$][\w$.\- ]{0,80}[\"']?\s*:(?!//)|[}\]]|$|<[/|｜]"
    r"|[\"'“][^\"'“”\n]{0,120}[\"'”]?\s*$|[A-Za-z_$][\w$.\- ]{0,80}[\"']?\s*$)"
)
"""A key, or the end of the object, or a key that is cut off: no text ends like that."""

_VALUE_AHEAD = re.compile(r"[\s,]*(?:[\"'“‘\[{\]}`]|[-+]?\.?\d|true\b|false\b|null\b|True\b|False\b|None\b|$|<[/|｜])")
_KEYWORD_BEHIND = re.compile(
    r",\s*(?:\*\*)?[\"']?[A-Za-z_][\w.\-]*[\"']?\s*[=:](?!=)"
    r"|,?\s*\)\s*(?:[,;\])#]|$|<|```|[A-Za-z_][\w.\-/:]*\()|,?\s*$|[\"']|#|<[/|｜]"
)
_NEXT_CALL = re.compile(r"\s*[A-Za-z_][\w.\-/:]*\(")
_NEXT_KEYWORD = re.compile(r"\s*[A-Za-z_]\w*\s*=(?!=)")
_CLOSERS = re.compile(r"[\s}\])]*")
_MARKUP = re.compile(r"</?[\w:]*(?:tool|func|arg|invoke|param|s>|end_of)|<[/]?[|｜]|```|\[/?TOOL|\]<\]")
_ESCAPE = re.compile(r"\\(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_PYTHON_ESCAPE = re.compile(r"\\(?:\\|(x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8}))")
_SIMPLE = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "'": "'"}
_PATH = r"[C-Zc-z]:\\(?![\\\"'/\s]|u[0-9a-fA-F]{4})[^/:*?\"<>|\n]*"
BARE_PATH = re.compile(rf"[\"']{_PATH}[\"']")
"""A string that is a path on Windows whose backslashes nobody escaped: nothing in it that a path cannot hold."""

_DRIVE = re.compile(rf"{_PATH}(?=\")|{_PATH}(?=')")
_WHOLE_PATH = re.compile(_PATH)


def _python_escape(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[0]
    code = int(match[1][1:], 16)
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else match[0]


def decode_escapes(raw: str, *, python: bool = False) -> str:
    """Rule 11: an invalid escape keeps its backslash, and then `\\b`, `\\f` are literal; drive paths are too."""
    if "\\" not in raw:
        return raw
    if _WHOLE_PATH.fullmatch(raw):
        return raw.replace("\\\\", "\\").replace('\\"', '"')
    if python:
        raw = _PYTHON_ESCAPE.sub(_python_escape, raw)
    found = [match[1] for match in _ESCAPE.finditer(raw)]
    broken = any((len(item) == 1 and item not in _SIMPLE) or _is_surrogate(item) for item in found)

    def replace(match: re.Match[str]) -> str:
        item = match[1]
        if len(item) == 1:
            if item not in _SIMPLE or (broken and item in "bf"):
                return match[0]
            return _SIMPLE[item]
        if len(item) == 5:
            return match[0] if _is_surrogate(item) else chr(int(item[1:], 16))
        high, low = int(item[1:5], 16), int(item[7:], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))

    return _ESCAPE.sub(replace, raw)


def _is_surrogate(item: str) -> bool:
    return len(item) == 5 and item[1] in "dD" and item[2] in "89abcdefABCDEF"


def read_string(text: str, pos: int, limit: int, place: str, depth: int) -> tuple[str, int, bool]:
    """The string whose opening quote stands at `pos`.

    `place` is "key", "object" or "array": what the string is part of. Returns (value, end, repaired).

    Raises:
        Unreadable: it never ends (`cut`).
    """
    if text[pos] == "<":
        return _read_token_string(text, pos, limit)
    quote = text[pos]
    close = OPENERS[quote]
    triple = quote * 3
    if quote in "\"'" and text.startswith(triple, pos) and text.find(triple, pos + 3, limit) > 0:
        end = text.find(triple, pos + 3, limit)
        return text[pos + 3 : end], end + 3, True
    literal = _DRIVE.match(text, pos + 1) is not None
    stops = _STOPS[close]
    at = pos + 1
    repaired = quote != '"' or literal
    while True:
        match = stops.search(text, at, limit)
        if match is None:
            raise Unreadable("string without an end", pos, cut=True)
        at = match.start()
        if text[at] == "\\" and not (literal and text[at + 1 : at + 2] != close):
            if literal and _ends_here(text, at + 2, limit, place, depth):
                return decode_escapes(text[pos + 1 : at + 1]), at + 2, True
            at += 2
            continue
        if text[at] == "\\":
            at += 1
            continue
        if _ends_here(text, at + 1, limit, place, depth):
            body = text[pos + 1 : at]
            python = place == "keyword" or quote == "'"
            return decode_escapes(body, python=python), at + 1, repaired or _is_odd(body)
        repaired = True
        at += 1


def _is_odd(body: str) -> bool:
    return "\n" in body or "\t" in body


def _read_token_string(text: str, pos: int, limit: int) -> tuple[str, int, bool]:
    for token in ('<|"|>', "<escape>"):
        if text.startswith(token, pos):
            end = text.find(token, pos + len(token), limit)
            if end < 0:
                raise Unreadable("string without an end", pos, cut=True)
            return text[pos + len(token) : end], end + len(token), False
    raise Unreadable("no string", pos)


def _ends_here(text: str, pos: int, limit: int, place: str, depth: int) -> bool:
    """Whether a quote just before `pos` closes its string, judged by what follows."""
    space = _SPACE.match(text, pos, limit)
    at = space.end() if space else pos
    if at >= limit:
        return True
    char = text[at]
    if place == "key":
        return char in ":=：" or (char in "\"'{[" and at > pos)
    if place == "keyword":
        return _KEYWORD_BEHIND.match(text, at, limit) is not None
    if char == "," or char == ";":
        ahead = _KEY_AHEAD if place == "object" else _VALUE_AHEAD
        return ahead.match(text, at + 1, limit) is not None
    if char in "}])":
        return _closers_fit(text, at, limit, depth)
    if char in OPENERS:
        if place == "array":
            return at > pos or _VALUE_AHEAD.match(text, at + 1, limit) is None
        return _KEY_AHEAD.match(text, at, limit) is not None
    if char == "/":
        return text[at + 1 : at + 2] in ("/", "*")
    if char == "#":
        return "\n" in text[pos:at]
    if char in "<`[]":
        return _MARKUP.match(text, at, limit) is not None
    return "\n" in text[pos:at] and place == "object" and _KEY_AHEAD.match(text, at, limit) is not None


def _closers_fit(text: str, at: int, limit: int, depth: int) -> bool:
    run = _CLOSERS.match(text, at, limit)
    end = run.end() if run else at
    if end >= limit:
        return True
    closed = sum(text.count(bracket, at, end) for bracket in "}])")
    char = text[end]
    if char == ",":
        if closed == depth and _NEXT_KEYWORD.match(text, end + 1, limit):
            return True  # the value of one Python argument ends, the next one follows
        if text.find(")", at, end) >= 0 and _NEXT_CALL.match(text, end + 1, limit):
            return True  # the arguments of one Python call end, the next call follows
        return closed < depth + 2 and (
            _KEY_AHEAD.match(text, end + 1, limit) is not None or _VALUE_AHEAD.match(text, end + 1, limit) is not None
        )
    if char in "\"'“”‘’":
        return closed < depth and _KEY_AHEAD.match(text, end, limit) is not None
    if char in "{[;<`/|":
        return True
    return closed >= depth
