"""Calls in XML-like markup: `<function=f><parameter=k>v</parameter></function>`, `<invoke name="f">…`, damaged too.

Values are never entity-decoded. `<parameter=k>` (Qwen) loses exactly one newline at each end; `<parameter name="k">`
keeps its text, unless it is set off as a block on lines of its own.
"""

from __future__ import annotations

import re
from typing import Any

from velollm.toolcalls.calls import WrittenCall
from velollm.toolcalls.keys import fold
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.source import Source
from velollm.toolcalls.tools import Tool
from velollm.toolcalls.values import Raw, Unreadable

__all__ = ["CALL_OPEN", "read_body", "read_markup_call"]

_NS = r"(?:[\w-]+:|[|｜][\w▁]+[|｜])?"
CALL_OPEN = re.compile(
    rf"<{_NS}(?P<tag>function|invoke|tool_call|function_call|tool|call)"
    r"(?:[ \t]*=[ \t]*|[\sĠ]*name[ \t]*=[ \t]*|[\sĠ]+(?:function|tool)[ \t]*=[ \t]*)"
    r"(?P<q>[\"']?)(?P<name>[^\"'>\n{}<]{1,200})[\"']?(?P<rest>[^>\n<{]{0,80})(?:>|(?=[\n{<]))"
)
_PARAM = re.compile(
    rf"<{_NS}(?P<tag>parameter|param|argument|arg)(?P<style>[ \t]*=[ \t]*|[\sĠ]*(?:name|key)[ \t]*=[ \t]*)"
    r"[\"']?(?P<name>[^\"'>\n<=]{1,200}?)[\"']?(?P<rest>[ \t]+[\w-]+[ \t]*=[^>\n]{0,80})?[ \t]*"
    r"(?P<empty>/?)(?:>|(?=\n))"
)
_CLOSE_PARAM = re.compile(rf"</{_NS}(?:parameter|param|argument|arg)>?")
_CLOSE_CALL = re.compile(rf"</{_NS}(?:function|invoke|tool_calls?|function_calls?|tool|call)>")
_VALUE_END = re.compile(
    rf"(?P<param></{_NS}(?:parameter|param|argument|arg)\b>?)"
    rf"|(?P<call></{_NS}(?:function|invoke|tool_call|tool_calls|function_calls?)>)"
    rf"|(?P<next><{_NS}(?:parameter|param)(?:[ \t]*=|[\sĠ]*name[ \t]*=))"
    r"|(?P<special><[|｜](?:im_end|eot|end|tool)[^>\n]{0,40}>)"
)
_AFTER_VALUE = re.compile(
    rf"\s*(?:$|</|<{_NS}(?:parameter|param|argument|arg|function|invoke|tool)\b|<[|｜]|<[A-Za-z_]|\Z)"
)
_ELEMENT = re.compile(r"<(?P<name>[A-Za-z_][\w.\-]{0,100})(?P<empty>\s*/)?>")
_NOISE = re.compile(r"(?:\s+|<[|｜][^|｜<>\n]{1,60}[|｜]>|</?(?:parameters|params|arguments|args|input)>)+")
_CDATA = re.compile(r"\s*<!\[CDATA\[")
_WRAPPERS = frozenset({"arguments", "parameters", "args", "params", "input", "inputs", "toolinput"})
_TYPED = re.compile(r"string[ \t]*=[ \t]*[\"']?(true|false)")


def read_markup_call(source: Source, pos: int) -> tuple[WrittenCall, int]:
    """The call whose opening tag stands at `pos`.

    Raises:
        Unreadable: it is none, or a value in it is cut off.
    """
    head = CALL_OPEN.match(source.text, pos, source.limit)
    if head is None:
        raise Unreadable("no call", pos)
    call = WrittenCall(head["name"].strip(), {}, quoted=True, start=pos)
    if head["rest"].rstrip().endswith("/") or (not head["q"] and call.name.endswith("/")):
        call.name = call.name.rstrip("/ ")
        call.end = head.end()
        return call, call.end
    if source.text[head.end() - 1] != ">":
        call.repairs.add("damaged_tag")
    return call, read_body(source, head.end(), call)


def read_body(source: Source, pos: int, call: WrittenCall) -> int:
    """Fill `call` with the parameters from `pos` on, up to what closes it; returns the end.

    Raises:
        Unreadable: text where a parameter is due, or a value that is cut off.
    """
    found = source.tools.find(call.name)
    call.quoted = True
    call.end = _Body(source, pos, call, found[0] if found else None).read()
    return call.end


