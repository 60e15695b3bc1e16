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

RARE = frozenset(
    {
        "tools", "tool_choice", "functions", "function_call", "parallel_tool_calls", "response_format", "logprobs",
        "top_logprobs", "reasoning_effort", "reasoning", "chat_template_kwargs",
    }
)  # fmt: skip
KNOWN = SHARED | RARE - {"functions", "chat_template_kwargs"} | {"messages", "max_tokens", "max_completion_tokens"}


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
        fields = parse_shared(payload)
        conversation = Conversation(payload)
        plain = conversation.plain
        extra = rest(payload, KNOWN)
        if extra:
            check_passed_on(payload)
        if "extra" in fields:
            extra |= fields.pop("extra")
        if not RARE.isdisjoint(payload):
            plain = _read_rare(payload, fields, extra) and plain
        return ChatRequest(
            **fields,
            messages=conversation.turns,
            max_tokens=_max_tokens(payload),
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


def _read_rare(payload: JSON, fields: JSON, extra: JSON) -> bool:
    """Add to `fields` and `extra` what few requests have; whether an engine may get the original bytes."""
    tooling = parse_tooling(payload)
    fields["tools"], fields["tool_choice"] = tooling.tools, tooling.choice
    fields["parallel_tool_calls"] = get_bool(payload, "parallel_tool_calls")
    fields["think"] = parse_think(payload, extra)
    fields["response_format"] = response_format = parse_response_format(payload)
    if response_format is None and (payload.get("response_format") or {}).get("type") == "structural_tag":
        extra["response_format"] = payload["response_format"]
    fields |= _logprobs(payload)
    return tooling.plain


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
