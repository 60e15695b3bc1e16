"""The proof that a backend goes on with an answer exactly: it is asked to, and must say what it said uninterrupted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING

from velollm.continuation.said import Said
from velollm.errors import RequestError, UnsupportedError, VeloError
from velollm.messages import ChatEvent, ChatRequest, Message

if TYPE_CHECKING:
    from velollm.backend import Backend

__all__ = ["Proofs", "prove"]

logger = logging.getLogger("velollm.continuation")

QUESTION = "List the numbers from one to twenty in words, separated by commas."
TOKENS = 14
KEPT = 5
SECONDS = 3600.0  # a backend may be started anew with another model of the same name
AGAIN_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
MOST_MODELS = 256


class Proofs:
    """Whether a backend goes on exactly, by model; asked once an hour, after a failure to ask once a minute."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, bool]] = {}
        self._asking: dict[str, asyncio.Task[bool]] = {}

    def known(self, model: str) -> bool | None:
        """What was found out; None when it has to be asked."""
        until, proved = self._known.get(model, (0.0, False))
        return proved if self._clock() < until else None

    async def ask(self, backend: Backend, model: str) -> bool:
        """Whether `backend` goes on exactly with answers of `model`. Those who ask at the same time share one proof."""
        found = self.known(model)
        if found is not None:
            return found
        asking = self._asking.get(model)
        if asking is None or asking.done() or asking.get_loop() is not asyncio.get_running_loop():
            asking = self._asking[model] = asyncio.create_task(self._prove(backend, model))
            asking.add_done_callback(lambda _: self._asking.pop(model, None))
        return await asyncio.shield(asking)

    async def _prove(self, backend: Backend, model: str) -> bool:
        seconds = SECONDS
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                found = await prove(backend, model)
        except RequestError:
            found = False
        except (VeloError, TimeoutError):
            found, seconds = False, AGAIN_SECONDS
        if len(self._known) >= MOST_MODELS:
            self._known.clear()
        self._known[model] = self._clock() + seconds, found
        logger.info("%s %s with interrupted answers of %s", backend.name, "goes on" if found else "cannot go on", model)
        return found


async def prove(backend: Backend, model: str) -> bool:
    """Have `backend` answer, and go on with the beginning of that answer; whether both say the same.

    It costs about twenty tokens. Raises what the backend raises.
    """
    request = ChatRequest(
        model=model, messages=[Message(role="user", content=QUESTION)], max_tokens=TOKENS, temperature=0, stream=True,
        think=False,
    )  # fmt: skip
    whole = [event async for event in backend.chat(request)]
    pieces = [part for event in whole for part in event.parts()]
    if len(pieces) <= KEPT or any(event.reasoning or event.tool_calls for event in whole):
        return False
    said, left = Said(pieces=tuple(pieces[:KEPT])), "".join(pieces[KEPT:])
    try:
        rest = [event async for event in backend.resume(request, said)]
    except UnsupportedError:  # it cannot count what is left
        return (await _some(backend.resume(request.replace(max_tokens=None), said), len(left))).startswith(left)
    if "".join(event.text for event in rest) != left:
        return False
    return _end(whole) == _end(rest)


async def _some(events: AsyncGenerator[ChatEvent, None], size: int) -> str:
    """So many characters of an answer."""
    text = ""
    async with aclosing(events):
        async for event in events:
            text += event.text
            if len(text) >= size:
                break
    return text


def _end(events: list[ChatEvent]) -> tuple[str | None, int | None]:
    """Why an answer ended, and after how many tokens."""
    reason = next((event.finish_reason for event in events if event.finish_reason), None)
    return reason, next((event.usage.completion_tokens for event in events if event.usage), None)
