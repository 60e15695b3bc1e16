"""The proof that a backend goes on with an answer exactly: it is asked to, and must say what it said uninterrupted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING

from velollm.continuation.said import Said
from velollm.errors import RequestError, VeloError
from velollm.messages import ChatRequest, Message

if TYPE_CHECKING:
    from velollm.backend import Backend

__all__ = ["Proofs", "prove"]

logger = logging.getLogger("velollm.continuation")

QUESTION = "List the numbers from one to twenty in words, separated by commas."
TOKENS = 14
KEPT = 5
SECONDS = 3600.0  # a backend may be started anew with another model of the same name
AGAIN_SECONDS = 60.0


class Proofs:
    """Whether a backend goes on exactly, by model; asked once an hour, after a failure to ask once a minute."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, bool]] = {}

    def known(self, model: str) -> bool | None:
        """What was found out; None when it has to be asked."""
        until, proved = self._known.get(model, (0.0, False))
        return proved if self._clock() < until else None

    async def ask(self, backend: Backend, model: str) -> bool:
        """Whether `backend` goes on exactly with answers of `model`."""
        found = self.known(model)
        if found is not None:
            return found
        seconds = SECONDS
        try:
            found = await prove(backend, model)
        except RequestError:
            found = False
        except VeloError:
            found, seconds = False, AGAIN_SECONDS
        if len(self._known) >= 256:
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
    whole: list[str] = []
    reason, usage = None, None
    async with aclosing(backend.chat(request)) as events:
        async for event in events:
            if event.reasoning or event.tool_calls:
                return False
            if event.text:
                whole.append(event.text)
            reason, usage = event.finish_reason or reason, event.usage or usage
    if len(whole) <= KEPT:
        return False
    rest: list[str] = []
    again, counted = None, None
    async with aclosing(backend.resume(request, Said(pieces=tuple(whole[:KEPT])))) as events:
        async for event in events:
            rest.append(event.text)
            again, counted = event.finish_reason or again, event.usage or counted
    same = "".join(whole[:KEPT]) + "".join(rest) == "".join(whole) and again == reason
    return same and (usage is None or counted is None or usage.completion_tokens == counted.completion_tokens)
