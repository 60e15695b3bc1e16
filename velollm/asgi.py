"""The ASGI side of a request: its headers and body coming in, an answer going out, and the client leaving early.

Knows nothing of dialects or backends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeAlias

from velollm.errors import BodyTooLarge, Overloaded, RequestError

__all__ = [
    "DISCONNECT",
    "ENVIRON",
    "OUTER_SCOPE",
    "ASGIApp",
    "Bodies",
    "ClientLeft",
    "DisconnectWatch",
    "Message",
    "Receive",
    "Responder",
    "Scope",
    "Send",
    "read_body",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

# The request that is being served, where the app below is asked in turn: who its client is, and what servers and
# frameworks have put into its scope (`app`, `state`, `session`, a matched route), belongs to the app's request as well.
OUTER_SCOPE: ContextVar[Scope | None] = ContextVar("OUTER_SCOPE", default=None)
# The key under which our own server's scopes have a function that takes what to call when the client leaves (at once,
# when it has left already), or None for nothing.
DISCONNECT = "velollm.disconnect"
# The key under which a scope that was made of a WSGI environ holds it.
ENVIRON = "velollm.environ"
RETRY_SECONDS = 1


class ClientLeft(Exception):
    """The client closed the connection; there is nobody to answer."""


class Bodies:
    """What request bodies may take, in bytes: `each` of them, and `together` all those that are only partly here.

    One that comes whole in its first piece costs nothing more, and does not count.
    """

    __slots__ = ("each", "held", "together")

    def __init__(self, each: int, together: int) -> None:
        self.each = each
        self.together = max(together, each)
        self.held = 0

    def hold(self, size: int) -> None:
        """Count `size` bytes more. Raises `Overloaded` where there is no room for them."""
        if self.held + size > self.together:
            error = Overloaded(
                f"the request bodies that are being received may take {self.together} bytes together, and no more are "
                "taken at the moment; raise the limit with --max-bodies",
                code="too_many_bodies",
                retry_after=RETRY_SECONDS,
            )
            error.headers = ((b"connection", b"close"),)  # the rest is not waited for
            raise error
        self.held += size


async def read_body(receive: Receive, headers: Mapping[str, str], bodies: Bodies) -> bytes:
    """The whole request body, within the limits of `bodies`.

    Raises `BodyTooLarge`, `Overloaded`, `RequestError` for a compressed body, and `ClientLeft` when it never arrived
    whole.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise RequestError("compressed request bodies are not accepted: send plain JSON", status=415)
    declared = headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > bodies.each):
        raise _too_large(bodies.each)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > bodies.each:
            raise _too_large(bodies.each)
        return body
    collected, held = bytearray(), 0
    try:
        while message["type"] == "http.request":
            piece = message.get("body", b"")
            if held + len(piece) > bodies.each:
                raise _too_large(bodies.each)
            bodies.hold(len(piece))
            held += len(piece)
            collected += piece
            if not message.get("more_body", False):
                return bytes(collected)
            message = await receive()
    finally:
        bodies.held -= held
    raise ClientLeft


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than {limit} bytes; raise the limit with --max-body")


class Responder:
    """Sends one response. `started` tells whether the head has left, after which the status is settled."""

    __slots__ = ("_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """A response in one piece; `headers` without content-length."""
        headers.append((b"content-length", str(len(body)).encode()))
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def start(self, status: int, headers: Headers) -> None:
        """The head of a streamed response."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes) -> None:
        """A piece of a streamed response."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """The last piece of a streamed response."""
        await self._send({"type": "http.response.body", "body": body})


def encode_headers(headers: Mapping[str, str]) -> Headers:
    """Header names and values as ASGI wants them; what Latin-1 cannot carry is replaced, line breaks are dropped."""
    return [
        (NAMES.get(name) or _name(name), value.encode() if value.isascii() and value.isprintable() else _wire(value))
        for name, value in headers.items()
    ]


MOST_NAMES = 256
NAMES: dict[str, bytes] = {}  # on the wire, of headers that were sent before


def _name(name: str) -> bytes:
    wire = _wire(name.lower())
    if len(NAMES) < MOST_NAMES:
        NAMES[name] = wire
    return wire


def _wire(text: str) -> bytes:
    return text.replace("\r", "").replace("\n", " ").encode("latin-1", "replace")


def decode_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Header names (lower case) and values as text; of a repeated header the first counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed([*headers])}


class DisconnectWatch:
    """Cancels the task it was made in when the client leaves, and turns that cancellation into `ClientLeft`.

    ASGI servers keep silent when `send` goes nowhere: only `receive` tells. Waiting on it takes a task of its own,
    which a request that is answered within `delay` seconds never pays for. Our own server tells (`DISCONNECT`).

        with DisconnectWatch(scope, receive):
            ...
    """

    __slots__ = ("_left", "_receive", "_task", "_tell", "_timer", "_watcher")

    def __init__(self, scope: Scope, receive: Receive, *, delay: float = 0.02) -> None:
        task = asyncio.current_task()
        assert task is not None, "ASGI applications run in a task"
        self._task = task
        self._receive = receive
        self._left = False
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tell: Callable[[Callable[[], None] | None], None] | None = scope.get(DISCONNECT)
        if self._tell is not None:
            self._tell(self._leave)
        else:
            self._timer = asyncio.get_running_loop().call_later(delay, self._begin)

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self._left = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tell is not None:
            self._tell(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._left and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientLeft from None
