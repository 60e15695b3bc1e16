"""Where a call or a block of reasoning may begin: one pattern over all families, and the rules of position.

Special tokens count anywhere but in quotes and code. Tags count at the start of a line, behind reasoning or another
call; behind the end of a sentence they count only if nothing but calls follows and the prose announces one.
"""

from __future__ import annotations

import re

from velollm.toolcalls.families import FAMILIES, Family, Read
from velollm.toolcalls.native import SPECIAL_TOKEN
from velollm.toolcalls.tools import ToolSet

__all__ = [
    "BACKTICK_REACH",
    "CLOSERS",
    "LIST_HEAD",
    "MARK",
    "OBJECT_HEAD",
    "READERS",
    "TRIGGER",
    "is_partial",
    "may_follow",
    "opens_list",
    "starts_line",
]

BACKTICK_REACH = 240
"""An inline code span is closed within so many characters, or it is none."""

TRIGGER = re.compile(r"[<`~\[\]{\n]|(?<![\w/\"'=>-])>(?:>>?|\Z)")

OBJECT_HEAD = re.compile(r"\{\s*(?:[\"'“‘\\}`]|\{\s*[\"']|[A-Za-z_$][\w$\-]*\s*[\"']?\s*:|<[|e])")
"""How an object may begin that is a call, or what is left of one."""

_LIST_CALL = re.compile(r"\[\s*([A-Za-z_][\w.\-]*)\(")
LIST_HEAD = re.compile(r"\[\s*(?:\{|\[\s*\{)")


def opens_list(text: str, pos: int, tools: ToolSet) -> bool:
    """Whether a list of Python calls begins at `pos`, the first of them of a tool."""
    call = _LIST_CALL.match(text, pos)
    if call is None:
        return False
    found = tools.find(call[1])
    return call[1] == "print" or (found is not None and found[1] != "name_distance")


_opens: dict[str, str] = {}
for _family in FAMILIES:
    for _open, _close in _family.thinks:
        _opens.setdefault(_open, _close)
CLOSERS = _opens
"""Reasoning's opening marker → its closing marker."""


def _union(patterns: list[str]) -> str:
    return "|".join(dict.fromkeys(patterns))


_own: list[Family] = [family for family in FAMILIES if family.read is not None and family.special]
READERS: dict[str, Read] = {f"own{index}": family.read for index, family in enumerate(_own) if family.read is not None}
"""Group of `MARK` → the reader of the family whose marker it is; other groups are read by the general reader."""

MARK = re.compile(
    rf"(?P<think>{_union([re.escape(item) for item in _opens])})"
    rf"|(?P<close>{_union([re.escape(item) for item in _opens.values()])})"
    + "".join(f"|(?P<own{index}>{_union(list(family.special))})" for index, family in enumerate(_own))
    + rf"|(?P<special>{_union([item for family in FAMILIES if family.read is None for item in family.special])})"
    + rf"|(?P<tag>{_union([item for family in FAMILIES for item in family.tags if item.startswith('<')])})"
    + rf"|(?P<token>{SPECIAL_TOKEN})"
)

_BLANK_LINE = re.compile(r"(?:^|\n)[ \t]*(?:(?:<\|[^|<>\n]{1,40}\|>|</?s>|<bos>)(?:assistant)?[ \t]*)*\Z")


def starts_line(before: str) -> bool:
    """Whether a line begins behind `before`; tokens that leaked from a template are nothing to stand behind."""
    return _BLANK_LINE.search(before[-64:]) is not None


_INSIDE = re.compile(r"[\w/\"'=>-]")


def may_follow(before: str, mark: str) -> bool:
    """Whether a marker that begins with `mark` may stand right behind `before`: `>>>` not behind a word or a tag."""
    return mark != ">" or _INSIDE.match(before[-1:]) is None


_PARTIAL = re.compile(
    r"<(?:[|｜][^|｜<>\n\"']{0,64}[|｜]?|/?[\w:|｜▁.\-]{0,40}[ \tĠ]?[|｜]?)?$|\[/?[A-Z_]{0,20}$"
    r"|>{1,3}(?:(?<=>>>)[A-Za-z_][\w.\-]{0,80}\n?)?$"
    r"|\](?:<(?:\](?:m(?:i(?:n(?:i(?:m(?:a(?:x(?:\[(?:>(?:\[(?:<\w{0,10})?)?)?)?)?)?)?)?)?)?)?)?)?$"
)
_LONG_PARTIAL = re.compile(
    r"<\|(?:open|close)\|>[a-z]{0,10}(?:<(?:\|(?:sep?\|?)?)?)?$"
    r"|<response>\s{0,20}$|\[(?:u[a-z]{0,5}\d{0,2})?$"
    r"|<(?:function|invoke|tool_call)[ \tĠ]*(?:n(?:a(?:me?)?)?)?[ \t]*$"
)


def is_partial(text: str, pos: int) -> bool:
    """Whether what begins at `pos` and runs to the end of `text` may yet become a marker."""
    if len(text) - pos > 80:
        return False
    return _PARTIAL.match(text, pos) is not None or _LONG_PARTIAL.match(text, pos) is not None
