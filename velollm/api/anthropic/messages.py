"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: the request."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from velollm.api.anthropic.answer import render_message
from velollm.api.anthropic.conversation import read_conversation
from velollm.api.anthropic.stream import MessageStream
from velollm.api.anthropic.tools import read_format, read_tool_choice, read_tools
from velollm.api.openai import Minter
from velollm.api.openai.sampling import ENGINE, parse_engine
from velollm.api.values import (
    fail,
    get_bool,
    get_choice,
    get_int,
    get_list,
    get_number,
    get_object,
    get_str,
    get_str_list,
    need_str,
    rest,
    unknown_value,
)
from velollm.errors import RequestError, UnsupportedError
from velollm.messages import ChatAnswer, ChatRequest, RequestContext, Source

__all__ = ["Messages", "parse_count_tokens", "render_count_tokens"]

JSON: TypeAlias = dict[str, Any]

WIRE = "anthropic.messages"
INT32 = 2**31 - 1  # what engines count in
THINKING = ("enabled", "disabled", "adaptive", "between_tools")
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
# Fields that configure Anthropic's own service. They are accepted, because clients always send some of them, and mean
# nothing to another engine; they travel in `source`.
SERVICE = frozenset(
    {
        "metadata", "service_tier", "inference_geo", "speed", "cache_control", "context_management", "diagnostics",
        "betas", "fallbacks", "fallback_credit_token", "billing_policy", "user_profile_id", "workspace_id", "container",
        "mcp_servers", "thread", "compaction",
    }
)  # fmt: skip
KNOWN = ENGINE | SERVICE | {
    "model", "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "stop_sequences", "stream", "tools",
    "tool_choice", "thinking", "output_config", "output_format",
}  # fmt: skip


class Messages:
    """The messages endpoint: always one answer, and always with usage."""

    wire: ClassVar[str] = WIRE
    dialect: ClassVar[str] = "anthropic"
    stream_type: ClassVar[str] = "text/event-stream"

    def __init__(self, mint: Minter | None = None) -> None:
        self._mint = mint or Minter()

    def parse(self, payload: JSON, body: bytes, context: RequestContext) -> ChatRequest:
        """Validate and translate; `max_tokens` must be there, as with Anthropic."""
        if payload.get("max_tokens") is None:
            fail("max_tokens", "is required and must be an integer of at least 1")
        return _parse(payload, body, context)

    def render(self, request: ChatRequest, answer: ChatAnswer) -> JSON:
        """The `message` object."""
        return render_message(request, answer, self._mint)

    def stream(self, request: ChatRequest) -> MessageStream:
        """A renderer of the events from `message_start` to `message_stop`."""
        return MessageStream(request, self._mint)


def parse_count_tokens(payload: JSON, body: bytes, context: RequestContext) -> ChatRequest:
    """The prompt whose tokens are to be counted: a request for an answer, less `max_tokens`."""
    return _parse(payload, body, context)


def render_count_tokens(count: int) -> JSON:
    """The answer of count_tokens."""
    return {"input_tokens": count}


def _parse(payload: JSON, body: bytes, context: RequestContext) -> ChatRequest:
    _refuse_stateful(payload)
    tools = read_tools(payload)
    choice, parallel = read_tool_choice(payload, tools)
    user = _user(payload)
    if user and context.session is None:
        context.session = user
    return ChatRequest(
        model=need_str(payload, "model", empty=False),
        messages=read_conversation(payload),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=read_format(payload),
        max_tokens=get_int(payload, "max_tokens", low=1, high=INT32),
        temperature=get_number(payload, "temperature", low=0, high=1),
        top_p=get_number(payload, "top_p", low=0, high=1),
        top_k=get_int(payload, "top_k", low=0, high=INT32),
        stop=_stops(payload),
        think=_think(payload),
        stream=get_bool(payload, "stream") or False,
        include_usage=True,
        user=user,
        extra=rest(payload, KNOWN),
        source=Source(wire=WIRE, body=body, payload=payload),
        context=context,
        **parse_engine(payload),
    )


def _refuse_stateful(payload: JSON) -> None:
    """What would need state or tools on the server: to ignore it would lose half of the conversation silently."""
    if payload.get("thread") is not None:
        raise RequestError(
            "thread is not supported: no conversations are kept here; send all messages and tools, without thread",
            param="thread",
            code="thread_unsupported_request",
            details={"error_code": "thread_unsupported_request", "unsupported": []},
        )
    elsewhere = {
        "mcp_servers": bool(get_list(payload, "mcp_servers")),
        "container": payload.get("container") is not None,
    }
    for name, given in elsewhere.items():
        if given:
            raise UnsupportedError(
                f"{name} is not supported: it names something on Anthropic's servers; leave it out", param=name
            )
    get_object(payload, "context_management")
    get_str(payload, "service_tier")


def _user(payload: JSON) -> str | None:
    metadata = get_object(payload, "metadata") or {}
    return get_str(metadata, "user_id", "metadata")


def _stops(payload: JSON) -> list[str]:
    stops = get_str_list(payload, "stop_sequences") or []
    if "" in stops:
        fail("stop_sequences", "must not hold an empty string: leave it out")
    return stops


def _think(payload: JSON) -> bool | str | None:
    """Thinking is off unless asked for; `adaptive` without an effort leaves it to the engine."""
    config = get_object(payload, "output_config") or {}
    effort = get_choice(config, "effort", tuple(EFFORTS), "output_config")
    thinking = get_object(payload, "thinking")
    if thinking is None:
        return False
    mode = need_str(thinking, "type", "thinking")
    if mode not in THINKING:
        unknown_value("thinking.type", mode, THINKING)
    get_choice(thinking, "display", ("summarized", "omitted"), "thinking")
    if mode == "enabled" and get_int(thinking, "budget_tokens", "thinking", low=1, high=INT32) is None:
        fail("thinking.budget_tokens", "is required and must be an integer of at least 1")
    if mode == "disabled":
        return False
    if effort is not None:
        return EFFORTS[effort]
    return True if mode == "enabled" else None
