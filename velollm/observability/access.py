"""Keeps the record of every HTTP request, whatever becomes of it, and writes it to the log at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic

from velollm.asgi import ASGIApp, Message, Receive, Scope, Send
from velollm.observability.recent import RecentRequests
from velollm.observability.record import CURRENT, Record, write

__all__ = ["AccessLog"]


LONGEST_PATH = 200
NOTHING: dict[str, str] = {}
UNTOLD = ("/velollm/", "/health", "/ready", "/metrics")  # asked by machines and by the dashboard itself, all the time


class AccessLog:
    """ASGI middleware around everything else. Layers below add what they know: see `record.CURRENT`.

    `recent` keeps the last records; `clock` gives seconds, as `time.monotonic` does.
    """

    def __init__(
        self, app: ASGIApp, *, recent: RecentRequests | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self.app = app
        self._recent = recent
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = self._clock()
        record = Record(
            method=scope["method"], path=scope["path"][:LONGEST_PATH], client=(scope.get("client") or ("",))[0]
        )
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
            record.key = scope.get("state", NOTHING).get("velollm_key", "")
            if head:
                _add_head(record, head[0])
            elif not record.outcome:
                record.outcome = "cancelled"
            write(record)
            if self._recent is not None and not record.path.startswith(UNTOLD):
                self._recent.add(record)


def _add_head(record: Record, head: Message) -> None:
    record.status = head["status"]
    if not record.id:
        for name, value in head.get("headers", ()):
            if name == b"x-request-id":
                record.id = value.decode("latin-1")
