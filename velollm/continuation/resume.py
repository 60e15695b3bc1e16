"""Going on with an interrupted answer by a backend: by its own means where it has proved them, else by making it again.

events = backend.chat(request)                       # followed by a Continuation, interrupted
continuation.cut()
async for event in go_on(backend, continuation): ... # the rest, as the client is to see it
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import attrs

from velollm.continuation.retrace import Retrace
from velollm.continuation.stream import Continuation
from velollm.errors import UnsupportedError, VeloError
from velollm.messages import ChatEvent, ChatRequest, Usage

if TYPE_CHECKING:
    from velollm.backend import Backend

__all__ = ["go_on", "repeat"]

logger = logging.getLogger("velollm.continuation")


async def go_on(
    backend: Backend, continuation: Continuation, *, request: ChatRequest | None = None, again: bool = True
) -> AsyncGenerator[ChatEvent, None]:
    """The rest of the answer that `continuation` follows, after its `cut`; every event was observed already.

    `request` is the one to send where it is not the one that is followed (another name of the model). An answer that
    the backend cannot go on with is made again from its beginning and checked, unless `again` is false.

    Raises `UnsupportedError` when it cannot be continued (before any event), `Diverged` when the repeated answer is
    another one, and what the backend raises.
    """
    asked = continuation.request if request is None else request
    said = continuation.said
    if not said:
        events = backend.chat(asked)
    elif continuation.obstacle is not None:
        raise UnsupportedError(f"the answer cannot be continued: {continuation.obstacle}")
    elif not said.reasoning and await backend.resumes(asked.model):
        events = _resumed(backend, asked, continuation, again=again)
    elif again:
        events = repeat(backend, asked, continuation)
    else:
        raise UnsupportedError(f"{backend.name} cannot go on with an answer exactly")
    async with aclosing(events):
        async for event in events:
            seen = continuation.observe(event)
            if seen is not None:
                yield seen
                if seen.finish_reason is not None and event.finish_reason is None:
                    break  # a stop string across the seam, of which the backend does not know
        else:
            return
    assert seen is not None
    usage = await _counted(backend, asked, said.text, seen)
    if usage is not None:
        counted = continuation.observe(ChatEvent(usage=usage))
        if counted is not None:
            yield counted


async def _counted(backend: Backend, request: ChatRequest, before: str, end: ChatEvent) -> Usage | None:
    """The usage of an answer that `end` ended with a stop string, begun in `before`, as the backend counts tokens; None
    where it cannot."""
    text = before + end.text
    stop = end.stop_sequence or ""
    begun = next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
    try:
        prompt = await backend.count_tokens(request)
        tokens = await backend.tokenize(request.model, text + stop[begun:])
    except VeloError as error:
        logger.info("%s cannot say what an answer has cost: %s", backend.name, error.message)
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=len(tokens))


async def _resumed(
    backend: Backend, request: ChatRequest, continuation: Continuation, *, again: bool
) -> AsyncGenerator[ChatEvent, None]:
    """What the backend goes on with; the answer made again where it cannot with this one."""
    begun = False
    try:
        async with aclosing(backend.resume(request, continuation.said)) as events:
            async for event in events:
                begun = True
                yield event
        return
    except UnsupportedError:
        if begun or not again:
            raise
    async with aclosing(repeat(backend, request, continuation)) as events:
        async for event in events:
            yield event


async def repeat(backend: Backend, request: ChatRequest, continuation: Continuation) -> AsyncGenerator[ChatEvent, None]:
    """The answer made again; what was said is checked and left out. Raises `Diverged`."""
    retrace = Retrace(continuation.said)
    async with aclosing(backend.chat(attrs.evolve(request, stream=True, source=None))) as events:
        async for event in events:
            rest = retrace.feed(event)
            if rest is not None:
                yield rest
