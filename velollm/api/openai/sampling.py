"""The fields that chat and completion requests share: sampling, streaming, reasoning, and engines' extensions."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any, TypeAlias

from velollm.api.values import (
    at,
    expect_object,
    fail,
    get_bool,
    get_choice,
    get_int,
    get_number,
    get_object,
    get_str,
    get_str_list,
    kind,
)

__all__ = ["ENGINE", "SHARED", "check_passed_on", "parse_engine", "parse_shared", "parse_think"]

JSON: TypeAlias = dict[str, Any]
Reader: TypeAlias = Callable[[JSON, str], Any]

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
MOST_CHOICES = 128
MOST_STOPS = 16  # OpenAI takes 4; local engines take any number

ENGINE = frozenset({"keep_alive", "options", "num_ctx"})
SHARED = ENGINE | frozenset(
    {
        "model", "stream", "stream_options", "n", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
        "frequency_penalty", "presence_penalty", "repeat_penalty", "repetition_penalty", "logit_bias", "user",
    }
)  # fmt: skip
PASSED_ON: dict[str, Callable[[JSON, str], object]] = {
    "store": get_bool,
    "modalities": get_str_list,
    **dict.fromkeys(("safety_identifier", "service_tier", "prompt_cache_key", "prompt_cache_retention"), get_str),
    **dict.fromkeys(("metadata", "audio", "prediction", "web_search_options", "chat_template_kwargs"), get_object),
}


def parse_shared(payload: JSON) -> JSON:
    """Validated keyword arguments for `ChatRequest`, taken from the fields named in `SHARED` that are there."""
    fields: JSON = {}
    for key in payload:  # most requests have few of all the fields there are
        read = READERS.get(key)
        if read is not None:
            value = read(payload, key)
            if value is not None:
                fields[key] = value
    if not RARE.isdisjoint(payload):
        fields |= _rare(payload)
    return fields


def _rare(payload: JSON) -> JSON:
    include_usage, extra = _stream_options(payload)
    fields: JSON = {"include_usage": include_usage, **parse_engine(payload)}
    if extra:
        fields["extra"] = extra
    fields["repeat_penalty"] = _repeat_penalty(payload)
    fields["logit_bias"] = _logit_bias(payload)
    return fields


def _stop(payload: JSON, key: str) -> list[str] | None:
    stops = get_str_list(payload, key, lone=True, max_length=MOST_STOPS)
    if stops and "" in stops:  # engines would stop at once
        fail(key, "must not hold an empty string: leave it out")
    return stops


def _number(low: float, high: float | None = None) -> Reader:
    return lambda payload, key: get_number(payload, key, low=low, high=high)


def _integer(low: int | None = None, high: int | None = None) -> Reader:
    return lambda payload, key: get_int(payload, key, low=low, high=high)


READERS: dict[str, Reader] = {
    "model": get_str,
    "stream": get_bool,
    "n": _integer(1, MOST_CHOICES),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _integer(-1),
    "min_p": _number(0, 1),
    "seed": _integer(),
    "stop": _stop,
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "user": get_str,
}
RARE = SHARED - READERS.keys()


def parse_engine(payload: JSON) -> JSON:
    """`keep_alive` and `options`, Ollama's fields, which its users send through `extra_body`."""
    return {"keep_alive": _keep_alive(payload), "options": _options(payload)}


def _stream_options(payload: JSON) -> tuple[bool, JSON]:
    options = get_object(payload, "stream_options")
    if options is None:
        return False, {}
    include_usage = get_bool(options, "include_usage", "stream_options") or False
    more = {key: value for key, value in options.items() if key != "include_usage"}
    return include_usage, {"stream_options": more} if more else {}


def _repeat_penalty(payload: JSON) -> float | None:
    penalty = get_number(payload, "repeat_penalty", low=0)
    return get_number(payload, "repetition_penalty", low=0) if penalty is None else penalty


def _logit_bias(payload: JSON) -> dict[str, float] | None:
    bias = get_object(payload, "logit_bias") or {}
    if all(type(value) in (int, float) and -100 <= value <= 100 for value in bias.values()):  # it may be long
        return bias or None
    for token in bias:
        if get_number(bias, token, "logit_bias", low=-100, high=100) is None:
            fail(at("logit_bias", token[:20]), "must be a number")
    return bias


def _keep_alive(payload: JSON) -> str | float | None:
    value = payload.get("keep_alive")
    if isinstance(value, bool) or not isinstance(value, (str, int, float, NoneType)):
        fail("keep_alive", f"must be a duration such as '5m' or a number of seconds, not {kind(value)}")
    return value


def _options(payload: JSON) -> JSON:
    options = dict(get_object(payload, "options") or {})
    num_ctx = get_int(payload, "num_ctx", low=1)
    if num_ctx is not None:
        options["num_ctx"] = num_ctx
    return options


def parse_think(payload: JSON, extra: JSON) -> bool | str | None:
    """Whether and how hard to reason, from `reasoning_effort`, `reasoning` or the chat template's own switch.

    What is said beyond that stays in `extra`.
    """
    effort = get_choice(payload, "reasoning_effort", EFFORTS)
    reasoning = payload.get("reasoning")
    if reasoning is not None:
        fields = expect_object(reasoning, "reasoning")
        effort = effort or get_choice(fields, "effort", EFFORTS, "reasoning")
        enabled = get_bool(fields, "enabled", "reasoning")
        if more := {key: value for key, value in fields.items() if key not in ("effort", "enabled")}:
            extra["reasoning"] = more
        if effort is None and enabled is not None:
            return enabled
    if effort is not None:
        return False if effort == "none" else effort
    template = get_object(payload, "chat_template_kwargs") or {}
    for key in ("enable_thinking", "thinking"):
        if isinstance(template.get(key), bool):
            return bool(template[key])
    return None


def check_passed_on(payload: JSON) -> None:
    """Check the types of known fields that no typed field represents; they travel in `extra`."""
    for key in PASSED_ON.keys() & payload.keys():
        PASSED_ON[key](payload, key)
    get_choice(payload, "verbosity", ("low", "medium", "high"))
