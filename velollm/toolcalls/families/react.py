"""ReAct text: `Action: name` and `Action Input: {…}` on lines of their own; Command-R's `Action:` with a JSON list."""

from __future__ import annotations

import re

from velollm.toolcalls.calls import WrittenCall
from velollm.toolcalls.families.base import Family
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.native import read_native
from velollm.toolcalls.source import Source
from velollm.toolcalls.values import Unreadable

__all__ = ["FAMILIES"]

_ACTION = re.compile(r"(?:\*\*)?Action(?:\*\*)?\s*:(?:\*\*)?[ \t]*", re.IGNORECASE)
_INPUT = re.compile(
    r"\s*(?:\*\*)?(?:Action[ _]?Input|Input|Arguments|Parameters)(?:\*\*)?\s*:(?:\*\*)?[ \t]*", re.IGNORECASE
)
_NAME = re.compile(r"[^\n({\[`]{1,120}")
_BRACKETED = re.compile(r"\[([^\n]{0,2000})\][ \t]*(?=\n|\Z)")
_LINE_END = re.compile(r"\n\s*(?:Observation|Thought|Action|Final Answer|\*\*)", re.IGNORECASE)
_ALONE = re.compile(r"\s*(?:\Z|observation)", re.IGNORECASE)
_FENCE = re.compile(r"\s*```\w*\s*")
_TAIL = re.compile(r"\s*(?:```)?\s*(?:Observation:?\s*$|PAUSE\b\s*)?", re.IGNORECASE)


def read_action(source: Source, pos: int) -> tuple[list[WrittenCall], int]:
    """The call of an `Action:` line; with several, each its own."""
    text, limit = source.text, source.limit
    action = _ACTION.match(text, pos, limit)
    if action is None:
        return [], pos
    at = action.end()
    lead = text[at : at + 12].lstrip()
    if lead[:1] in ("{", "[", "`"):
        return _json_action(source, at)
    name = _NAME.match(text, at, limit)
    if name is None:
        return [], pos
    label = name[0].strip().strip("*`\"' .")
    if text[name.end() : name.end() + 1] == "(":
        return read_native(source, at)
    if source.tools.find(label) is None:
        return [], pos
    bracket = _BRACKETED.match(text, name.end(), limit)
    if bracket:
        call = WrittenCall(label, bracket[1], start=pos, end=bracket.end(), loose_text=True, quoted=True)
        return [call], bracket.end()
    given = _INPUT.match(text, name.end(), limit)
    call = WrittenCall(label, None, start=pos, end=name.end())
    if given is None:
        alone = _ALONE.match(text, name.end(), limit)
        return ([call], name.end()) if alone else ([], pos)
    call.end = _read_input(text, given.end(), limit, call)
    tail = _TAIL.match(text, call.end, limit)
    return [call], tail.end() if tail else call.end


def _json_action(source: Source, at: int) -> tuple[list[WrittenCall], int]:
    while at < source.limit and source.text[at].isspace():
        at += 1
    return read_native(source, at)


def _read_input(text: str, at: int, limit: int, call: WrittenCall) -> int:
    fence = _FENCE.match(text, at, limit)
    begin = fence.end() if fence else at
    while begin < limit and text[begin].isspace():
        begin += 1
    if text[begin : begin + 1] in ("{", "["):
        reading = read_json(text, begin, limit)
        call.arguments = reading.value
        call.supplied += reading.supplied
        call.repairs |= reading.repairs
        return reading.end
    stop = _LINE_END.search(text, at, limit)
    end = stop.start() if stop else limit
    value = text[at:end].strip()
    if "\n" in value and not stop:
        raise Unreadable("an input without an end", at)
    call.arguments = value
    call.loose_text = True
    call.quoted = True
    return end


FAMILIES = (
    Family(name="command-r-plus", models=("commandr0", "commandrplus0"), cues=("Action: ```json",)),
    Family(
        name="react", models=(), cues=("Action Input:",), tags=(r"(?:\*\*)?Action(?:\*\*)?[ \t]*:",), read=read_action
    ),
)
