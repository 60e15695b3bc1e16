"""The general reader of native calls: behind any opening marker, whatever body follows, until no call follows.

One model's wrapper around another model's body reads as well as the documented pairs do, because wrappers are skipped
and a body is known by how it begins: JSON, markup, `name(…)`, `name{…}`, `name<arg_key>…`.
"""

from __future__ import annotations

import re

from velollm.toolcalls.argkeys import KEY_OPEN, read_pairs
from velollm.toolcalls.calls import WrittenCall, calls_in
from velollm.toolcalls.lenient import Reading, read_lenient, read_strict
from velollm.toolcalls.markup import CALL_OPEN, read_body, read_markup_call
from velollm.toolcalls.pythonic import CALL_HEAD, read_calls
from velollm.toolcalls.source import Source
from velollm.toolcalls.values import Lexeme, Unreadable

__all__ = ["SPECIAL_TOKEN", "WRAPPER", "read_native", "skip_wrappers"]

SPECIAL_TOKEN = r"<[|｜][^|｜<>\n\"']{1,64}[|｜]>"  # noqa: S105 - of a vocabulary, not of a key
WRAPPER = (
    r"</?(?:[\w-]+:|[|｜][\w▁]+[|｜])?(?:tool[_-]?calls?|ToolCalls?|function[_-]?calls?|FunctionCalls?|tool_sep|functions?|longcat_tool_call|TOOLCALL|tools?"
    r"|call|invoke|tool_use|tool_code|action|response|json|JSON|xml)>"
    r"|<(?:start|end)_function_(?:call|response)>|<seed:eos>|\[unused1[12]\]|<\|/?tool_calls?>|</?\|?tool_calls?\|>|\[/?TOOL_CALLS\]|\]<\]minimax\[>\["
    r"|<\|/tool_calls?\|>|<(?:start|end)_of_turn>|<\|(?:tool_response|turn)>|<(?:tool_response|turn)\|>|<eos>|</s>|\[TOOL_REQUEST(?:_END|_RESULT)?\]|\[END_TOOL_REQUEST\]"
)
_SKIP = re.compile(
    rf"(?:\s+|[,;]|<\|im_start\|>\s*assistant\b|<\|start_header_id\|>\s*assistant\b"
    rf"|functools(?=\[)|>>>(?=[A-Za-z_])|{SPECIAL_TOKEN}|{WRAPPER})+"
)
_FENCE = re.compile(r"(?:```+|~~~)[\w-]*[ \t]*\n?")
_HEAD_END = re.compile(
    rf"[{{(]|{KEY_OPEN.pattern}|(?P<close></(?:[\w-]+:)?(?:tool_call|function_call|tool_calls|longcat_tool_call)>|<\|/?tool_call(?:_end)?\|?>|"
    r"<end_function_call>|<[|｜]tool[▁_]call[▁_]end[|｜]>)|<(?:[\w-]+:)?(?:function|invoke|parameter|param)\b"
)
_HEAD_LIMIT = 400
_HEAD_TOKENS = re.compile(rf"\[CALL_ID\][^\[{{]*|\[[A-Z_]+\]|{SPECIAL_TOKEN}|{WRAPPER}|```\w*|>>>|\bcall:")
_RECIPIENT = re.compile(r"to=([^\s<{]+)")
_NOISE = frozenset(
    {"function", "call", "json", "code", "tool", "assistant", "commentary", "analysis", "tool_call", "xml", "plaintext"}
)
_TAGGED = re.compile(
    r"<(?P<tag>name|function|tool_name|tool|function_name)>\s*(?P<name>[^<\n]{1,200}?)\s*</(?P=tag)>\s*"
)
_ELEMENT = re.compile(r"<([A-Za-z_][\w.\-]{0,200})>")
_OPENER = re.compile(r"<[^/]|\[[A-Z]|>>>")
_SIBLING = re.compile(
    r"(?:</(?:[\w-]+:)?(?:tool_call|function_call)s?>|<[|｜][^|｜<>\n]{1,40}end[|｜]>)\s*(?:<(?:[\w-]+:)?(?:tool_call|function_call)|<[|｜])"
)
_EXTRA = re.compile(r"[\s}\]]*")
_MAX_CALLS = 256


def skip_wrappers(source: Source, pos: int) -> int:
    """Behind white space, separators, wrapper tags and special tokens."""
    return source.skip(_SKIP, pos)


def read_native(source: Source, pos: int) -> tuple[list[WrittenCall], int]:
    """All calls from the opening marker at `pos` on: (calls, end). No calls, and the marker opens nothing."""
    text, limit = source.text, source.limit
    found: list[WrittenCall] = []
    end = pos
    at = skip_wrappers(source, pos)
    while at < limit and len(found) < _MAX_CALLS:
        opened = not found or _OPENER.search(text, end, at) is not None
        try:
            calls, after = _read_one(source, at, opened)
        except Unreadable as error:
            source.burn(max(0, (limit if error.cut else error.pos) - at))
            if not found:
                raise
            break
        if not calls:
            break
        for call in calls:
            call.start, call.end = at, after
        found += calls
        end = after
        at = skip_wrappers(source, after)
    return found, skip_wrappers(source, end) if found else pos


def _read_one(source: Source, at: int, opened: bool) -> tuple[list[WrittenCall], int]:
    """The call, or list of calls, that begins at `at`."""
    text, limit = source.text, source.limit
    char = text[at]
    if char == "{":
        return _json_calls(source, at)
    if char == "[":
        calls, end = read_calls(text, at, limit, source.tools)
        return (calls, end) if calls else _json_calls(source, at)
    if char == "<":
        if CALL_OPEN.match(text, at, limit):
            call, end = read_markup_call(source, at)
            return [call], end
        return _tagged_call(source, at)
    if char == "`" or char == "~":
        return _fenced(source, at, opened)
    if not opened:
        return [], at
    return _headed(source, at)


