"""Ends the wait for the next event of a stream from outside, without ending whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from velollm.messages import ChatEvent

__all__ = ["Interrupted", "Interruption"]


T = TypeVar("T")


class Interrupted(Exception):  # no error: the slot is wanted for more urgent work
    """The stream is to give way."""


class Interruption:
    """For one stream: `give_way` makes `watch` raise `Interrupted`, at once where it waits for the engine.

    A cancellation from elsewhere stays one, also when it comes at the same time.
    """

    __slots__ = ("_task", "_wanted")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._wanted = False

    def give_way(self) -> None:
        """The slot is wanted."""
        self._wanted = True
        if self._task is not None:
            self._task.cancel()

    async def watch(self, events: AsyncGenerator[ChatEvent, None]) -> AsyncGenerator[ChatEvent, None]:
        """`events`, until the slot is wanted: then it raises `Interrupted`."""
        while True:
            try:
                event = await self.run(anext(events))
            except StopAsyncIteration:
                return
            yield event

    async def run(self, waiting: Awaitable[T]) -> T:
        """What `waiting` gives. Raises `Interrupted` when the slot is wanted meanwhile, or was before."""
        if self._is_wanted():
            close = getattr(waiting, "close", None)
            if close is not None:
                close()  # it was never begun
            raise Interrupted
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        self._task = task
        try:
            return await waiting
        except asyncio.CancelledError:
            if self._is_wanted() and task.uncancel() <= before:
                raise Interrupted from None
            raise
        finally:
            self._task = None

    def _is_wanted(self) -> bool:
        return self._wanted
