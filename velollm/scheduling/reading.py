"""What a request says about its urgency and its size. No I/O."""

from __future__ import annotations

from velollm.api.values import kind
from velollm.errors import RequestError
from velollm.messages import ChatRequest, EmbedRequest, RequestContext
from velollm.scheduling.job import BATCH, INTERACTIVE, LEVELS, NORMAL

__all__ = ["body_size", "conversation_of", "prompt_size", "read_deadline", "read_level"]

PRIORITY_HEADER = "x-velollm-priority"
DEADLINE_HEADER = "x-velollm-deadline-ms"
LONGEST_DEADLINE_MS = 86_400_000
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_TOOL = 80
TOKENS_PER_MEDIUM = 500


def read_level(request: ChatRequest | EmbedRequest) -> int:
    """The priority class: that of the header, else of the body's integer (below 0 interactive, above 0 batch), else of
    the key, else normal.

    Raises `RequestError` for a word that is none, and for a body's `priority` that is no integer.
    """
    context = request.context
    word = context.client_headers.get(PRIORITY_HEADER)
    if word is not None:
        try:
            return LEVELS.index(word.strip().lower())
        except ValueError:
            words = ", ".join(LEVELS)
            raise RequestError(f"{PRIORITY_HEADER} must be one of {words}", param=PRIORITY_HEADER) from None
    number = request.extra.get("priority")
    if number is not None:
        if type(number) is not int:
            raise RequestError(f"priority must be an integer, not {kind(number)}", param="priority")
        return NORMAL if number == 0 else INTERACTIVE if number < 0 else BATCH
    return NORMAL if context.priority is None else LEVELS.index(context.priority)


def read_deadline(context: RequestContext, now: float) -> float | None:
    """The latest first byte, as a clock reading: so long after the arrival. Raises `RequestError`."""
    if context.deadline is not None:
        return context.deadline
    text = context.client_headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits[:12]) <= LONGEST_DEADLINE_MS and len(digits) < 12):
        raise RequestError(f"{DEADLINE_HEADER} must be a number of milliseconds, 1 or more", param=DEADLINE_HEADER)
    return context.marks.get("received", now) + int(digits) / 1000


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
