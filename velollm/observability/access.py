"""Keeps the record of every HTTP request, whatever becomes of it, and writes it to the log at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic

from velollm.asgi import ASGIApp, Message, Receive, Scope, Send
from velollm.observability.record import CURRENT, Record, write

__all__ = ["AccessLog"]


class AccessLog:
    """ASGI middleware around everything else. Layers below add what they know: see `record.CURRENT`."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float] = monotonic) -> None:
        self.app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = self._clock()
        record = Record(method=scope["method"], path=scope["path"], client=(scope.get("client") or ("",))[0])
        token = CURRENT.set(record)
        head: list[Message] = []

        def watched(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                head.append(message)
            return send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            CURRENT.reset(token)
            record.duration = self._clock() - begun
            if head:
                _add_head(record, head[0])
            elif not record.outcome:
                record.outcome = "cancelled"
            write(record)


def _add_head(record: Record, head: Message) -> None:
    record.status = head["status"]
    if not record.id:
        for name, value in head.get("headers", ()):
            if name == b"x-request-id":
                record.id = value.decode("latin-1")
