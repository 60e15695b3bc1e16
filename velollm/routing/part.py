"""One backend's part of an answer: how it is asked, and what its health, its pace and the turn are told of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from velollm.continuation import Continuation, go_on
from velollm.errors import VeloError
from velollm.messages import ChatEvent, ChatRequest
from velollm.routing.member import Member
from velollm.routing.turns import Turn

__all__ = ["Part"]


class Part:
    """What `member` says in `turn`; `stream` joins it to what was said before, and keeps it for whoever goes on.

    After `ask`, one of `done`, `failed` and `left` is called, whatever happens.
    """

    __slots__ = (
        "_clock", "_events", "_first", "_goes_on", "_sent", "_stream", "_turn", "_watched", "_well", "member", "pieces",
    )  # fmt: skip

    def __init__(self, member: Member, turn: Turn, stream: Continuation | None, clock: Callable[[], float]) -> None:
        self.member = member
        self.pieces = 0
        self._turn = turn
        self._stream = stream
        self._goes_on = stream is not None and stream.cuts > 0
        self._clock = clock
        self._first = 0.0
        self._sent = False
        self._well = False
        self._events: AsyncGenerator[ChatEvent, None] | None = None
        self._watched: AsyncGenerator[ChatEvent, None] | None = None

    @property
    def may_make_way(self) -> bool:
        """Whether it is for work that makes way for more urgent work, with an answer that can be gone on with."""
        return self._turn.may_make_way and self._stream is not None and self._stream.obstacle is None

    async def allow_preemption(self, request: ChatRequest) -> ChatRequest:
        """Have it make way when need be; the request to ask. Raises `Interrupted` when the slot is wanted at once."""
        return await self._turn.allow_preemption(self.member.backend, request)

    def ask(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Send the request, which names the model as the backend does; the events that are to come."""
        member, turn, stream = self.member, self._turn, self._stream
        if self._goes_on and stream is not None:
            self._events = go_on(member.backend, stream, request=request)
        else:
            self._events = member.backend.chat(request)
        self._watched = self._events if turn.interruption is None else turn.interruption.watch(self._events)
        self._well = member.health.closed
        member.health.sent(self._clock())
        self._sent = True
        return self._watched

    def saw(self, event: ChatEvent) -> ChatEvent:
        """An event came; as the client may see it."""
        turn, stream, now = self._turn, self._stream, self._clock()
        self.member.health.heard = now
        if not self.pieces:
            self._first = now
            if self.member.error is not None:
                self.member.note(None)
        self.pieces += event.pieces
        turn.saw(event)
        if stream is None:
            return event
        if not self._goes_on:
            seen = stream.observe(event)
            assert seen is not None
            event = seen
        if turn.interruption is not None and not stream.may_be_cut:
            turn.stay()
        return event

    def done(self) -> float:
        """It has answered; seconds from its first event to its end."""
        now = self._clock()
        self.member.health.done(now)
        self._turn.complete()
        return now - self._first

    async def failed(self, error: VeloError) -> None:
        """It has not."""
        await self._close()
        if self._sent:
            self.member.failed(error)

    @property
    def outage(self) -> bool:
        """The backend was well as it was asked, and is not any more."""
        return self._well and not self.member.health.closed

    async def left(self) -> None:
        """Nobody waits for it any more."""
        try:
            await self._close()
        finally:
            if self._sent:
                self.member.health.left(self._clock())

    async def _close(self) -> None:
        if self._watched is not None and self._events is not None:
            await self._watched.aclose()
            await self._events.aclose()
