"""Answers that must call a tool, of engines that may not care. No I/O.

Nothing of the first answer is sent on before it calls the right tool. If it never does, the question is put again in
words that more engines obey: the answer is to be JSON of the tool's schema. Where that fails too, the first stands.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeAlias

from velollm.api.openai.upstream import encode_tools
from velollm.contrib.forced import ForcedCall, as_calls, forced_call
from velollm.contrib.toolless import tell_tools
from velollm.errors import BackendProtocolError, BackendRefused, RequestError
from velollm.messages import ChatEvent, ChatRequest, ResponseFormat
from velollm.toolcalls import fix

__all__ = ["obeyed"]

Events: TypeAlias = AsyncGenerator[ChatEvent, None]
REFUSALS = (BackendProtocolError, BackendRefused, RequestError)


async def obeyed(chat: Callable[[ChatRequest], Events], request: ChatRequest, backend: str) -> Events:
    """The events of `chat(request)`, with the tool call that the request demands as far as it can be had."""
    forced = forced_call(request)
    if forced is None or request.n > 1:
        async with aclosing(chat(request)) as events:
            async for event in events:
                yield event
        return
    names = {tool.name for tool in request.tools} if forced.name is None else {forced.name}
    held: list[ChatEvent] = []
    async with aclosing(_held(chat(request), names, held)) as events:
        async for event in events:
            yield event
    if not held:
        return
    if all(event.finish_reason != "length" for event in held) and not _told(held, request, names):
        obeys = False
        try:
            async with aclosing(_held(_asked_again(chat, request, forced, backend), names, [])) as events:
                async for event in events:
                    obeys = True
                    yield event
        except REFUSALS:
            if obeys:
                raise
        if obeys:
            return
    for event in held:
        yield event


async def _held(events: Events, names: set[str], held: list[ChatEvent]) -> Events:
    """The events, from the first on, once one of them calls a tool of `names`; until then they are `held`."""
    obeys = False
    async with aclosing(events):
        async for event in events:
            if obeys:
                yield event
                continue
            held.append(event)
            called = [delta.name for delta in event.tool_calls if delta.name]
            if called:
                obeys = called[0] in names
            if obeys:
                for early in held:
                    yield early
                held.clear()


def _told(held: list[ChatEvent], request: ChatRequest, names: set[str]) -> bool:
    """Whether the call stands in the text, where the tool-call layer finds it."""
    calls = fix("".join(event.text for event in held), encode_tools(request.tools)).calls
    return bool(calls) and all(call["name"] in names for call in calls)


def _asked_again(
    chat: Callable[[ChatRequest], Events], request: ChatRequest, forced: ForcedCall, backend: str
) -> Events:
    shape = ResponseFormat(kind="json_schema", schema=forced.schema, name="call")
    return as_calls(chat(tell_tools(request).replace(response_format=shape)), forced, backend)
