"""The `message` object, and what the stream has in common with it: stop reasons, usage, signatures, ids."""

from __future__ import annotations

import base64
import hashlib
from typing import Any, TypeAlias

from velollm.api.arguments import arguments_object
from velollm.api.openai import Minter
from velollm.messages import ChatAnswer, ChatRequest, Choice, FinishReason, ResponseMeta, ToolCall, Usage

__all__ = ["Signer", "message_head", "render_message", "render_usage", "shows_thinking", "stop_reason", "tool_id"]

JSON: TypeAlias = dict[str, Any]

STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def shows_thinking(request: ChatRequest) -> bool:
    """Whether the client wants to see what the model thinks: not unless it asked, and not with display `omitted`."""
    if request.think is False:
        return False
    thinking = request.source.payload.get("thinking") if request.source is not None else None
    return not isinstance(thinking, dict) or thinking.get("display") != "omitted"


def stop_reason(finish: FinishReason | None, stop_sequence: str | None, called: bool) -> str:
    """Anthropic's word for why the answer ended."""
    if called and finish == "stop":
        return "tool_use"
    if stop_sequence is not None and finish == "stop":
        return "stop_sequence"
    return STOP.get(finish or "stop", "end_turn")


def render_usage(usage: Usage | None) -> JSON:
    """Counts as Anthropic defines them: `input_tokens` are those of the prompt that were not found in a cache."""
    usage = usage or Usage()
    cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
    counts: JSON = {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens is not None:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counts


def message_head(request: ChatRequest, meta: ResponseMeta | None, mint: Minter) -> JSON:
    """The leading fields of the message, its id the engine's own where it is one of this dialect."""
    meta = meta or ResponseMeta()
    name = meta.id if meta.id.startswith("msg_") else mint.name("msg_")
    return {"id": name, "type": "message", "role": "assistant", "model": meta.model or request.model}


def tool_id(given: str | None, mint: Minter) -> str:
    """The engine's id of a call, or a new one."""
    return given or mint.name("toolu_")


class Signer:
    """The `signature` of a thinking block: a digest of its text, for clients that want one that is not empty."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=24)

    def add(self, text: str) -> None:
        """Take in a piece of the text."""
        self._hash.update(text.encode())

    def signature(self) -> str:
        """The signature of all pieces."""
        return base64.b64encode(self._hash.digest()).decode()


def render_message(request: ChatRequest, answer: ChatAnswer, mint: Minter) -> JSON:
    """The `message` of a complete answer; its first choice, for there is never another."""
    choice = answer.choices[0] if answer.choices else Choice()
    reason = stop_reason(choice.finish_reason, choice.stop_sequence, bool(choice.tool_calls))
    body: JSON = {
        **message_head(request, answer.meta, mint),
        "content": _content(choice, shows_thinking(request), mint),
        "stop_reason": reason,
        "stop_sequence": choice.stop_sequence if reason == "stop_sequence" else None,
        "usage": render_usage(answer.usage),
    }
    if request.context.trailer:
        body["velollm"] = request.context.trailer
    return body


def _content(choice: Choice, thinking: bool, mint: Minter) -> list[JSON]:
    content: list[JSON] = []
    if choice.reasoning and thinking:
        signer = Signer()
        signer.add(choice.reasoning)
        content.append({"type": "thinking", "thinking": choice.reasoning, "signature": signer.signature()})
    if choice.text:
        content.append({"type": "text", "text": choice.text})
    content += [_tool_use(call, mint) for call in choice.tool_calls]
    return content


def _tool_use(call: ToolCall, mint: Minter) -> JSON:
    return {
        "type": "tool_use",
        "id": tool_id(call.id, mint),
        "name": call.name,
        "input": arguments_object(call.arguments),
    }
