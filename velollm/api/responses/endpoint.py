"""`POST /v1/responses`, and `POST /v1/responses/input_tokens`, which counts: the request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

from velollm.api.openai import Minter
from velollm.api.openai.sampling import ENGINE, parse_engine
from velollm.api.responses.answer import render_response
from velollm.api.responses.items import read_input
from velollm.api.responses.stream import ResponseStream
from velollm.api.responses.tools import read_format, read_tooling
from velollm.api.values import (
    at,
    expect_str,
    get_bool,
    get_choice,
    get_int,
    get_number,
    get_object,
    get_str,
    get_str_list,
    rest,
)
from velollm.errors import RequestError, UnsupportedError
from velollm.messages import ChatAnswer, ChatRequest, RequestContext, Source

__all__ = ["Responses", "render_input_tokens"]

JSON: TypeAlias = dict[str, Any]

INT32 = 2**31 - 1  # what engines count in
INT64 = 2**63 - 1
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SUMMARIES = ("auto", "concise", "detailed")
LOGPROBS = "message.output_text.logprobs"
STATEFUL = {
    "previous_response_id": "send the whole conversation as `input` instead",
    "conversation": "send the whole conversation as `input` instead",
    "prompt": "stored prompts do not exist; send `instructions` and `input` instead",
}
# Fields that are checked and echoed, or that configure OpenAI's own service; they travel in `source`.
CHECKED: dict[str, Callable[[JSON, str], object]] = {
    **dict.fromkeys(("safety_identifier", "service_tier", "prompt_cache_key", "prompt_cache_retention"), get_str),
    **dict.fromkeys(("store", "background"), get_bool),
    **dict.fromkeys(
        ("stream_options", "moderation", "prompt_cache_options", "background_options", "image"), get_object
    ),
}
KNOWN = ENGINE | CHECKED.keys() | STATEFUL.keys() | {
    "model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "include",
    "max_output_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty",
    "frequency_penalty", "top_logprobs", "metadata", "truncation", "user", "stream", "context_management",
    "access_programs", "max_tool_calls",
}  # fmt: skip


class Responses:
    """The responses endpoint. What needs a memory (`previous_response_id`, `background`, ...) is refused by name."""

    wire: ClassVar[str] = "openai.responses"
    dialect: ClassVar[str] = "openai"
    stream_type: ClassVar[str] = "text/event-stream"

    def __init__(self, mint: Minter | None = None) -> None:
        self._mint = mint or Minter()

    def parse(self, payload: JSON, body: bytes, context: RequestContext) -> ChatRequest:
        """Validate and translate."""
        _check(payload)
        tools, choice = read_tooling(payload)
        if context.session is None:
            context.session = get_str(payload, "prompt_cache_key")
        return ChatRequest(
            model=get_str(payload, "model") or "",
            messages=read_input(payload),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=get_bool(payload, "parallel_tool_calls"),
            response_format=read_format(payload),
            max_tokens=get_int(payload, "max_output_tokens", low=1, high=INT32),
            think=_think(payload),
            stream=get_bool(payload, "stream") or False,
            include_usage=True,
            user=get_str(payload, "user"),
            extra=rest(payload, KNOWN),
            source=Source(wire=self.wire, body=body, payload=payload),
            context=context,
            **_sampling(payload),
            **parse_engine(payload),
        )

    def render(self, request: ChatRequest, answer: ChatAnswer) -> JSON:
        """The `response` object."""
        return render_response(request, answer, self._mint)

    def stream(self, request: ChatRequest) -> ResponseStream:
        """A renderer of the events from `response.created` to `response.completed`."""
        return ResponseStream(request, self._mint)


def render_input_tokens(count: int) -> JSON:
    """The answer of input_tokens."""
    return {"object": "response.input_tokens", "input_tokens": count}


def _check(payload: JSON) -> None:
    for key, advice in STATEFUL.items():
        if payload.get(key) is not None:
            raise RequestError(f"{key} is not supported: nothing is stored here; {advice}", param=key)
    for key in CHECKED.keys() & payload.keys():
        CHECKED[key](payload, key)
    if payload.get("background"):
        raise UnsupportedError("background is not supported: answers are not stored; use `stream`", param="background")
    get_int(payload, "max_tool_calls", low=0, high=INT32)
    get_choice(payload, "truncation", ("auto", "disabled"))
    metadata = get_object(payload, "metadata") or {}
    for key, value in metadata.items():
        expect_str(value, at("metadata", key[:64]))


def _sampling(payload: JSON) -> JSON:
    """Also the fields that local engines take beside OpenAI's."""
    top = get_int(payload, "top_logprobs", low=0, high=20)
    include = get_str_list(payload, "include") or []
    return {
        "temperature": get_number(payload, "temperature", low=0, high=2),
        "top_p": get_number(payload, "top_p", low=0, high=1),
        "top_k": get_int(payload, "top_k", low=-1, high=INT32),
        "min_p": get_number(payload, "min_p", low=0, high=1),
        "seed": get_int(payload, "seed", low=-INT64, high=INT64),
        "stop": get_str_list(payload, "stop", lone=True) or [],
        "presence_penalty": get_number(payload, "presence_penalty", low=-2, high=2),
        "frequency_penalty": get_number(payload, "frequency_penalty", low=-2, high=2),
        "logprobs": LOGPROBS in include or bool(top),
        "top_logprobs": top,
    }


def _think(payload: JSON) -> bool | str | None:
    reasoning = get_object(payload, "reasoning")
    if reasoning is None:
        return None
    effort = get_choice(reasoning, "effort", EFFORTS, "reasoning")
    for key in ("summary", "generate_summary"):
        get_choice(reasoning, key, SUMMARIES, "reasoning")
    return False if effort == "none" else effort
