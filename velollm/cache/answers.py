"""Answers as they are kept, OpenAI's chat completion, and the events that they are replayed as.

What belongs to one occasion is left out: ids, times, how fast the engine was. A replay gets its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

from velollm.messages import (
    ChatAnswer,
    ChatEvent,
    Choice,
    FinishReason,
    ResponseMeta,
    ToolCallDelta,
    Usage,
)

__all__ = ["BadAnswer", "keep_answer", "replay_answer"]

JSON: TypeAlias = dict[str, Any]

_FINISH: Final = frozenset({"stop", "tool_calls"})
_LONG: Final = 1 << 16
_PIECE: Final = re.compile(r".{1,400}(?:\s|\Z)|.{1,400}", re.DOTALL)


class BadAnswer(ValueError):
    """A stored value that is not an answer of this version: what another program wrote into a shared store."""


def keep_answer(answer: ChatAnswer) -> JSON:
    """The stored form of an answer."""
    kept: JSON = {
        "object": "chat.completion",
        "model": answer.meta.model,
        "choices": [_keep_choice(choice) for choice in answer.choices],
    }
    usage = answer.usage
    if usage is not None:
        kept["usage"] = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        }
    return kept


def _keep_choice(choice: Choice) -> JSON:
    message: JSON = {"role": "assistant", "content": choice.text}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    kept: JSON = {"index": choice.index, "message": message, "finish_reason": choice.finish_reason}
    if choice.stop_sequence is not None:
        kept["stop_sequence"] = choice.stop_sequence
    if choice.logprobs is not None:
        kept["logprobs"] = choice.logprobs
    return kept


def replay_answer(kept: Mapping[str, Any], *, in_pieces: bool) -> list[ChatEvent]:
    """The events of a stored answer; `in_pieces` cuts its text as a stream would bring it. Raises BadAnswer."""
    try:
        events = [event for choice in kept["choices"] for event in _replay_choice(choice, in_pieces)]
        events[0].meta = ResponseMeta(model=_text(kept.get("model", "")))
        if kept.get("usage") is not None:
            events[-1].usage = _usage(kept["usage"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadAnswer(f"{type(error).__name__}: {error}") from error
    return events


def _replay_choice(choice: Mapping[str, Any], in_pieces: bool) -> Iterator[ChatEvent]:
    index, message, finish = choice["index"], choice["message"], choice["finish_reason"]
    if type(index) is not int or finish not in _FINISH:
        raise TypeError("choice")
    for part in _pieces(message.get("reasoning_content") or "", in_pieces):
        yield ChatEvent(reasoning=part, index=index)
    for part in _pieces(message.get("content") or "", in_pieces):
        yield ChatEvent(text=part, index=index)
    for number, call in enumerate(message.get("tool_calls") or ()):
        yield ChatEvent(tool_calls=(_call(number, call),), index=index)
    stop, logprobs = choice.get("stop_sequence"), choice.get("logprobs")
    yield ChatEvent(
        finish_reason=cast("FinishReason", finish),
        index=index,
        stop_sequence=None if stop is None else _text(stop),
        logprobs=dict(logprobs) if logprobs is not None else None,
    )


def _pieces(text: object, in_pieces: bool) -> list[str]:
    whole = _text(text)
    if not whole:
        return []
    if not in_pieces:
        return [whole]
    if len(whole) > _LONG:  # nobody reads along: what counts is that it is done soon
        return [whole[start : start + _LONG] for start in range(0, len(whole), _LONG)]
    return _PIECE.findall(whole)


def _call(number: int, call: Mapping[str, Any]) -> ToolCallDelta:
    function = call["function"]
    return ToolCallDelta(
        index=number, id=_text(call["id"]), name=_text(function["name"]), arguments=_text(function["arguments"])
    )


def _usage(kept: Mapping[str, Any]) -> Usage:
    counts = [kept.get(name) for name in ("prompt_tokens", "completion_tokens", "reasoning_tokens")]
    if not all(count is None or type(count) is int for count in counts):
        raise TypeError("usage")
    return Usage(prompt_tokens=counts[0] or 0, completion_tokens=counts[1] or 0, reasoning_tokens=counts[2])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value
