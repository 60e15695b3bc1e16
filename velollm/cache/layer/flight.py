"""Single-flight: one upstream call whose events several identical requests read, each at its own pace.

    upstream ──▶ pump (a task of its own) ──▶ events kept ──▶ reader, reader, reader

The pump belongs to nobody: when the request that began it leaves, the others still get theirs. It is cancelled when the
last reader has left. It runs ahead of the fastest reader by a bounded number of events and bytes, so that a client
which does not read holds the engine back as it would without us. One that does not read while others do must not have a
whole answer kept for it: too far behind them, it is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from velollm.errors import BackendError, VeloError, let_go
from velollm.messages import ChatEvent

__all__ = ["Flight"]

AHEAD = 64
AHEAD_BYTES = 1 << 20  # texts that came at once are one event: it may be large
# Bytes of events that are kept for requests that join late. Past them nobody joins any more.
KEPT = 8 << 20
# Bytes of events that are kept for readers that are behind the others: more than any answer that somebody reads.
LAG = 16 << 20
_EVENT_COST = 200
_TRIM_EVERY = 256


class Flight:
    """One call in the air. `on_event` sees every event in order, before any reader does; `on_end` is awaited when the
    answer is there in full, before the readers are told; `on_close` is called once, when nobody may join any more."""

    def __init__(
        self,
        upstream: AsyncGenerator[ChatEvent, None],
        *,
        on_event: Callable[[ChatEvent], None],
        on_end: Callable[[], Awaitable[None]],
        on_close: Callable[[], None],
    ) -> None:
        self._upstream = upstream
        self._on_event, self._on_end, self._on_close = on_event, on_end, on_close
        self._events: list[ChatEvent] = []
        self._first = 0  # the number of the first event that is still kept
        self._bytes = 0
        self._open = True
        self._done = False
        self._error: Exception | None = None
        self._places: dict[int, int] = {}
        self._fastest = 0  # the number of the first event that no reader has had
        self._numbers = 0
        self._waiting: list[asyncio.Future[None]] = []  # readers
        self._room: asyncio.Event | None = None  # while the pump waits for it
        self._pump: asyncio.Task[None] | None = None

    async def read(self) -> AsyncGenerator[ChatEvent, None]:
        """The events from the first on, for one more reader; raises what the upstream call raised.

        The first reader starts the call. Each counts from its first step on."""
        self._numbers += 1
        number = self._numbers
        self._places[number] = self._first
        try:
            if self._pump is None:
                self._pump = asyncio.get_running_loop().create_task(self._run())
            while True:
                place = self._places.get(number)
                if place is None:
                    raise BackendError("the answer was read too slowly: others who asked the same are far ahead")
                if place < self._first + len(self._events):
                    self._places[number] = place + 1
                    if place >= self._fastest:
                        self._fastest = place + 1
                        if self._room is not None:
                            self._room.set()
                    yield self._events[place - self._first]
                elif not self._done:
                    news = asyncio.get_running_loop().create_future()
                    self._waiting.append(news)
                    await news
                elif self._error is not None:
                    raise self._error
                else:
                    return
        finally:
            await self._leave(number)

    async def _leave(self, number: int) -> None:
        self._places.pop(number, None)
        self._fastest = max(self._places.values(), default=0)
        if self._places or self._pump is None or self._done:
            return
        self._close()
        self._pump.cancel()
        await asyncio.wait({self._pump})

    async def _run(self) -> None:
        try:
            async for event in self._upstream:
                self._on_event(event)
                self._add(event)
                while self._is_far_ahead():
                    self._room = asyncio.Event()
                    await self._room.wait()
                    self._room = None
            await self._on_end()
        except asyncio.CancelledError:
            self._error = BackendError("the answer was broken off")
        except Exception as error:  # it is the readers' to handle, each in its own task
            if isinstance(error, VeloError):
                let_go(error)
            self._error = error
        finally:
            await self._upstream.aclose()
            self._done = True
            self._close()
            self._tell()

    def _add(self, event: ChatEvent) -> None:
        self._events.append(event)
        self._bytes += _size(event)
        if self._bytes > KEPT:
            self._close()
        if not self._open and (len(self._events) >= _TRIM_EVERY or self._bytes > KEPT):
            self._trim()
        self._tell()

    def _tell(self) -> None:
        for news in self._waiting:
            if not news.done():  # else, its reader has left
                news.set_result(None)
        self._waiting.clear()

    def _is_far_ahead(self) -> bool:
        ahead = self._first + len(self._events) - self._fastest
        if not 0 < ahead < AHEAD:
            return ahead >= AHEAD
        if self._bytes <= AHEAD_BYTES:  # all that is kept
            return False
        return sum(_size(event) for event in self._events[-ahead:]) > AHEAD_BYTES

    def _trim(self) -> None:
        """Let go of what all readers have had, and of readers that are too far behind the others."""
        self._forget()
        while self._bytes > LAG:
            slowest = min(self._places, key=self._places.__getitem__)
            if self._places[slowest] == self._fastest:
                return
            del self._places[slowest]
            self._forget()

    def _forget(self) -> None:
        had = min(self._places.values(), default=self._first) - self._first
        self._bytes -= sum(_size(event) for event in self._events[:had])
        del self._events[:had]
        self._first += had

    def _close(self) -> None:
        if self._open:
            self._open = False
            on_close, self._on_close = self._on_close, _nothing  # what it holds may hold this flight
            on_close()


def _nothing() -> None:
    """It was closed before."""


def _size(event: ChatEvent) -> int:
    return _EVENT_COST + len(event.text) + len(event.reasoning) + len(event.raw or b"")
