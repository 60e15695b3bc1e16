"""The fields that chat and generate share: `options`, `format`, `think`, `keep_alive`, `stream`, `logprobs`.

`options` go into typed fields where there is one, and stay among the request's `options` where there is none.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from velollm.api.values import (
    at,
    fail,
    get_bool,
    get_int,
    get_number,
    get_object,
    get_str_list,
    kind,
    need_str,
    rest,
    unknown_value,
)
from velollm.messages import ResponseFormat

__all__ = ["SHARED", "extra_fields", "read_keep_alive", "read_shared"]

JSON: TypeAlias = dict[str, Any]

SHARED = frozenset({"model", "stream", "format", "options", "keep_alive", "think", "logprobs", "top_logprobs"})
EFFORTS = ("low", "medium", "high", "max")
DURATION = re.compile(
    r"[-+]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))*", re.ASCII
)
NUMBERS = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repeat_penalty")
TYPED = frozenset({*NUMBERS, "top_k", "seed", "stop", "num_predict"})
WHOLE = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "repeat_last_n", "mirostat")
PATH = "options"


def read_shared(payload: JSON) -> JSON:
    """Validated keyword arguments for `ChatRequest`, taken from the fields named in `SHARED`."""
    stream = get_bool(payload, "stream")
    return {
        "model": need_str(payload, "model", empty=False),
        "stream": True if stream is None else stream,
        "include_usage": True,
        "response_format": _format(payload.get("format")),
        "think": _think(payload.get("think")),
        "keep_alive": read_keep_alive(payload),
        "logprobs": get_bool(payload, "logprobs") or False,
        "top_logprobs": get_int(payload, "top_logprobs", low=0, high=20),
        **_options(payload),
    }


def extra_fields(payload: JSON, known: frozenset[str]) -> JSON:
    """The fields that are not `known`. Go reads names whatever their case, so `Model` would reach an Ollama as the
    model, though nothing here has looked at it: such spellings are refused."""
    found = rest(payload, known)
    for name in found:
        if name.casefold() in known:
            fail(name[:40], f"is not how this field is written: it is {name.casefold()!r}")
    return found


def read_keep_alive(payload: JSON) -> str | float | None:
    """A duration in Go's notation, or seconds (as a string, too); less than nothing is for ever."""
    value = payload.get("keep_alive")
    if value is None or (type(value) in (int, float)):
        return value
    if not isinstance(value, str):
        fail("keep_alive", f"must be a duration such as '5m' or a number of seconds, not {kind(value)}")
    if not value:
        return None
    if re.fullmatch(r"[-+]?\d{1,15}", value, re.ASCII):
        return int(value)
    if len(value) > 100 or not DURATION.fullmatch(value):
        fail("keep_alive", "must be a duration such as '5m' or '1h30m', or a number of seconds")
    return value


def _format(value: Any) -> ResponseFormat | None:
    if value is None or value == "":
        return None
    if isinstance(value, dict):
        return ResponseFormat(kind="json_schema", schema=value)
    if value != "json":
        fail("format", "must be 'json' or an object that is a JSON schema")
    return ResponseFormat(kind="json_object")


def _think(value: Any) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        fail("think", f"must be true, false, or one of {', '.join(EFFORTS)}, not {kind(value)}")
    if value not in EFFORTS:
        unknown_value("think", value, EFFORTS)
    return value


def _options(payload: JSON) -> JSON:
    options = get_object(payload, PATH) or {}
    limit = get_int(options, "num_predict", PATH)
    for name in WHOLE:
        get_int(options, name, PATH)
    found: JSON = {name: get_number(options, name, PATH) for name in NUMBERS}
    found["top_k"] = get_int(options, "top_k", PATH)
    found["seed"] = get_int(options, "seed", PATH)
    found["stop"] = get_str_list(options, "stop", PATH, lone=True) or []
    found["max_tokens"] = limit if limit is not None and limit > 0 else None  # 0 and less: until the model stops
    found["options"] = {key: value for key, value in options.items() if key not in TYPED and value is not None}
    if found["temperature"] is not None and found["temperature"] < 0:
        fail(at(PATH, "temperature"), "must be at least 0")
    return found
