"""One request of a client and its answer, as ASGI applications see them. What it writes goes to its connection."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from velollm.asgi import DISCONNECT, ASGIApp, Message, Scope
from velollm.errors import VeloError

if TYPE_CHECKING:
    from velollm.server.protocol import GuardedProtocol

__all__ = ["Cycle"]

logger = logging.getLogger("velollm.server")

PHRASES = {status.value: status.phrase for status in HTTPStatus}
STATUS_LINES = {status: f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\n".encode() for status in range(100, 600)}
BODYLESS = frozenset({204, 304})
# Bytes that arrived and were not asked for yet; with more, the connection is not read any further.
HIGH_WATER = 64 * 1024
NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
UNSOUND = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
MOST_NAMES = 1000
LAST_CHUNK = b"0\r\n\r\n"
FAILED = b'{"error":{"message":"an internal error","type":"server_error","code":"internal_error","param":null}}'


class Cycle:
    """`receive` and `send` of ASGI for one request; `run` has an application answer it.

    `keep_alive` says whether the connection may serve another request afterwards, `more_body` whether more of this one
    is to come, `complete` whether it is answered, `disconnected` whether nobody will read the answer.
    """

    __slots__ = (
        "_chunked", "_connection", "_expects", "_head", "_is_head", "_left", "_news", "_on_leaving", "_pieces",
        "_scope", "_size", "_waiter", "complete", "disconnected", "keep_alive", "more_body", "started", "task",
    )  # fmt: skip

    def __init__(self, connection: GuardedProtocol, scope: Scope, *, keep_alive: bool, expects: bool) -> None:
        self._connection = connection
        self._scope = scope
        self._on_leaving: Callable[[], None] | None = None
        scope[DISCONNECT] = self.tell_leaving
        self._expects = expects  # to be told that it may send its body
        self.keep_alive = keep_alive
        self.task: asyncio.Task[None] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._news = False
        self._waiter: asyncio.Future[None] | None = None
        self.more_body = True
        self.started = self.complete = self.disconnected = False
        self._is_head = scope["method"] == "HEAD"
        self._chunked = False
        self._head = b""
        self._left = 0  # bytes that the announced length still wants

    async def run(self, app: ASGIApp) -> None:
        """Have `app` answer; whatever it does, the client gets an answer or sees the connection break off."""
        try:
            await app(self._scope, self.receive, self.send)
        except VeloError:
            pass  # broken off on purpose, where it was too late for an error: the request's own log line tells
        except asyncio.CancelledError:
            logger.warning("a request was given up, because the server ends")
        except BaseException:
            logger.exception("the application failed")
        self._scope.pop(DISCONNECT)  # it holds this cycle, and the cycle it
        try:
            if not self.complete and not self.disconnected:
                await self._give_up()
        finally:
            self._connection.ended(self)

    async def _give_up(self) -> None:
        if self.started:
            self._connection.close()
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(FAILED)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": FAILED})

    # ---- what comes in ----

    def add_body(self, piece: bytes) -> bool:
        """A piece of the body has come; whether there is too much that nobody asked for yet."""
        self._pieces.append(piece)
        self._size += len(piece)
        self._tell()
        return self._size > HIGH_WATER

    def end_body(self) -> None:
        """The body is complete."""
        self.more_body = False
        self._tell()

    def disconnect(self) -> None:
        """Nobody is there any more."""
        if self.complete or self.disconnected:
            return
        self.disconnected = True
        self._tell()
        if self._on_leaving is not None:
            self._on_leaving()

    def tell_leaving(self, call: Callable[[], None] | None) -> None:
        """What to call when the client leaves; see `velollm.asgi.DISCONNECT`."""
        self._on_leaving = call
        if call is not None and self.disconnected:
            call()

    def _tell(self) -> None:
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """ASGI's: the body, and then, when it has come to that, the end."""
        if self._expects and not self.started:
            self._expects = False
            self._connection.out.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._news and not self.disconnected and not self.complete:
            self._connection.resume_reading()
            if self._waiter is None or self._waiter.done():
                self._waiter = self._connection.loop.create_future()
            await asyncio.shield(self._waiter)
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        self._news = False
        pieces, self._pieces, self._size = self._pieces, [], 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    # ---- what goes out ----

    async def send(self, message: Message) -> None:
        """ASGI's: the head, and the pieces of the body. Raises `RuntimeError` for what is no HTTP answer."""
        connection = self._connection
        if connection.writable is not None and not self.disconnected:
            await connection.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.started:
            if kind != "http.response.start":
                raise RuntimeError(f"an answer starts with http.response.start, not with {kind}")
            self._start(message["status"], list(message.get("headers", ())))
        elif self.complete:
            raise RuntimeError(f"{kind} was sent after the end of the answer")
        elif kind != "http.response.body":
            raise RuntimeError(f"after its start, an answer goes on with http.response.body, not with {kind}")
        else:
            self._write(message.get("body", b""), last=not message.get("more_body", False))

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        lines = [STATUS_LINES[status], self._connection.own_headers()]
        framed = closes = False
        for name, value in headers:
            lower = SOUND.get(name) or _sound(name)
            if lower == b"content-length":
                self._left = int(value)
                framed = True
            elif lower == b"transfer-encoding":
                self._chunked = framed = value.lower() == b"chunked"
            elif lower == b"connection":
                closes = b"close" in value.lower()
            lines.append(b"%b: %b\r\n" % (lower, value))
        if UNSOUND.search(b"".join([value for _, value in headers])):
            raise RuntimeError("the value of a header has control characters")
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if not framed and not self._is_head and status not in BODYLESS:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self.started = True
        self._head = b"".join(lines)  # it leaves with what comes next
        if self._chunked or self._is_head:  # or alone, where that may take its time
            self._connection.loop.call_soon(self._send_head)

    def _send_head(self) -> None:
        if self._head:
            self._connection.out.write(self._head)
            self._head = b""

    def _write(self, body: bytes, *, last: bool) -> None:
        if self._is_head:
            self._left = 0
            body = b""
        elif self._chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if last:
                body += LAST_CHUNK
        else:
            self._left -= len(body)
            if self._left < 0:
                raise RuntimeError("the body of the answer is longer than its content-length")
        if self._head:
            body = self._head + body
            self._head = b""
        if body:
            self._connection.out.write(body)
        if last:
            if self._left:
                raise RuntimeError("the body of the answer is shorter than its content-length")
            self.complete = True
            self._tell()
            self._connection.answered(self)


# Names of headers that were found to be sound, in lower case.
SOUND: dict[bytes, bytes] = {}


def _sound(name: bytes) -> bytes:
    if not NAME.fullmatch(name):
        raise RuntimeError(f"{name!r} cannot be the name of a header")
    if len(SOUND) < MOST_NAMES:
        SOUND[name] = name.lower()
    return name.lower()