class _Body:
    """Reads what stands between a call's tags."""

    __slots__ = ("at", "call", "made", "next_close", "source", "text", "tool")

    def __init__(self, source: Source, pos: int, call: WrittenCall, tool: Tool | None) -> None:
        self.source = source
        self.text = source.text
        self.at = pos
        self.call = call
        self.tool = tool
        self.made: dict[str, Any] = {}
        self.next_close = -1

    def read(self) -> int:
        text, limit = self.text, self.source.limit
        self.call.arguments = self.made
        while True:
            noise = _NOISE.match(text, self.at, limit)
            at = noise.end() if noise else self.at
            if at >= limit:
                return self._unclosed(limit)
            close = _CLOSE_CALL.match(text, at, limit)
            if close:
                return close.end()
            param = _PARAM.match(text, at, limit)
            if param:
                self._parameter(param)
                continue
            stray = _CLOSE_PARAM.match(text, at, limit)
            if stray:
                self.call.repairs.add("damaged_tag")
                self.at = stray.end()
                continue
            if text[at] == "{" and not self.made:
                self.at = self._json(at)
                continue
            element = _ELEMENT.match(text, at, limit)
            if element and self._element(element):
                continue
            if text[at] == "<" and (self.made or not self._needs_more()):
                return self._unclosed(at)
            raise Unreadable("text where a parameter is due", at)

    def _needs_more(self) -> bool:
        return self.tool is None or bool(self.tool.required)

    def _unclosed(self, at: int) -> int:
        self.call.supplied += 1
        self.call.repairs.add("missing_tag")
        return at

    def _json(self, at: int) -> int:
        reading = read_json(self.text, at, self.source.limit)
        if not isinstance(reading.value, dict):
            raise Unreadable("arguments are no object", at)
        self.made.update(reading.value)
        self.call.quoted = False
        self.call.supplied += reading.supplied
        self.call.repairs |= reading.repairs
        end = reading.end
        while self.text[end : end + 1] in ("}", "]"):
            self.call.repairs.add("extra_bracket")
            end += 1
        return end

    def _parameter(self, param: re.Match[str]) -> None:
        name = param["name"].strip()
        if param["empty"]:
            self.made[name] = Raw("")
            self.at = param.end()
            return
        if self.text[param.end() - 1] != ">":
            self.call.repairs.add("damaged_tag")
        value = self._value(param.end(), name)
        style = param["style"].strip()
        verbatim = param["tag"] == "param" or _TYPED.search(param["rest"] or "")  # MiniCPM and DeepSeek
        if style == "=" or not verbatim:
            value = _trimmed(value, qwen=style == "=")
        self._store(name, value, param["rest"] or "")

    def _store(self, name: str, value: str, rest: str) -> None:
        typed = _TYPED.search(rest)
        if typed and typed[1] == "false" and (self.tool is None or name not in self.tool.properties):
            try:
                reading = read_json(value.strip() + " ")
                self.made[name] = reading.value
                return
            except Unreadable:
                pass
        self.made[name] = Raw(value)

    def _value(self, start: int, name: str) -> str:
        text, limit = self.text, self.source.limit
        cdata = _CDATA.match(text, start, limit)
        if cdata:
            end = text.find("]]>", cdata.end(), limit)
            if end < 0:
                raise Unreadable("CDATA without an end", start, cut=True)
            close = _CLOSE_PARAM.match(text, end + 3 + _blank(text, end + 3), limit)
            self.at = close.end() if close else end + 3
            return text[cdata.end() : end]
        at = start
        while True:
            match = _VALUE_END.search(text, at, limit)
            if match is None:
                raise Unreadable("a value without an end", start, cut=True)
            if self._ends_value(match, name):
                self.at = match.end() if match["param"] else match.start()
                if not match["param"]:
                    self.call.repairs.add("missing_tag")
                return text[start : match.start()]
            at = match.end()

    def _ends_value(self, match: re.Match[str], name: str) -> bool:
        text, limit = self.text, self.source.limit
        if match["param"]:
            return _AFTER_VALUE.match(text, match.end(), limit) is not None
        if match["special"]:
            return not text[match.end() : match.end() + 200].strip() or self._close_after(match.start()) < 0
        if match["next"]:
            following = _PARAM.match(text, match.start(), limit)
            known = (
                self.tool is not None and following is not None and following["name"].strip() in self.tool.properties
            )
            fresh = following is not None and following["name"].strip() not in (*self.made, name)
            return known and fresh and text[: match.start()].rstrip(" \t")[-1:] in ("\n", ">")
        close = self._close_after(match.start())
        if close < 0:
            return True
        return self.source.next(CALL_OPEN, match.end()) < close

    def _close_after(self, at: int) -> int:
        """Where the next closing parameter tag behind `at` is; remembered, so that looking stays linear."""
        if self.next_close < at and self.next_close != self.source.limit + 1:
            match = _CLOSE_PARAM.search(self.text, at, self.source.limit)
            self.next_close = match.start() if match else self.source.limit + 1
        return -1 if self.next_close == self.source.limit + 1 else self.next_close

    def _element(self, element: re.Match[str]) -> bool:
        """`<city>Paris</city>`: a parameter named by its tag; `<arguments>{…}</arguments>`: all of them."""
        name = element["name"]
        known = self.tool is not None and (
            name in self.tool.properties or self.tool.schema.root.keys.variant(name) is not None
        )
        if not known and fold(name) in _WRAPPERS:
            self.at = element.end()
            return True
        if not known:
            return False
        if element["empty"]:
            self.made[name] = Raw("")
            self.at = element.end()
            return True
        end = self.text.find(f"</{name}>", element.end(), self.source.limit)
        if end < 0:
            raise Unreadable("a value without an end", element.start(), cut=True)
        self.made[name] = Raw(_trimmed(self.text[element.end() : end], qwen=False))
        self.at = end + len(name) + 3
        return True


def _blank(text: str, pos: int) -> int:
    end = pos
    while end < len(text) and text[end].isspace():
        end += 1
    return end - pos


def _trimmed(value: str, *, qwen: bool) -> str:
    head = 2 if value.startswith("\r\n") else 1 if value.startswith("\n") else 0
    tail = 2 if value.endswith("\r\n") else 1 if value.endswith("\n") else 0
    if not qwen and not (head and tail):
        return value
    if len(value) <= head and tail:
        return ""
    return value[head : len(value) - tail] if tail else value[head:]
