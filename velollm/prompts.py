"""Several prompts in one completion request: each is a generation of its own, and the client sees one answer.

The choices of prompt number k have the indices k·n to k·n + n - 1, as with OpenAI.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import attrs

from velollm.backend import Backend
from velollm.messages import ChatEvent, ChatRequest, Usage

__all__ = ["answer_prompts"]

AT_ONCE = 4
AHEAD = 64  # events that may wait for the client

Item = ChatEvent | Exception | None


def answer_prompts(backend: Backend, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
    """The events for all prompts of `request`, which with one prompt are just those of `backend`."""
    return _merged(backend, request) if request.further_prompts else backend.chat(request)


async def _merged(backend: Backend, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
    prompts = [request.prompt, *request.further_prompts]
    queue: asyncio.Queue[Item] = asyncio.Queue(AHEAD)
    turns = asyncio.Semaphore(AT_ONCE)
    usage: Usage | None = None

    async def one(number: int) -> None:
        try:
            async with turns:
                events = backend.chat(request.replace(prompt=prompts[number], further_prompts=()))
                try:
                    async for event in events:
                        await queue.put(_shifted(event, number * request.n, first=number == 0))
                finally:
                    await events.aclose()
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(one(number)) for number in range(len(prompts))]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                usage, item.usage = _together(usage, item.usage), None
                yield item
        yield ChatEvent(usage=usage)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _shifted(event: ChatEvent, offset: int, *, first: bool) -> ChatEvent:
    """The event under its index among all choices; its bytes would say another one."""
    return attrs.evolve(event, index=event.index + offset, meta=event.meta if first else None, wire=None, raw=None)


def _together(one: Usage | None, other: Usage | None) -> Usage | None:
    return one + other if one is not None and other is not None else one or other
