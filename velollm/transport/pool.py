"""A pooled HTTP/1.1 transport on asyncio and httptools: an `httpx.AsyncBaseTransport` made to be called directly.

httpx's own pool costs about a millisecond of CPU a request, many times what the rest of the proxy does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterable
from typing import cast

import httpx

from velollm.transport.http1 import Connection, Patience

__all__ = ["PooledTransport"]

MAX_IDLE = 64  # kept connections to one server
MAX_IDLE_SECONDS = 30.0
# After the reader has all it wants, the rest of a body may still come: so much of it is awaited to keep the connection.
LINGER_SECONDS = 0.5
LINGER_BYTES = 64 * 1024


class PooledTransport(httpx.AsyncBaseTransport):
    """Keeps connections; times them by `request.extensions["timeout"]` (`connect`, `first_byte`, `read`: seconds).

    A request on a kept connection that ends before any byte came back is sent once more, on a new one: servers close
    kept connections when they like. Nothing else is ever repeated. Raises httpx's errors.
    """

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._lingering: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        origin = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        timeout = request.extensions.get("timeout") or {}
        idle = timeout.get("read") or 60.0
        patience = Patience(timeout.get("first_byte") or idle, idle)
        kept = self._take(origin)
        if kept is not None:
            try:
                return await self._exchange(kept, request, patience, origin)
            except (httpx.ReadError, httpx.RemoteProtocolError):
                if kept.received or not _repeatable(request):
                    raise
        fresh = await self._connect(origin, timeout.get("connect") or 5.0)
        return await self._exchange(fresh, request, patience, origin)

    def _take(self, origin: tuple[str, str, int]) -> Connection | None:
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if connection.alive and asyncio.get_running_loop().time() - connection.idle_since < MAX_IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def keep(self, origin: tuple[str, str, int], connection: Connection) -> None:
        """The exchange is over: keep the connection if it can serve another, else close it."""
        kept = self._idle.setdefault(origin, [])
        if connection.release() and len(kept) < MAX_IDLE:
            kept.append(connection)
        else:
            connection.close()

    async def _connect(self, origin: tuple[str, str, int], seconds: float) -> Connection:
        scheme, host, port = origin
        tls = self._context() if scheme == "https" else None
        try:
            async with asyncio.timeout(seconds):
                _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port, ssl=tls)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} within {seconds:g} seconds") from None
        except OSError as error:
            raise httpx.ConnectError(f"no connection to {host}:{port}: {error.strerror or error}") from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def _exchange(
        self, connection: Connection, request: httpx.Request, patience: Patience, origin: tuple[str, str, int]
    ) -> httpx.Response:
        connection.begin(request.method.encode(), patience)
        try:
            await _send(connection, request)
            await connection.wait_for_head()
        except BaseException:
            connection.close()
            raise
        body = _Body(self, connection, origin)
        return httpx.Response(connection.status, headers=connection.headers, stream=body)

    def linger(self, origin: tuple[str, str, int], connection: Connection) -> None:
        """Let an unfinished body come to its end in the background, for a moment, so that the connection is kept."""
        task = asyncio.get_running_loop().create_task(self._linger(origin, connection))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _linger(self, origin: tuple[str, str, int], connection: Connection) -> None:
        size = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while piece := await connection.read():
                    size += len(piece)
                    if size > LINGER_BYTES:
                        break
        except (TimeoutError, httpx.HTTPError):
            connection.close()
        self.keep(origin, connection)

    async def aclose(self) -> None:
        """Close all kept connections."""
        for task in list(self._lingering):
            task.cancel()
        for kept in self._idle.values():
            for connection in kept:
                connection.close()
        self._idle.clear()


class _Body(httpx.AsyncByteStream):
    """The body of one answer. `aclose` gives the connection back when it was read whole, and drops it otherwise."""

    def __init__(self, pool: PooledTransport, connection: Connection, origin: tuple[str, str, int]) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._origin = origin

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        connection = self._connection
        while connection is not None:
            piece = await connection.read()
            if not piece:
                return
            yield piece

    async def aclose(self) -> None:
        """Done with it; what has not come yet is not wanted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.keep(self._origin, connection)

    def finish(self) -> None:
        """Done with it, and the rest, if any, is known to be short: wait for it in the background."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.complete or not connection.alive:
            self._pool.keep(self._origin, connection)
        else:
            self._pool.linger(self._origin, connection)


def _body(request: httpx.Request) -> bytes | AsyncIterable[bytes]:
    try:
        return request.content
    except httpx.RequestNotRead:
        return cast("AsyncIterable[bytes]", request.stream)


def _repeatable(request: httpx.Request) -> bool:
    return isinstance(_body(request), bytes)


async def _send(connection: Connection, request: httpx.Request) -> None:
    body = _body(request)
    if isinstance(body, bytes):
        connection.write(_head(request, len(body)) + body)
        connection.sent()
        return
    chunked = "content-length" not in request.headers
    connection.write(_head(request, None))
    async for piece in body:
        if not piece:
            continue
        connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        await connection.drain()
        if connection.head_complete:
            break  # refused before it was all sent
    if chunked:
        connection.write(b"0\r\n\r\n")
    connection.sent()


def _head(request: httpx.Request, length: int | None) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%b: %b" % (name, value) for name, value in request.headers.raw if name.lower() != b"content-length"]
    if length is not None:
        if length or request.method not in ("GET", "HEAD", "DELETE"):
            lines.append(b"content-length: %d" % length)
    elif "content-length" in request.headers:
        lines.append(b"content-length: " + request.headers["content-length"].encode())
    else:
        lines.append(b"transfer-encoding: chunked")
    lines.append(b"\r\n")
    return b"\r\n".join(lines)
