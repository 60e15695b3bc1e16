"""Kimi K2 (`functions.name:0` between tokens) and Kimi K3 (a tree of `<|open|>…<|sep|>` elements)."""

from __future__ import annotations

import re

from velollm.toolcalls.calls import WrittenCall
from velollm.toolcalls.families.base import Family
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.source import Source
from velollm.toolcalls.values import Raw, Unreadable

__all__ = ["FAMILIES"]

_CALL = re.compile(r"<\|open\|>call\s+([^<]{1,300}?)<\|sep\|>")
_ARGUMENT = re.compile(r"\s*<\|open\|>argument\s+([^<]{1,300}?)<\|sep\|>")
_END_ARGUMENT = re.compile(r"<\|close\|>argument<\|sep\|>|(?=<\|open\|>argument\s)|(?=<\|close\|>call)")
_END_CALL = re.compile(r"\s*<\|close\|>call(?:<\|sep\|>)?")
_END_TOOLS = re.compile(r"(?:\s*<\|close\|>(?:tools|message|response)(?:<\|sep\|>)?)*\s*")
_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*\"([^\"]*)\"")


def _attributes(text: str) -> dict[str, str]:
    return {key: value.replace("&quot;", '"').replace("&amp;", "&") for key, value in _ATTRIBUTE.findall(text)}


def read_tree(source: Source, pos: int) -> tuple[list[WrittenCall], int]:
    """The calls of a `tools` channel."""
    text, limit = source.text, source.limit
    found: list[WrittenCall] = []
    tools = "<|open|>tools<|sep|>"
    at = pos + len(tools) if text.startswith(tools, pos) else pos
    while True:
        while at < limit and text[at].isspace():
            at += 1
        head = _CALL.match(text, at, limit)
        if head is None:
            break
        marks = _attributes(head[1])
        call = WrittenCall(marks.get("tool") or marks.get("name", ""), {}, quoted=True, start=at)
        at = _read_arguments(source, head.end(), call)
        close = _END_CALL.match(text, at, limit)
        if close is None:
            call.supplied += 1
            call.repairs.add("missing_tag")
        else:
            at = close.end()
        call.end = at
        found.append(call)
    end = _END_TOOLS.match(text, at, limit)
    return found, end.end() if end and found else at if found else pos


def _read_arguments(source: Source, at: int, call: WrittenCall) -> int:
    text, limit = source.text, source.limit
    while True:
        head = _ARGUMENT.match(text, at, limit)
        if head is None:
            return at
        marks = _attributes(head[1])
        end = _END_ARGUMENT.search(text, head.end(), limit)
        if end is None:
            raise Unreadable("an argument without an end", at, cut=True)
        value = text[head.end() : end.start()]
        call.arguments[marks.get("key", "")] = _typed(value, marks.get("type", "string"))
        at = end.end()


def _typed(value: str, kind: str) -> object:
    if kind != "string":
        try:
            return read_json(value.strip() + " ").value
        except Unreadable:
            pass
    return Raw(value)


FAMILIES = (
    Family(
        name="kimi-k3",
        models=("kimik3",),
        cues=("<|open|>tools", "<|open|>call"),
        special=(r"<\|open\|>(?:tools|call)\b",),
        thinks=(("<|open|>think<|sep|>", "<|close|>think<|sep|>"),),
        read=read_tree,
    ),
    Family(
        name="kimi-k2",
        models=("kimik2", "kimi", "moonshot"),
        cues=("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"),
        special=(r"<\|tool_calls?_section_begin\|>", r"<\|tool_call_begin\|>"),
    ),
)
