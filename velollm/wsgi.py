"""VeloLLM for WSGI apps: the ASGI door runs in an event loop of its own thread, and streams through it.

    flask_app.wsgi_app = VeloLLM.wsgi(flask_app.wsgi_app, backend="ollama://localhost:11434")
    application = VeloLLM.wsgi(get_wsgi_application())          # Django's own /v1/chat/completions, improved

The loop starts with the first request that needs it, so that servers may fork before.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, TypeAlias, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

from velollm.asgi import ENVIRON, Message, Scope
from velollm.middleware import VeloLLM

__all__ = ["VeloWSGI"]

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]
WSGIApp: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

# Bytes of an answer that wait for the WSGI server before the door does.
WINDOW = 256 * 1024
# PEP 3333 leaves these to the server.
HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer"})


class VeloWSGI:
    """The middleware around a WSGI app; `options` are those of `velollm.VeloLLM`.

    Without a `backend`, the app below is asked itself. Closing the response (which servers do when a client leaves)
    cancels the work behind it.
    """

    def __init__(self, app: WSGIApp | None = None, **options: Any) -> None:
        self.app = app
        self._loop = _LoopThread()
        wraps = app is not None and options.get("backend") is None
        if wraps:
            from velollm.wrapped import WrappedApp
            from velollm.wrapped_wsgi import WSGITransport

            options["backend"] = WrappedApp(WSGITransport(cast("WSGIApp", app)))
        self.velo = VeloLLM(None, **{"forward_unknown": app is None, **options})
        self.velo.wraps = wraps

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = _decode(environ.get("PATH_INFO", "") or "/")
        relative = self.velo.path(path)
        if self.app is not None and (relative is None or not self.velo.knows(environ["REQUEST_METHOD"], relative)):
            return self.app(environ, start_response)
        response = _Response(_scope(environ, path), _read_input(environ, self.velo.door.bodies.each))
        response.begin(self._loop.portal(), self.velo)
        response.wait_for_head(start_response)
        return response

    def close(self) -> None:
        """Close the backend and end the thread; done by itself when the interpreter exits."""
        self._loop.close(self.velo.backend.aclose)


class _LoopThread:
    """An event loop in a thread, started on first use and anew after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._context: Any = None
        self._pid = 0

    def portal(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None or self._pid != os.getpid():
                self._context = start_blocking_portal()
                self._portal = cast("BlockingPortal", self._context.__enter__())
                self._pid = os.getpid()
                atexit.register(self.close)
            return self._portal

    def close(self, first: Callable[[], Any] | None = None) -> None:
        with self._lock:
            if self._portal is None or self._pid != os.getpid():
                return
            if first is not None:
                self._portal.call(first)
            self._portal = None
            self._context.__exit__(None, None, None)
            atexit.unregister(self.close)


class _Response(Iterator[bytes]):
    """One answer on its way from the loop's thread (`_send`) to the WSGI server's (`__next__`)."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        self._scope = scope
        self._body: bytes | None = body
        self._messages: queue.SimpleQueue[Message | BaseException | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self._future: Future[None] | None = None

    def begin(self, portal: BlockingPortal, app: VeloLLM) -> None:
        self._future = portal.start_task_soon(self._run, app)

    async def _run(self, app: VeloLLM) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await app(self._scope, self._receive, self._send)
        except Exception as error:  # raised again in the server's thread
            self._messages.put(error)
        finally:
            self._messages.put(None)

    async def _receive(self) -> Message:
        if self._body is None:  # WSGI tells of a client that left only by closing the response
            never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            return await never
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: Message) -> None:
        with self._lock:
            self._waiting += len(message.get("body", b""))
            full = self._waiting > WINDOW
            if full:
                self._drained.clear()
        self._messages.put(message)
        if full:
            await self._drained.wait()

    def wait_for_head(self, start_response: StartResponse) -> None:
        """Block until the status is known, and pass it on."""
        message = self._messages.get()
        if isinstance(message, BaseException):
            raise message
        if message is None:
            raise RuntimeError("the door ended without an answer")
        status = int(message["status"])
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in message["headers"]
            if name not in HOP_BY_HOP
        ]
        start_response(f"{status} {_reason(status)}", headers)

    def __next__(self) -> bytes:
        while True:
            message = self._messages.get()
            if message is None:
                raise StopIteration
            if isinstance(message, BaseException):
                raise message
            body = cast("bytes", message.get("body", b""))
            self._take(len(body))
            if body:
                return body

    def _take(self, size: int) -> None:
        with self._lock:
            self._waiting -= size
            if self._waiting > WINDOW or self._drained.is_set() or self._loop is None:
                return
        self._loop.call_soon_threadsafe(self._drained.set)

    def close(self) -> None:
        """The server wants no more: when the answer is not complete, the work behind it ends."""
        if self._future is not None and not self._future.done():
            self._future.cancel()


def _decode(text: str) -> str:
    """PEP 3333 passes bytes as Latin-1 text; paths are UTF-8."""
    return text.encode("latin-1").decode("utf-8", "replace")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _read_input(environ: Environ, limit: int) -> bytes:
    """The request body, or just over `limit` bytes of it: the door refuses what is longer."""
    stream = environ["wsgi.input"]
    declared = environ.get("CONTENT_LENGTH") or ""
    if declared.isdigit():
        return cast("bytes", stream.read(min(int(declared), limit + 1)))
    if environ.get("wsgi.input_terminated"):
        return cast("bytes", stream.read(limit + 1))
    return b""


def _scope(environ: Environ, path: str) -> Scope:
    headers = [
        (key[5:].replace("_", "-").lower().encode("latin-1"), value.encode("latin-1"))
        for key, value in environ.items()
        if key.startswith("HTTP_")
    ]
    for key, name in (("CONTENT_TYPE", b"content-type"), ("CONTENT_LENGTH", b"content-length")):
        if environ.get(key):
            headers.append((name, environ[key].encode("latin-1")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": environ["REQUEST_METHOD"],
        "scheme": environ.get("wsgi.url_scheme", "http"),
        "path": path,
        "raw_path": (environ.get("REQUEST_URI") or environ.get("RAW_URI") or "").partition("?")[0].encode("latin-1"),
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
        "root_path": "",
        "headers": headers,
        "client": (environ.get("REMOTE_ADDR", ""), 0),
        "server": (environ.get("SERVER_NAME", ""), int(environ.get("SERVER_PORT") or 0)),
        ENVIRON: environ,  # for an app below that is asked in turn
    }
