"""`fix`: a model's raw answer, or a backend's broken calls, in; calls that validate, and the text beside them, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import orjson

from velollm.toolcalls.gate import Gate
from velollm.toolcalls.reading import Answer
from velollm.toolcalls.result import Call, FixError, FixResult
from velollm.toolcalls.source import Source
from velollm.toolcalls.structured import settle_structured
from velollm.toolcalls.tools import ToolSet, compile_tools

__all__ = ["Mode", "fix", "left_to_say", "read_answer", "settle_calls", "twin_mark"]

Mode = Literal["repair", "strict"]


def fix(
    text_or_calls: str | Iterable[Any] | None,
    tools: Any,
    finish_reason: str | None = None,
    *,
    dedupe: bool = True,
    family: str | None = None,
    mode: Mode = "repair",
) -> FixResult:
    """Read the tool calls of one answer.

    `text_or_calls` is raw text, or a list of calls as OpenAI (`function.arguments` as text) or Ollama (as an object)
    write them. `tools` is the request's list; without tools there are no calls. `finish_reason="length"` says the
    answer was cut: then no closing bracket is supplied. `family` is a hint and never needed. `mode="strict"` takes
    native markup, but nothing that needs repair. `dedupe=False` keeps a call that is repeated word for word.

    Never raises on what a model wrote, or on a broken tool schema; `check_tools` is there for the latter.
    """
    compiled = compile_tools(tools)
    if text_or_calls is None:
        return FixResult()
    if isinstance(text_or_calls, bytes | bytearray):
        text_or_calls = bytes(text_or_calls).decode("utf-8", "replace")
    if not isinstance(text_or_calls, str):
        cut = finish_reason == "length"
        return settle_calls(text_or_calls, compiled, cut=cut, dedupe=dedupe, mode=mode)
    if not compiled or not text_or_calls:
        return FixResult(content=text_or_calls or None)
    flowed = len(Gate(compiled).feed(text_or_calls))
    return read_answer(text_or_calls, flowed, compiled, finish_reason, dedupe=dedupe, mode=mode)


def read_answer(
    text: str, flowed: int, tools: ToolSet, finish_reason: str | None, *, dedupe: bool = True, mode: Mode = "repair"
) -> FixResult:
    """The result for `text`, of which the first `flowed` characters are certainly content."""
    if not text[flowed:].strip():
        return FixResult(content=text)
    answer = Answer(Source(text, tools, cut=finish_reason == "length"), flowed)
    answer.read()
    calls, content = answer.judge()
    if mode == "strict" and answer.repairs:
        calls, content = [], None
        answer.errors.append(_needs_repair(answer.repairs))
    if not calls:
        return FixResult(content=text, errors=answer.errors, reasoning=answer.reasoning)
    calls = _without_twins(calls, answer.repairs) if dedupe else calls
    return FixResult(
        calls=calls, content=content, errors=answer.errors, repairs=+answer.repairs, reasoning=answer.reasoning
    )


def left_to_say(content: str | None, flowed: str) -> str:
    """What of `content` has not flowed yet. What flowed may have been reasoning: then all of it is still to be said."""
    content = content or ""
    for said in (flowed, flowed.rstrip()):
        if content.startswith(said):
            return content[len(said) :]
    return content


def _needs_repair(repairs: Counter[str]) -> FixError:
    return FixError(kind="needs_repair", message=f"the calls need repair: {', '.join(sorted(repairs))}")


def settle_calls(given: Iterable[Any], tools: ToolSet, *, cut: bool, dedupe: bool, mode: Mode) -> FixResult:
    """The result for calls that a backend has taken apart already; `cut`: the answer ended at the limit of tokens."""
    if isinstance(given, dict):
        given = [given]
    repairs: Counter[str] = Counter()
    if not tools:
        return FixResult(errors=[FixError(kind="unknown_tool", message="the request has no tools") for _ in given])
    calls, errors = settle_structured(given, tools, cut, repairs)
    if mode == "strict" and repairs:
        return FixResult(errors=[*errors, _needs_repair(repairs)])
    if dedupe:
        calls = _without_twins(calls, repairs)
    return FixResult(calls=calls, errors=errors, repairs=+repairs)


def _without_twins(calls: list[Call], repairs: Counter[str]) -> list[Call]:
    """Rule 12: of identical calls, the first."""
    if len(calls) < 2:
        return calls
    seen: set[tuple[str, bytes | str]] = set()
    kept: list[Call] = []
    for call in calls:
        mark = twin_mark(call)
        if mark in seen:
            repairs["duplicate_dropped"] += 1
            continue
        seen.add(mark)
        kept.append(call)
    return kept


def twin_mark(call: Call) -> tuple[str, bytes | str]:
    """What two calls share that say the same."""
    try:
        return call.name, orjson.dumps(call.arguments, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError):
        return call.name, repr(sorted(call.arguments.items(), key=lambda item: item[0]))
