"""A WSGI app as a backend: each request runs the app in a thread of its own, whose answer streams into the loop."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

import httpx

from velollm.asgi import ENVIRON, OUTER_SCOPE
from velollm.errors import BackendProtocolError
from velollm.wrapped import passed_headers

__all__ = ["WSGITransport"]

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
WINDOW = 16  # pieces of an answer that wait for the reader before the app's thread does


class WSGITransport(httpx.AsyncBaseTransport):
    """An httpx transport that calls a WSGI app and streams its answer; closing the response stops the iteration."""

    def __init__(self, app: WSGIApp) -> None:
        self.app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = _Call(self.app, _environ(request, await request.aread()))
        threading.Thread(target=call.run, name="velollm-wsgi", daemon=True).start()
        status, headers = await call.head
        return httpx.Response(int(status.split(" ", 1)[0]), headers=headers, stream=call)


class _Call(httpx.AsyncByteStream):
    """One running call of the app; as a byte stream, its response body."""

    def __init__(self, app: WSGIApp, environ: dict[str, Any]) -> None:
        self._app = app
        self._environ = environ
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(WINDOW)
        self._closed = threading.Event()
        self.head: asyncio.Future[tuple[str, list[tuple[str, str]]]] = self._loop.create_future()

    def run(self) -> None:
        """In the thread: call the app and hand over what it yields."""
        last: Exception | None = None
        try:
            answer = self._app(self._environ, self._start_response)
            try:
                for piece in answer:
                    if not self._hand_over(piece):
                        break
            finally:
                close = getattr(answer, "close", None)
                if close is not None:
                    close()
        except Exception as error:  # whatever the app raises is its answer, told to whoever reads it
            last = error
        self._loop.call_soon_threadsafe(self._finish, last)

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        self._loop.call_soon_threadsafe(self._settle, (status, headers))
        return self._hand_over

    def _hand_over(self, piece: bytes) -> bool:
        self._room.acquire()
        if self._closed.is_set():
            return False
        if piece:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        else:
            self._room.release()
        return True

    def _settle(self, head: tuple[str, list[tuple[str, str]]]) -> None:
        if not self.head.done():
            self.head.set_result(head)

    def _finish(self, error: Exception | None) -> None:
        if not self.head.done():
            self.head.set_exception(error or BackendProtocolError("the wrapped app ended without a response"))
        self._pieces.put_nowait(error)

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while True:
            piece = await self._pieces.get()
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise BackendProtocolError("the wrapped app broke off its response") from piece
            self._room.release()
            yield piece

    async def aclose(self) -> None:
        """The reader has what it wants; the app's thread stops at its next piece."""
        self._closed.set()
        self._room.release()


def _environ(request: httpx.Request, body: bytes) -> dict[str, Any]:
    """The environ for the app: that of its own client, with our question in place of the body."""
    path, _, query = request.url.raw_path.partition(b"?")
    caller = OUTER_SCOPE.get() or {}
    given: dict[str, Any] = caller.get(ENVIRON, {})
    environ: dict[str, Any] = {
        "SCRIPT_NAME": "",
        "SERVER_NAME": request.url.host,
        "SERVER_PORT": str(request.url.port or 80),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request.url.scheme,
        "wsgi.errors": sys.stderr,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **{key: value for key, value in given.items() if not key.startswith("HTTP_")},
        "REQUEST_METHOD": request.method,
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.multithread": True,
    }
    for key in ("REQUEST_URI", "RAW_URI"):  # of servers' own: they name the path that was asked
        environ.pop(key, None)
    own = [(name.lower(), value) for name, value in request.headers.raw]
    for name, value in passed_headers(caller.get("headers", ()), own):
        key = name.decode("latin-1").upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value.decode("latin-1")
    return environ
