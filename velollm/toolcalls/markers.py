"""Where a call or a block of reasoning may begin: one pattern over all families, and the rules of position.

Special tokens count anywhere but in quotes and code. Tags count at the start of a line, behind reasoning or another
call; behind the end of a sentence they count only if nothing but calls follows and the prose announces one.
"""

from __future__ import annotations

import re

from .families import FAMILIES, Family
from .native import SPECIAL_TOKEN

__all__ = ["BACKTICK_REACH", "CLOSERS", "MARK", "READERS", "TRIGGER", "announces", "ends_sentence", "is_partial"]

BACKTICK_REACH = 240
"""An inline code span is closed within so many characters, or it is none."""

TRIGGER = re.compile(r"[<`~\[\]{\n]")

_opens: dict[str, str] = {}
for _family in FAMILIES:
    for _open, _close in _family.thinks:
        _opens.setdefault(_open, _close)
CLOSERS = _opens
"""Reasoning's opening marker → its closing marker."""


def _union(patterns: list[str]) -> str:
    return "|".join(dict.fromkeys(patterns))


_own: list[Family] = [family for family in FAMILIES if family.read is not None and family.special]
READERS = {f"own{index}": family.read for index, family in enumerate(_own)}
"""Group of `MARK` → the reader of the family whose marker it is; other groups are read by the general reader."""

MARK = re.compile(
    rf"(?P<think>{_union([re.escape(item) for item in _opens])})"
    rf"|(?P<close>{_union([re.escape(item) for item in _opens.values()])})"
    + "".join(f"|(?P<own{index}>{_union(list(family.special))})" for index, family in enumerate(_own))
    + rf"|(?P<special>{_union([item for family in FAMILIES if family.read is None for item in family.special])})"
    + rf"|(?P<tag>{_union([item for family in FAMILIES for item in family.tags if item.startswith('<')])})"
    + rf"|(?P<token>{SPECIAL_TOKEN})"
)

_PARTIAL = re.compile(
    r"<(?:[|｜][^|｜<>\n\"']{0,64}[|｜]?|/?[\w:|｜▁.\-]{0,40}[ \tĠ]?[|｜]?)?$|\[/?[A-Z_]{0,20}$"
    r"|\](?:<(?:\](?:m(?:i(?:n(?:i(?:m(?:a(?:x(?:\[(?:>(?:\[(?:<\w{0,10})?)?)?)?)?)?)?)?)?)?)?)?)?$"
)
_LONG_PARTIAL = re.compile(
    r"<\|(?:open|close)\|>[a-z]{0,10}(?:<(?:\|(?:sep?\|?)?)?)?$|<(?:function|invoke|tool_call)[ \tĠ]*(?:n(?:a(?:me?)?)?)?[ \t]*$"
)


def is_partial(text: str, pos: int) -> bool:
    """Whether what begins at `pos` and runs to the end of `text` may yet become a marker."""
    if len(text) - pos > 80:
        return False
    return _PARTIAL.match(text, pos) is not None or _LONG_PARTIAL.match(text, pos) is not None


_SENTENCE_ENDS = ".!?:…。！？：;"


def ends_sentence(before: str) -> bool:
    """Whether `before` ends with a sentence, so that what follows is no longer in mid-sentence."""
    return before.rstrip(" \t")[-1:] in _SENTENCE_ENDS and bool(before.strip())


_INTENT = re.compile(
    r"\b(?:let me|let us|let's|lets|i'll|i will|i'm going to|i am going to|i'm gonna|we'll|we will|i need to|we need to|"
    r"i have to|i want to|i'd like to|going to|i can (?:check|look|do|get|use|help|find)|i should (?:use|call|check)|"
    r"calling|invoking|executing|running|using|checking|fetching|looking|searching|getting|retrieving|querying|"
    r"booking|creating|sending|saving|reading|opening|listing|processing|pinging|setting|one moment|just a (?:moment|second)|"
    r"sure|certainly|of course|okay|ok|alright|right away|on it|absolutely|no problem|got it|"
    r"here(?: is|'s) (?:the|my|a) (?:function|tool)[ -]?call|the (?:appropriate |necessary |required )?(?:function|tool) call(?: is)?|"
    r"the following (?:function|tool)|tool call|function call)\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:for example|example|examples|e\.g|for instance|format|syntax|schema|looks? like|such as|shows?|showed|shown|log|logs|"
    r"logged|changelog|docs|documentation|readme|manifest|manual|tutorial|would|could|might|may|not|never|don't|do not|"
    r"won't|can't|cannot|didn't|doesn't|shouldn't|previous|previously|earlier|yesterday|already|last time|said|says|wrote|"
    r"reads|printed|prints|output|outputs|returned|returns|response|snippet|sample|config|configuration|template|if you|"
    r"you can|you could|you should|you may|users? can|other bot|bot|someone|was|were|been|had|history|quoted?|copied|"
    r"emitted|generated|produced|received|recorded|audit|trace|transcript|dataset|test case|fixture|should i|shall i|"
    r"do you want|would you|payload|instead of|dialect|specification|spec|hypothetical|imagine|suppose|illustrat\w+|"
    r"demonstrat\w+|describes?|explains?|means?|represents?|used to|refus\w+|reject\w+|invalid|wrong|broken|mistake|bug)\b",
    re.IGNORECASE,
)
_LAST_SENTENCES = 260


def announces(lead: str) -> bool:
    """Whether prose announces a call of its own, rather than showing somebody's.

    Judged by the last paragraph: words of intent, and none of quotation, condition or doubt. A question never does.
    """
    text = lead.strip()[-_LAST_SENTENCES:].replace("’", "'")
    text = text.rsplit("\n\n", 1)[-1]
    if text.rstrip("*_ \n").endswith("?"):
        return False
    if _DOUBT.search(text):
        return False
    return _INTENT.search(text) is not None