def _fenced(source: Source, at: int, opened: bool) -> tuple[list[WrittenCall], int]:
    fence = _FENCE.match(source.text, at, source.limit)
    if fence is None:
        return [], at
    inner = skip_wrappers(source, fence.end())
    if inner >= source.limit or source.text[inner] == "`":
        return [], at
    calls, end = _read_one(source, inner, opened)
    return calls, _behind_fence(source.text, end)


def _behind_fence(text: str, end: int) -> int:
    at = end
    while at < len(text) and text[at].isspace():
        at += 1
    return at + 3 if text.startswith("```", at) else end


def _json_calls(source: Source, at: int) -> tuple[list[WrittenCall], int]:
    reading = _read_bounded(source, at)
    end = _behind_extra(source.text, reading, at)
    calls = calls_in(reading.value, source.tools)
    if not calls:
        calls = _by_counter(reading.value)
    if not calls:
        raise Unreadable("no call", end)
    for call in calls:
        call.repairs |= reading.repairs
        call.supplied += reading.supplied
    return calls, end


def _read_bounded(source: Source, at: int) -> Reading:
    """The value at `at`. A broken one is not looked for behind the next call's opening marker."""
    try:
        return read_strict(source.text, at, source.limit)
    except Unreadable:
        return read_lenient(source.text, at, source.next(_SIBLING, at))


def _by_counter(value: object) -> list[WrittenCall] | None:
    """A name that is a bare number: which tool is meant shows when the arguments fit only one."""
    if isinstance(value, dict) and type(value.get("name")) in (Lexeme, str) and str(value["name"]).isdigit():
        return [WrittenCall(str(value["name"]), value.get("arguments", value.get("parameters")))]
    return None


def _behind_extra(text: str, reading: Reading, at: int) -> int:
    """Behind closing brackets that nothing opened."""
    match = _EXTRA.match(text, reading.end)
    end = match.end() if match else reading.end
    if text[reading.end : end].strip():
        reading.repairs.add("extra_bracket")
        return end
    return reading.end


def _tagged_call(source: Source, at: int) -> tuple[list[WrittenCall], int]:
    """`<name>f</name><arguments>…</arguments>`, or `<f>…</f>`: behind it JSON, parameters, or elements."""
    text, limit = source.text, source.limit
    tagged = _TAGGED.match(text, at, limit)
    if tagged is not None:
        call = WrittenCall(tagged["name"], {}, start=at)
        if text.find("<", tagged.end(), tagged.end() + 1) < 0 or text.startswith("</", tagged.end()):
            return [call], tagged.end()
        return [call], read_body(source, tagged.end(), call)
    element = _ELEMENT.match(text, at, limit)
    if element is None or element[1] not in source.tools.names:
        return [], at
    call = WrittenCall(element[1], {}, quoted=True, start=at)
    end = read_body(source, element.end(), call)
    if not text.startswith(f"</{element[1]}>", end):
        raise Unreadable("an element without an end", at, cut=end >= limit)
    return [call], end + len(element[1]) + 3


def _headed(source: Source, at: int) -> tuple[list[WrittenCall], int]:
    """A name, perhaps among tokens, then its arguments."""
    text, limit = source.text, source.limit
    stop = _HEAD_END.search(text, at, min(limit, at + _HEAD_LIMIT))
    if stop is None:
        return [], at
    head = text[at : stop.start()]
    if stop[0] == "(":
        begin = text.rfind(" ", at, stop.start()) + 1 or at
        if text.startswith("print(", at):
            begin = at
        if begin != at or not CALL_HEAD.match(text, at, limit):
            return [], at
        return read_calls(text, at, limit, source.tools)
    if stop[0].endswith(("parameter", "param")):
        name = _name_in(head, source)
        if name is None:
            return [], at
        call = WrittenCall(name, {}, quoted=True, start=at)
        return [call], read_body(source, stop.start(), call)
    if stop[0].endswith(("function", "invoke")):
        named = _name_in(head, source)
        if named is None and _HEAD_TOKENS.sub(" ", head).strip().lower() not in _NOISE:
            return [], at
        call, end = read_markup_call(source, stop.start())
        return [call], end
    name = _name_in(head, source)
    if name is None:
        return [], at
    call = WrittenCall(name, {}, start=at)
    if stop["close"]:
        found = source.tools.find(name)
        if found is None or found[1] == "name_distance":
            return [], at
        return [call], stop.start()
    if stop[0] != "{":
        return [call], read_pairs(source, stop.start(), call)
    return [call], _object_body(source, stop.start(), call)


def _object_body(source: Source, at: int, call: WrittenCall) -> int:
    reading = _read_bounded(source, at)
    call.arguments = reading.value
    call.repairs |= reading.repairs
    call.supplied += reading.supplied
    end = _behind_extra(source.text, reading, at)
    if end != reading.end:
        call.repairs.add("extra_bracket")
    return _behind_fence(source.text, end)


def _name_in(head: str, source: Source) -> str | None:
    """The name in what stands before the arguments, among tokens and words that every family puts there."""
    recipient = _RECIPIENT.search(head)
    if recipient:
        return recipient[1]
    if head.strip() in source.tools.names:
        return head.strip()
    words = [word for word in _HEAD_TOKENS.sub(" ", head).split() if word]
    named = [word for word in words if word in source.tools.names or word.lower() not in _NOISE]
    if not named or len(named) > 4:
        return None
    if len(named) == 1:
        return named[0].rstrip(":")
    joined = " ".join(named)
    return joined if source.tools.find(joined) is not None else None
