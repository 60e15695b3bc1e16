"""MiniMax: M1's JSON lines, M2's `<invoke>`, and M3's nested elements behind a namespace token."""

from __future__ import annotations

import re
from typing import Any

from velollm.toolcalls.calls import WrittenCall
from velollm.toolcalls.families.base import Family
from velollm.toolcalls.source import Source
from velollm.toolcalls.values import Raw, Unreadable

__all__ = ["FAMILIES"]

_TOKEN = "]<]minimax[>["  # noqa: S105 - a control token of the model, not a secret
_TAG = re.compile(
    r"<(?P<close>/)?(?P<name>[^\s<>/\"=]{1,200})(?:\s+name\s*=\s*[\"']?(?P<value>[^\"'>\n]{1,200})[\"']?)?\s*(?P<empty>/)?>"
)
_MAX_DEPTH = 64


def read_elements(source: Source, pos: int) -> tuple[list[WrittenCall], int]:
    """The calls behind the token at `pos`: every tag carries the token, so the text between is verbatim."""
    text, limit = source.text, source.limit
    found: list[WrittenCall] = []
    stack: list[tuple[str, list[tuple[str, Any]], str]] = []
    call: WrittenCall | None = None
    at = end = pos
    while text.startswith(_TOKEN, at):
        tag = _TAG.match(text, at + len(_TOKEN), limit)
        if tag is None:
            break
        after = text.find(_TOKEN, tag.end(), limit)
        body = text[tag.end() : after if after >= 0 else limit]
        name = tag["name"]
        if name == "tool_call":
            at = end = _next(text, tag.end(), body)
            continue
        if name == "invoke" and not stack:
            if tag["close"]:
                break
            call = WrittenCall((tag["value"] or "").strip(), {}, quoted=True, start=at)
            stack.append(("invoke", [], ""))
            if tag["empty"]:
                stack.clear()
                call.end = end = tag.end()
                found.append(call)
        elif not stack or call is None:
            break
        elif not tag["close"]:
            if len(stack) >= _MAX_DEPTH:
                raise Unreadable("nested too deeply", at)
            stack.append((tag["value"] if name == "parameter" and tag["value"] else name, [], body))
        else:
            _close(stack)
            if not stack:
                call.end = end = tag.end()
                found.append(call)
                call = None
        if call is not None and len(stack) == 1:
            call.arguments = _object(stack[0][1])
        at = tag.end() + len(body) if stack or not body.strip() else tag.end()
    if stack and not found and after_cut(text, at, limit):
        raise Unreadable("an element without an end", pos, cut=True)
    return (found, _next(text, end, text[end : end + 64])) if found else ([], pos)


def after_cut(text: str, at: int, limit: int) -> bool:
    """Whether reading stopped because the text did."""
    return at >= limit or not text.startswith(_TOKEN, at)


def _next(text: str, pos: int, body: str) -> int:
    return pos + len(body) - len(body.lstrip())


def _close(stack: list[tuple[str, list[tuple[str, Any]], str]]) -> None:
    name, children, body = stack.pop()
    if stack:
        stack[-1][1].append((name, _value(children, body)))


def _value(children: list[tuple[str, Any]], body: str) -> Any:
    if not children:
        return Raw(body)
    if all(name == "item" for name, _ in children):
        return [value for _, value in children]
    return _object(children)


def _object(children: list[tuple[str, Any]]) -> dict[str, Any]:
    """Elements as members; one name several times is a list."""
    made: dict[str, Any] = {}
    repeated: set[str] = set()
    for name, value in children:
        if name not in made:
            made[name] = value
        elif name in repeated:
            made[name].append(value)
        else:
            made[name] = [made[name], value]
            repeated.add(name)
    return made


FAMILIES = (
    Family(
        name="minimax-m3",
        models=("minimaxm3",),
        cues=(_TOKEN,),
        special=(re.escape(_TOKEN) + r"(?=<(?:tool_call|invoke)\b)",),
        thinks=(("<mm:think>", "</mm:think>"),),
        read=read_elements,
    ),
    Family(
        name="minimax-m2",
        models=("minimaxm2", "minimax"),
        cues=("<minimax:tool_call>",),
        special=(r"<minimax:tool_call>",),
    ),
    Family(name="minimax-m1", models=("minimaxm1",), cues=("MiniMax-M1",), tags=(r"<tool_calls>",)),
)
