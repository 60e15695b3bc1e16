"""The objects of an answer: what chat and generate, whole and streamed, have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import attrs

from velollm.api.arguments import arguments_object
from velollm.api.ollama.context import remember
from velollm.api.openai import Minter
from velollm.messages import ChatAnswer, ChatRequest, Choice, FinishReason, ResponseMeta, Timings, ToolCall, Usage

__all__ = [
    "Clock",
    "done_reason",
    "head",
    "metrics",
    "render_calls",
    "render_logprobs",
    "render_said",
    "render_whole",
    "rfc3339",
    "shows_thinking",
]

JSON: TypeAlias = dict[str, Any]

SECOND = 1_000_000_000


@attrs.frozen
class Clock:
    """Where ids and times come from; `monotonic` is the clock of the marks in a request's context, in seconds."""

    mint: Minter = attrs.field(factory=Minter)
    monotonic: Callable[[], float] = time.monotonic


def rfc3339(seconds: float) -> str:
    """A time in UTC; one that no calendar knows is the epoch."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):  # an engine's clock is not to be trusted
        moment = datetime.fromtimestamp(0, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def head(request: ChatRequest, meta: ResponseMeta | None, clock: Clock) -> JSON:
    """The leading fields. The model is called as the client calls it, for some compare the two."""
    created = meta.created if meta is not None and meta.created else clock.mint.clock()
    return {"model": request.model or (meta.model if meta else ""), "created_at": rfc3339(created)}


def shows_thinking(request: ChatRequest) -> bool:
    """Whether the client wants to see what the model thinks: not when it said no."""
    return request.think is not False


def done_reason(request: ChatRequest, finish: FinishReason | None) -> str:
    """Ollama's word for why the answer ended; a tool call is a natural end."""
    if request.asks_nothing:
        return "unload" if _unloads(request.keep_alive) else "load"
    return "length" if finish == "length" else "stop"


def _unloads(keep_alive: str | float | None) -> bool:
    if isinstance(keep_alive, str):
        return not any(digit in keep_alive for digit in "123456789")
    return keep_alive == 0


def metrics(usage: Usage | None, request: ChatRequest, now: float, first: float | None = None) -> JSON:
    """Counts, and durations in nanoseconds: the engine's own, else as they passed here up to `now`.

    `first` is when the first piece came: of an answer in one piece, its end. Clients divide by the durations, so all
    are there wherever the request's arrival is known, and the one that text takes is never 0.
    """
    timings = (usage.timings if usage is not None else None) or Timings()
    began = request.context.marks.get("received")
    first = request.context.marks.get("first_token", first)
    total = timings.total
    load, prefill, decode = timings.load, timings.prefill, timings.decode
    if began is not None:
        first = now if first is None else first
        total = now - began if total is None else total
        load = 0.0 if load is None else load
        if prefill is None and first is not None:
            prefill = first - began
    if decode is None and first is not None:
        decode = now - first
    seconds = {
        "total_duration": total,
        "load_duration": load,
        "prompt_eval_duration": prefill,
        "eval_duration": decode,
    }
    counts: JSON = {name: max(0, round(value * SECOND)) for name, value in seconds.items() if value is not None}
    if "eval_duration" in counts:
        counts["eval_duration"] = max(1, counts["eval_duration"])
    if usage is not None:
        counts["prompt_eval_count"] = usage.prompt_tokens
        counts["eval_count"] = usage.completion_tokens
    return counts


def render_calls(calls: list[ToolCall], mint: Minter, first: int = 0) -> list[JSON]:
    """Calls with arguments as objects; `first` is the index of the first of them."""
    return [
        {
            "id": call.id or mint.name("call_"),
            "function": {"index": first + place, "name": call.name, "arguments": arguments_object(call.arguments)},
        }
        for place, call in enumerate(calls)
    ]


def render_logprobs(logprobs: JSON | None) -> JSON:
    """The field `logprobs`: a plain list, absent when there are none."""
    content = (logprobs or {}).get("content")
    return {"logprobs": content} if isinstance(content, list) and content else {}


def render_whole(request: ChatRequest, answer: ChatAnswer, clock: Clock, *, chat: bool) -> JSON:
    """The one object of a whole answer; its first choice, for there is never another."""
    choice = answer.choices[0] if answer.choices else Choice()
    more: JSON = {"thinking": choice.reasoning} if choice.reasoning and shows_thinking(request) else {}
    if choice.tool_calls:
        more["tool_calls"] = render_calls(choice.tool_calls, clock.mint)
    body: JSON = {
        **head(request, answer.meta, clock),
        **render_said(choice.text, more, chat=chat),
        "done": True,
        "done_reason": done_reason(request, choice.finish_reason),
        **metrics(answer.usage, request, clock.monotonic()),
        **render_logprobs(choice.logprobs),
    }
    context = None if chat else remember(request, choice.text)
    if context is not None:
        body["context"] = context
    if request.context.trailer:
        body["velollm"] = request.context.trailer
    return body


def render_said(text: str, more: JSON, *, chat: bool) -> JSON:
    """Where the text stands, and `more` (thoughts, calls) beside it: in a message, or at the top."""
    return {"message": {"role": "assistant", "content": text, **more}} if chat else {"response": text, **more}
