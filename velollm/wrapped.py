"""The app below the middleware as a backend: requests go down into it as if they came over HTTP, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import TypeAlias, cast
from urllib.parse import unquote

import httpx

from velollm.asgi import DISCONNECT, OUTER_SCOPE, ASGIApp, Message, Scope
from velollm.backend import Limits
from velollm.contrib.openai import OpenAIBackend
from velollm.errors import BackendProtocolError, BackendRefused
from velollm.messages import ModelInfo

__all__ = ["AppTransport", "WrappedApp", "passed_headers"]

Header: TypeAlias = tuple[bytes, bytes]

OF_THE_BODY = frozenset({b"content-length", b"content-encoding", b"transfer-encoding", b"expect", b"connection"})
# Bytes of an answer that wait for the reader before the app's `send` does.
WINDOW = 256 * 1024


class WrappedApp(OpenAIBackend):
    """An app that serves `/v1/chat/completions` itself, as the backend of the middleware around it.

    `transport` reaches the app: an `AppTransport`, or a `velollm.wrapped_wsgi.WSGITransport`.
    """

    insists = False

    def __init__(self, transport: httpx.AsyncBaseTransport, *, limits: Limits = Limits()) -> None:
        super().__init__("openai+http://app/v1", name="app", limits=limits, transport=transport)

    async def models(self) -> list[ModelInfo]:
        """What the app lists; an app without `/v1/models` lists nothing."""
        try:
            return await super().models()
        except BackendRefused as error:
            if error.status in (404, 405):
                return []
            raise


class AppTransport(httpx.AsyncBaseTransport):
    """An httpx transport that calls an ASGI app and streams its answer.

    `httpx.ASGITransport` collects the whole answer first; here each piece is handed on as the app sends it, the app is
    slowed down when nobody reads, and closing the response cancels it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._running: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = _Call(_body(request))
        call.task = asyncio.get_running_loop().create_task(call.run(self.app, _scope(request)))
        self._running.add(call.task)
        call.task.add_done_callback(self._running.discard)
        try:
            await call.head.wait()
        except asyncio.CancelledError:
            await call.aclose()
            raise
        if call.status is None:
            error = call.error
            await call.aclose()
            raise BackendProtocolError("the wrapped app ended without a response") from error
        return httpx.Response(call.status, headers=call.headers, stream=call)


def _scope(request: httpx.Request) -> Scope:
    """The scope for the app: as its own client sent it, credentials and all, with our question in place of the body."""
    path, _, query = request.url.raw_path.partition(b"?")
    caller = OUTER_SCOPE.get() or {}
    root: str = caller.get("root_path", "")
    mount = root if root and caller["path"].startswith(root) else ""  # some servers leave it out of `path`
    own = [(name.lower(), value) for name, value in request.headers.raw]
    headers = passed_headers(caller.get("headers", ()), own)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": request.url.scheme,
        "client": ("127.0.0.1", 0),
        "server": (request.url.host, request.url.port or 80),
        "root_path": "",
        "extensions": {},
        **{name: value for name, value in caller.items() if name != DISCONNECT},  # it is told by its own `receive`
        "method": request.method,
        "path": mount + unquote(path.decode("ascii")),
        "raw_path": mount.encode() + path,
        "query_string": query,
        "headers": headers,
    }


def passed_headers(caller: Iterable[Header], own: list[Header]) -> list[Header]:
    """The caller's headers but those that speak of its body; `own` count more, except for the host."""
    said = {name for name, _ in own if name != b"host"} | OF_THE_BODY
    kept = [(name, value) for name, value in caller if name not in said]
    named = any(name == b"host" for name, _ in kept)
    return kept + [(name, value) for name, value in own if name != b"host" or not named]


def _body(request: httpx.Request) -> AsyncIterable[bytes] | bytes:
    try:
        return request.content
    except httpx.RequestNotRead:
        return cast("AsyncIterable[bytes]", request.stream)


class _Call(httpx.AsyncByteStream):
    """One running call of the app; as a byte stream, its response body."""

    def __init__(self, body: AsyncIterable[bytes] | bytes) -> None:
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.error: Exception | None = None
        self.head = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._request = _messages(body)
        self._pieces: list[bytes] = []
        self._size = 0
        self._complete = False
        self._readable = asyncio.Event()
        self._drained = asyncio.Event()
        self._closed = asyncio.Event()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:  # whatever the app raises is its answer, told to whoever reads it
            self.error = error
        finally:
            self.head.set()
            self._readable.set()

    async def _receive(self) -> Message:
        async for message in self._request:
            return message
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            piece = message.get("body", b"")
            if piece:
                self._pieces.append(piece)
                self._size += len(piece)
            self._complete = not message.get("more_body", False)
            self.head.set()
            self._readable.set()
            if self._size > WINDOW and not self._complete:
                self._drained.clear()
                await self._drained.wait()

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while True:
            await self._readable.wait()
            if self._pieces:
                pieces, self._pieces, self._size = self._pieces, [], 0
                self._drained.set()
                if not self._complete and not (self.task and self.task.done()):
                    self._readable.clear()
                yield b"".join(pieces)
            elif self._complete:
                return
            elif self.task is None or self.task.done():
                raise BackendProtocolError("the wrapped app broke off its response") from self.error
            else:
                self._readable.clear()

    async def aclose(self) -> None:
        """The reader has what it wants: an app still answering is cancelled, one that is cleaning up is left to it."""
        self._closed.set()
        self._drained.set()
        if self.task is not None and not self.task.done() and not self._complete:
            self.task.cancel()
            await asyncio.wait([self.task])


async def _messages(body: AsyncIterable[bytes] | bytes) -> AsyncGenerator[Message, None]:
    if isinstance(body, bytes):
        yield {"type": "http.request", "body": body, "more_body": False}
        return
    async for piece in body:
        yield {"type": "http.request", "body": piece, "more_body": True}
    yield {"type": "http.request", "body": b"", "more_body": False}
