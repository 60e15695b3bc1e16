"""The text of one call's arguments: JSON, broken JSON, or one of the other things models put there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from velollm.toolcalls.lenient import Reading, read_json, read_lenient
from velollm.toolcalls.values import Unreadable

if TYPE_CHECKING:
    from velollm.toolcalls.tools import Tool

__all__ = ["read_arguments"]

_FENCE = re.compile(r"\s*(?:```+|~~~)[\w-]*[ \t]*\n?")
_TAIL = re.compile(r"(?:\s|[}\])]|```|~~~|;|</?[\w:|｜▁]{1,40}>|<[|｜][^|｜<>\n]{1,60}[|｜]>|\[/?[A-Z_]{2,24}\])*")
_KEYWORDS = re.compile(r"\s*[A-Za-z_]\w*\s*=")
_LEAD = re.compile(r"[^{\[\"'`<]{1,80}")
_TAGS = re.compile(r"\s*<(?:[\w-]+:)?(?:parameter|param|arg_key|arg)\b")


def read_arguments(text: str, tool: Tool | None = None) -> Reading:
    """The object in `text`.

    Raises:
        Unreadable: there is none, it is cut off, or what follows it is no mere debris.
    """
    pos = 0
    repairs: set[str] = set()
    fence = _FENCE.match(text)
    if fence:
        pos = fence.end()
        repairs.add("fence")
    pos += len(text) - pos - len(text[pos:].lstrip())
    if text[pos : pos + 1] not in ("{", "[", '"', "'", "“"):
        pos = _other_start(text, pos)
        repairs.add("prose_dropped")
        if _KEYWORDS.match(text, pos):
            return _read_keywords(text, pos)
    reading = read_json(text, pos)
    tail = _TAIL.match(text, reading.end)
    end = tail.end() if tail else reading.end
    if end < len(text):
        reading = _after_debris(text, pos, end, reading)
    elif text[reading.end :].strip():
        repairs.add("debris_dropped")
    reading.repairs |= repairs
    return reading


def _other_start(text: str, pos: int) -> int:
    if _KEYWORDS.match(text, pos):
        return pos
    lead = _LEAD.match(text, pos)
    at = lead.end() if lead else pos
    if text[at : at + 1] not in ("{", "`"):
        raise Unreadable("arguments are no object", pos)
    fence = _FENCE.match(text, at)
    return fence.end() if fence else at


def _read_keywords(text: str, pos: int) -> Reading:
    from velollm.toolcalls.pythonic import read_keywords

    arguments, end, supplied = read_keywords(text, pos, len(text), closing="")
    if text[end:].strip():
        raise Unreadable("arguments are no object", end)
    return Reading(arguments, end, supplied, {"keywords"})


def _after_debris(text: str, pos: int, end: int, reading: Reading) -> Reading:
    """More text behind a whole value: the same value again is dropped, members left outside are taken in."""
    rest = text[end:].lstrip()
    if rest[:1] == "{":
        again = read_json(text, text.index("{", end))
        if again.value == reading.value and not text[again.end :].strip():
            reading.repairs.add("repeated_arguments")
            return reading
        raise Unreadable("two different sets of arguments", end)
    if rest[:1] == "," and isinstance(reading.value, dict):
        more = read_lenient("{" + rest[1:], 0, len(rest))
        if isinstance(more.value, dict) and not more.value.keys() & reading.value.keys():
            reading.value = {**reading.value, **more.value}
            reading.supplied += more.supplied
            reading.repairs |= {"wrong_bracket", *more.repairs}
            return reading
    if rest[:1] in ("[", "<", "}", "]") or '"' in rest[:40]:
        raise Unreadable("arguments are followed by something else", end)
    reading.repairs.add("prose_dropped")
    return reading
