"""`POST /v1/chat/completions`: the request."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from velollm.api.openai.chat_answer import ChatStream, render_chat
from velollm.api.openai.conversation import Conversation
from velollm.api.openai.identity import Minter
from velollm.api.openai.sampling import SHARED, check_passed_on, parse_shared, parse_think
from velollm.api.openai.tools import parse_response_format, parse_tooling
from velollm.api.values import fail, get_bool, get_int, rest
from velollm.messages import ChatAnswer, ChatRequest, RequestContext, Source

__all__ = ["ChatCompletions"]

JSON: TypeAlias = dict[str, Any]

KNOWN = SHARED | {
    "messages", "tools", "tool_choice", "function_call", "parallel_tool_calls", "response_format", "max_tokens",
    "max_completion_tokens", "logprobs", "top_logprobs", "reasoning_effort", "reasoning",
}  # fmt: skip


class ChatCompletions:
    """The chat endpoint. Reasoning comes out as `reasoning_content`, the one word that all clients read.

    (Both `reasoning_content` and `reasoning` would appear twice in clients that read either, such as openai-agents.)
    """

    wire: ClassVar[str] = "openai.chat"
    dialect: ClassVar[str] = "openai"
    stream_type: ClassVar[str] = "text/event-stream"

    def __init__(self, mint: Minter | None = None) -> None:
        self._mint = mint or Minter()

    def parse(self, payload: JSON, body: bytes, context: RequestContext) -> ChatRequest:
        """Validate and translate; unknown fields and those that no typed field represents go to `extra`."""
        shared = parse_shared(payload)
        conversation = Conversation(payload)
        tooling = parse_tooling(payload)
        check_passed_on(payload)
        extra = {**rest(payload, KNOWN), **shared.pop("extra")}
        think = parse_think(payload, extra)
        response_format = parse_response_format(payload)
        if response_format is None and (payload.get("response_format") or {}).get("type") == "structural_tag":
            extra["response_format"] = payload["response_format"]
        plain = conversation.plain and tooling.plain
        return ChatRequest(
            **shared,
            **_logprobs(payload),
            messages=conversation.turns,
            tools=tooling.tools,
            tool_choice=tooling.choice,
            parallel_tool_calls=get_bool(payload, "parallel_tool_calls"),
            response_format=response_format,
            max_tokens=_max_tokens(payload),
            think=think,
            extra=extra,
            source=Source(wire=self.wire, body=body, payload=payload) if plain else None,
            context=context,
        )

    def render(self, request: ChatRequest, answer: ChatAnswer) -> JSON:
        """The `chat.completion` object."""
        return render_chat(request, answer, self._mint)

    def stream(self, request: ChatRequest) -> ChatStream:
        """A renderer of `chat.completion.chunk` objects."""
        return ChatStream(request, self._mint)


def _max_tokens(payload: JSON) -> int | None:
    older = get_int(payload, "max_tokens", low=1)
    newer = get_int(payload, "max_completion_tokens", low=1)
    return older if newer is None else newer


def _logprobs(payload: JSON) -> JSON:
    wanted = get_bool(payload, "logprobs") or False
    top = get_int(payload, "top_logprobs", low=0, high=20)
    if top and not wanted:
        fail("top_logprobs", "needs logprobs to be true")
    return {"logprobs": wanted, "top_logprobs": top}
