"""What a request says about its size, and which others it belongs to. No I/O."""

from __future__ import annotations

from velollm.messages import ChatRequest

__all__ = ["body_size", "conversation_of", "prompt_size"]

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_TOOL = 80
TOKENS_PER_MEDIUM = 500


def conversation_of(request: ChatRequest) -> str | None:
    """What says that requests belong together."""
    return request.context.session or request.user or None


def prompt_size(request: ChatRequest) -> int:
    """About how many tokens the prompt has."""
    if request.prompt is not None:
        length = len(request.prompt)
        return max(1, length if isinstance(request.prompt, list) else length // CHARACTERS_PER_TOKEN)
    characters = tokens = 0
    for message in request.messages:
        content = message.content
        if isinstance(content, str):
            characters += len(content)
        elif content is not None:
            characters += len(message.text)
            tokens += TOKENS_PER_MEDIUM * sum(1 for part in content if not hasattr(part, "text"))
        for call in message.tool_calls:
            characters += len(call.arguments)
    tokens += TOKENS_PER_MESSAGE * len(request.messages) + TOKENS_PER_TOOL * len(request.tools)
    return tokens + characters // CHARACTERS_PER_TOKEN + 1


def body_size(request: ChatRequest) -> int:
    """Bytes that a waiting request keeps in memory, about."""
    return len(request.source.body) if request.source is not None else CHARACTERS_PER_TOKEN * prompt_size(request)
