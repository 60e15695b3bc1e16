"""A typed request as the chat body that the cache keys: all that can change the answer, whatever the client's dialect.

A chat that came in through Ollama's API has the same body as one through OpenAI's, so they share their answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final

import attrs

from velollm.messages import ChatRequest, Message, Part, TextPart, ToolCall

__all__ = ["chat_body"]

_FIELDS: Final = (
    "model", "further_prompts", "suffix", "tool_choice", "parallel_tool_calls", "response_format", "max_tokens",
    "temperature", "top_p",
    "top_k", "min_p", "seed", "stop", "n", "frequency_penalty", "presence_penalty", "repeat_penalty", "logit_bias",
    "logprobs", "top_logprobs", "echo", "think", "options",
)  # fmt: skip
_VALUES: Final = attrgetter(*_FIELDS)
_UNSAID: Final = _VALUES(ChatRequest())
_PLAIN: Final = frozenset({str, int, float, bool, list, dict})
_EMPTY: Final[tuple[object, ...]] = ([], (), {}, "")
# Where a prompt is cached by the engine says nothing of what is asked.
_NO_CONTENT: Final = frozenset({"cache_control"})


def chat_body(request: ChatRequest) -> dict[str, Any]:
    """The body; unknown fields of the client's are in it. A prompt for the chat template is the user's last turn, one
    that goes to the model as it is has a role of its own, so that only its exact repetition is the same."""
    body = dict(request.extra)
    for name, value, unsaid in zip(_FIELDS, _VALUES(request), _UNSAID, strict=True):
        if value is not unsaid and value != unsaid and value not in _EMPTY:
            body[name] = value if type(value) in _PLAIN or not attrs.has(type(value)) else attrs.asdict(value)
    if request.tools:
        body["tools"] = [attrs.asdict(tool) for tool in request.tools]
    messages = [_message(message) for message in request.messages]
    if request.prompt is not None:
        templated = isinstance(request.prompt, str) and not request.raw and request.suffix is None
        messages.append({"role": "user" if templated else "prompt", "content": request.prompt})
    body["messages"] = messages
    return body


def _message(message: Message) -> dict[str, Any]:
    content = message.content
    out: dict[str, Any] = {
        "role": message.role,
        "content": content if content is None or isinstance(content, str) else [_part(part) for part in content],
    }
    if message.tool_calls:
        out["tool_calls"] = [_call(call) for call in message.tool_calls]
    for name in ("tool_call_id", "name", "reasoning"):
        value = getattr(message, name)
        if value is not None:
            out[name] = value
    if message.is_error:
        out["is_error"] = True
    if extra := _content(message.extra):
        out["extra"] = extra
    return out


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        extra = _content(part.extra)
        return {"type": "text", "text": part.text, **({"extra": extra} if extra else {})}
    return {"type": type(part).__name__, **attrs.asdict(part)}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "arguments": call.arguments, "extra": call.extra}


def _content(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in extra.items() if key not in _NO_CONTENT}
