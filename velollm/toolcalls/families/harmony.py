"""gpt-oss: channels, recipients and messages between special tokens (the Harmony format)."""

from __future__ import annotations

import re

from velollm.toolcalls.calls import WrittenCall
from velollm.toolcalls.families.base import Family
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.native import skip_wrappers
from velollm.toolcalls.source import Source
from velollm.toolcalls.values import Unreadable

__all__ = ["FAMILY", "read_message"]

_HEADER = re.compile(r"(?:<\|(?:start|channel|constrain|end|call)\|>|[^<{]){0,40}?(?:<\|message\|>|(?=\{))", re.DOTALL)
_TO = re.compile(r"to=([^\s<{]+)")


def read_message(source: Source, pos: int) -> tuple[list[WrittenCall], int]:
    """Calls that begin with the header at `pos`; a message to nobody is no call."""
    text, limit = source.text, source.limit
    found: list[WrittenCall] = []
    end = pos
    at = pos
    while True:
        window = text[at : min(limit, at + 300)]
        message = window.find("<|message|>")
        brace = window.find("{")
        stops = [stop for stop in (message, brace) if stop >= 0]
        if not stops:
            break
        head = window[: min(stops)]
        to = _TO.search(head)
        if to is None or (found and not head.lstrip().startswith(("<|", "to=", "assistant", "commentary", "analysis"))):
            break
        begin = at + min(stops) + (len("<|message|>") if min(stops) == message else 0)
        while begin < limit and text[begin].isspace():
            begin += 1
        call = WrittenCall(_without_type(to[1], source), {}, start=at)
        call.end = begin
        if text.startswith("{", begin):
            try:
                reading = read_json(text, begin, limit)
            except Unreadable:
                if not found:
                    raise
                break
            call.arguments = reading.value
            call.repairs |= reading.repairs
            call.supplied += reading.supplied
            call.end = reading.end
        elif begin < limit and text[begin] != "<":
            break
        found.append(call)
        end = _behind_tokens(text, call.end, limit)
        at = end
    return found, skip_wrappers(source, end) if found and end >= limit else end


def _without_type(name: str, source: Source) -> str:
    """`name` without the content type that runs into it when the tokens between are lost."""
    bare = name.removesuffix("json")
    return bare if source.tools.find(name) is None and source.tools.find(bare) is not None else name


def _behind_tokens(text: str, pos: int, limit: int) -> int:
    for token in ("<|call|>", "<|end|>", "<|return|>"):
        while text.startswith(token, pos + len(text[pos : pos + 8]) - len(text[pos : pos + 8].lstrip())):
            pos = text.index(token, pos) + len(token)
    return pos


FAMILY = Family(
    name="gpt-oss",
    models=("gptoss", "harmony"),
    cues=("<|channel|>", "<|constrain|>"),
    special=(r"<\|(?:channel|start|message)\|>", r"(?:assistant)?(?:commentary|analysis)[ ]+to=functions\."),
    read=read_message,
)
