"""What can be done when tool calls fail for good: what engines' own parsers choked on, and what to tell a model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from velollm.messages import ChatRequest, Message
from velollm.toolcalls.result import FixError

__all__ = ["asked_again", "is_parser_failure", "unparsed_text"]

# Ollama: error parsing tool call: raw='<what the model wrote>', err=invalid character ...
_OLLAMA = re.compile(r"error parsing tool call: raw='(?P<raw>.*)', err=", re.DOTALL)
# llama-server: Failed to parse input at pos 0: <what the model wrote>
_LLAMA = re.compile(r"Failed to parse input at pos 0: (?P<raw>.*)\Z", re.DOTALL)
_WORDS = (
    "error parsing tool call",
    "failed to parse input at pos",
    "failed to parse tool call",
    "failed to parse messages: failed to parse tool call",
    "invalid diff",
    "tool call parsing",
    "xml syntax error",
    "error parsing toolcall",
)
_LONGEST_LIST = 5


def is_parser_failure(message: str) -> bool:
    """Whether an engine's error says that it could not read what its own model wrote."""
    words = message.lower()
    return any(word in words for word in _WORDS)


def unparsed_text(message: str) -> str | None:
    """What the model wrote, where the engine's error tells it whole."""
    found = _OLLAMA.search(message) or _LLAMA.search(message)
    return found["raw"] if found else None


def asked_again(request: ChatRequest, said: str, errors: Iterable[FixError]) -> ChatRequest:
    """`request` with the failed attempt behind it, and what was wrong with it."""
    listed = [f"- {error.name}: {error.message}" if error.name else f"- {error.message}" for error in errors]
    wrong = "\n".join(listed[:_LONGEST_LIST]) or "- no tool was called"
    told = f"Your tool call could not be used:\n{wrong}\nAnswer with the corrected tool call and nothing else."
    attempt = [Message(role="assistant", content=said)] if said.strip() else []
    messages = [*request.messages, *attempt, Message(role="user", content=told)]
    return request.replace(messages=messages, stream=False, n=1)
