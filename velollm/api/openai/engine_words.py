"""What engines say around the text: why they stopped, what they counted, who they are, what went wrong. No I/O."""

from __future__ import annotations

from typing import Any, TypeAlias

from velollm.errors import BackendProtocolError, BackendRefused, ContextLengthExceeded, VeloError
from velollm.messages import FinishReason, ResponseMeta, Timings, Usage

__all__ = [
    "AS_THEY_ARE",
    "finish_reason",
    "has_identity",
    "in_band_error",
    "is_too_long",
    "read_meta",
    "read_usage",
    "stop_string",
    "text_of",
]

JSON: TypeAlias = dict[str, Any]

FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "tool_call": "tool_calls",
    "max_tokens": "length",
}
AS_THEY_ARE = frozenset({"stop", "length", "tool_calls", "content_filter"})
BROKEN = frozenset({"abort", "error", "cancelled", "canceled"})
LONGEST_MESSAGE = 2000


def finish_reason(word: Any, backend: str) -> FinishReason | None:
    """The house's word for the engine's; engines invent new ones for a natural end (`eos`, `eos_token`, `end_turn`)."""
    if not word:
        return None
    if not isinstance(word, str):
        raise TypeError("finish_reason")
    if word in BROKEN:
        raise BackendProtocolError(f"{backend} broke off its answer", backend=backend)
    return FINISH.get(word, "stop")


def read_meta(answer: JSON) -> ResponseMeta:
    """Id, model and time of an answer, as far as they have the right types."""
    created = answer.get("created")
    fingerprint = answer.get("system_fingerprint")
    return ResponseMeta(
        id=_word(answer.get("id")),
        model=_word(answer.get("model")),
        created=created if type(created) is int else 0,
        extra={"system_fingerprint": fingerprint} if isinstance(fingerprint, str) else {},
    )


def has_identity(answer: JSON, kind: str) -> bool:
    """Whether an answer or a chunk has the fields that every object of its `kind` must have."""
    return (
        answer.get("object") == kind
        and type(answer.get("created")) is int
        and _word(answer.get("id")) != ""
        and _word(answer.get("model")) != ""
    )


def in_band_error(error: Any, backend: str) -> VeloError:
    """The error that an engine reports inside an answer whose status was 200."""
    fields = error if isinstance(error, dict) else {"message": error}
    message = fields.get("message")
    code = fields.get("code")
    status = code if type(code) is int and 400 <= code < 600 else 502
    text = message if isinstance(message, str) and message else "the engine reported an error"
    if is_too_long(text, fields):
        return ContextLengthExceeded(text[:LONGEST_MESSAGE])
    return BackendRefused(f"{backend}: {text[:LONGEST_MESSAGE]}", backend=backend, status=status)


def is_too_long(message: str, fields: JSON) -> bool:
    """Whether an error says that the prompt does not fit, in the words of OpenAI, llama-server, vLLM or SGLang."""
    if fields.get("type") == "exceed_context_size_error" or fields.get("code") == "context_length_exceeded":
        return True
    words = message.lower()
    return "maximum context length" in words or "context size" in words or "context length" in words


def read_usage(answer: JSON) -> Usage | None:
    """Counts of a chunk or an answer: OpenAI's `usage`, or llama-server's `timings` at a stream's end.

    None when there are none, or when they only repeat zeros beside the text as LocalAI's chunks do.
    """
    usage, timings = answer.get("usage"), answer.get("timings")
    if isinstance(usage, dict):
        found = _usage(usage)
        if answer.get("choices") and not (found.prompt_tokens or found.completion_tokens):
            return None
    elif isinstance(timings, dict) and answer.get("choices") == []:
        found = Usage(
            prompt_tokens=_count(timings, "prompt_n") + _count(timings, "cache_n"),
            completion_tokens=_count(timings, "predicted_n"),
        )
    else:
        return None
    if isinstance(timings, dict):
        found.timings = Timings(prefill=_seconds(timings, "prompt_ms"), decode=_seconds(timings, "predicted_ms"))
        if found.cached_tokens is None and "cache_n" in timings:
            found.cached_tokens = _count(timings, "cache_n")
    return found


def _usage(usage: JSON) -> Usage:
    found = Usage(prompt_tokens=_count(usage, "prompt_tokens"), completion_tokens=_count(usage, "completion_tokens"))
    if "prompt_tokens_details" in usage:
        found.cached_tokens = _detail(usage["prompt_tokens_details"], "cached_tokens")
    if "completion_tokens_details" in usage:
        found.reasoning_tokens = _detail(usage["completion_tokens_details"], "reasoning_tokens")
    return found


def _detail(details: Any, key: str) -> int | None:
    return _count(details, key) if isinstance(details, dict) and details.get(key) is not None else None


def _count(source: JSON, key: str) -> int:
    value = source.get(key)
    return value if type(value) is int and value > 0 else 0


def _seconds(source: JSON, key: str) -> float | None:
    value = source.get(key)
    return value / 1000 if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def text_of(value: Any) -> str:
    """A string that may be missing; raises `TypeError` for anything else."""
    if value is None:
        return ""
    if type(value) is not str:
        raise TypeError("text")
    return value


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def stop_string(choice: JSON) -> str | None:
    """The stop string that ended a choice, if the engine says so: vLLM in `stop_reason`, SGLang in `matched_stop`."""
    word = choice.get("stop_reason") or choice.get("matched_stop")
    return word if isinstance(word, str) else None
