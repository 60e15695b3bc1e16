"""Going on with an answer by a prompt that ends with it, and what the engine then counts and repeats. No I/O.

The engine takes the partial answer for a part of its prompt; for the client it is a part of the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import attrs

from velollm.continuation.boundary import safe_boundary
from velollm.continuation.obstacles import check_resumable, is_greedy
from velollm.continuation.retrace import Retrace
from velollm.continuation.said import Said
from velollm.errors import UnsupportedError
from velollm.messages import ChatEvent, ChatRequest, Message, Usage

__all__ = ["Kept", "ended", "go_on_by_prefill", "prefilled", "rest"]


@attrs.frozen(kw_only=True)
class Kept:
    """What of an answer goes into the prompt: the first `pieces` pieces, which are `tokens` tokens.

    `prompt` is the count of the client's own prompt; None where the engine's count less `tokens` has to do.
    """

    pieces: int
    tokens: int
    prompt: int | None = None

    def usage_of_all(self, usage: Usage) -> Usage:
        """The usage of the whole answer from that of its rest."""
        prompt = max(0, usage.prompt_tokens - self.tokens) if self.prompt is None else self.prompt
        return attrs.evolve(
            usage,
            prompt_tokens=prompt,
            completion_tokens=usage.completion_tokens + self.tokens,
            cached_tokens=None if usage.cached_tokens is None else min(usage.cached_tokens, prompt),
        )


def prefilled(request: ChatRequest, text: str, *, merge: bool, extra: dict[str, Any] | None = None) -> ChatRequest:
    """The request with the partial answer at its end: behind the client's own beginning of it, or as a turn of its own.

    `merge` says that a last turn of the assistant is the beginning of the answer, rather than a turn that is over.
    """
    if isinstance(request.prompt, list):
        raise UnsupportedError("a prompt of token ids cannot be continued with text")
    changed = {**request.extra, **(extra or {})}
    if request.prompt is not None and request.raw:
        return request.replace(prompt=request.prompt + text, stream=True)
    messages = list(request.messages)
    if request.prompt is not None:
        messages.append(Message(role="user", content=request.prompt))
    last = messages[-1] if messages else None
    if merge and last is not None and last.role == "assistant":
        messages[-1] = attrs.evolve(last, content=last.text + text)
    else:
        messages.append(Message(role="assistant", content=text))
    return request.replace(messages=messages, prompt=None, stream=True, extra=changed)


async def go_on_by_prefill(
    chat: Callable[[ChatRequest], AsyncGenerator[ChatEvent, None]],
    request: ChatRequest,
    said: Said,
    *,
    count: Callable[[str], Awaitable[int]] | None = None,
    merge: bool = False,
    extra: dict[str, Any] | None = None,
) -> AsyncGenerator[ChatEvent, None]:
    """The rest of an answer, asked of `chat` as `prefilled` makes it; `count` counts the tokens of a text.

    An answer that always comes out alike is cut back to the beginning of a word, where tokens begin for certain.
    """
    check_resumable(request, said)
    pieces = safe_boundary(said.pieces) if is_greedy(request) else len(said.pieces)
    text = "".join(said.pieces[:pieces])
    kept = Kept(pieces=pieces, tokens=await _count(text, pieces, count, needed=request.max_tokens is not None))
    asked = prefilled(request, text, merge=merge, extra=extra) if text else request.replace(stream=True)
    if request.max_tokens is not None:
        if request.max_tokens <= kept.tokens:
            yield ended(kept)
            return
        asked = asked.replace(max_tokens=request.max_tokens - kept.tokens)
    async with aclosing(rest(chat(asked), request, said, kept)) as events:
        async for event in events:
            yield event


async def _count(text: str, pieces: int, count: Callable[[str], Awaitable[int]] | None, *, needed: bool) -> int:
    """The tokens of a partial answer. Where they cannot be counted, and nothing hangs on it, its pieces."""
    if not text:
        return 0
    try:
        if count is not None:
            return await count(text)
    except UnsupportedError:
        if needed:
            raise
    if needed:
        raise UnsupportedError("the tokens that are left cannot be counted")
    return pieces


async def rest(
    events: AsyncGenerator[ChatEvent, None], request: ChatRequest, said: Said, kept: Kept
) -> AsyncGenerator[ChatEvent, None]:
    """The events behind all that was said, with the usage of the whole answer.

    Pieces that were not kept are made again by the engine; they are checked and left out. Raises `Diverged`, and
    `UnsupportedError` where they would be drawn anew.
    """
    again = Retrace(Said(pieces=said.pieces[kept.pieces :]))
    async with aclosing(events):
        if not again.done and not is_greedy(request):
            raise UnsupportedError("the tokens of what was said are not known")
        async for event in events:
            if event.usage is not None:
                event = attrs.evolve(event, usage=kept.usage_of_all(event.usage), wire=None, raw=None)
            beyond = again.feed(event)
            if beyond is not None:
                yield beyond


def ended(kept: Kept) -> ChatEvent:
    """The end of an answer that had all its tokens when it was interrupted."""
    usage = Usage(prompt_tokens=kept.prompt or 0, completion_tokens=kept.tokens)
    return ChatEvent(finish_reason="length", usage=usage)
