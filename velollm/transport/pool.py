"""A pooled HTTP/1.1 transport on asyncio and httptools: an `httpx.AsyncBaseTransport` made to be called directly.

httpx's own pool costs about a millisecond of CPU a request, many times what the rest of the proxy does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import TypeAlias, cast

import httpx

from velollm.transport.head import framing, header_lines, request_line
from velollm.transport.http1 import Connection, Patience

__all__ = ["Origin", "PooledBody", "PooledTransport", "origin_of"]

Origin: TypeAlias = tuple[str, str, int]

MAX_IDLE = 32  # kept connections to one server
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
        self._idle: dict[Origin, deque[Connection]] = {}
        self._lingering: set[asyncio.Task[None]] = set()
        self._busy: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        method, url, stream = request.method, request.url, request.stream
        timeout = request.extensions.get("timeout") or {}
        idle = timeout.get("read") or 60.0
        patience = Patience(timeout.get("connect") or 5.0, timeout.get("first_byte") or idle, idle)
        head = request_line(method, url.raw_path) + header_lines(request.headers.raw)
        if isinstance(stream, httpx.ByteStream):
            body = await self.exchange(origin_of(url), method, head, b"".join(stream), patience)
        else:
            length = request.headers.get("content-length", "")
            size = int(length) if length.isdigit() and len(length) < 19 else None
            pieces = cast("AsyncIterable[bytes]", stream)
            body = await self.exchange(origin_of(url), method, head, pieces, patience, size=size)
        return httpx.Response(body.status, headers=body.headers, stream=body)

    async def exchange(
        self,
        origin: Origin,
        method: str,
        head: bytes,
        body: bytes | AsyncIterable[bytes],
        patience: Patience,
        *,
        size: int | None = None,
    ) -> PooledBody:
        """What `handle_async_request` does, without httpx's values; `head` lacks the framing and the blank line.

        `size` is the length of a body that comes in pieces, if it is known.
        """
        self._closed = False
        if isinstance(body, bytes):
            head += framing(method, len(body))
            head += body
        else:
            head += framing(method, size)
        connection = self._take(origin)
        while True:
            kept = connection is not None
            if connection is None:
                connection = await self._connect(origin, patience.connect)
            connection.begin(patience, is_head=method == "HEAD")
            self._busy.add(connection)
            try:
                connection.write(head)
                if not isinstance(body, bytes):
                    await _upload(connection, body, size)
                connection.sent()
                await connection.wait_for_head()
            except BaseException as error:
                self._busy.discard(connection)
                connection.close()
                ended = isinstance(error, httpx.ReadError | httpx.RemoteProtocolError) and not connection.received
                if not (kept and ended and isinstance(body, bytes)):
                    raise
            else:
                return PooledBody(self, connection, origin)
            connection = None

    def _take(self, origin: Origin) -> Connection | None:
        kept = self._idle.get(origin)
        if not kept:
            return None
        loop = asyncio.get_running_loop()
        while kept:
            connection = kept.pop()
            if connection.loop is not loop:
                continue  # left over from a loop that has ended; its sockets go with it
            if connection.alive and not _expired(connection) and not connection.stale():
                return connection
            connection.close()
        return None

    def keep(self, origin: Origin, connection: Connection) -> None:
        """The exchange is over: keep the connection if it can serve another, else close it."""
        self._busy.discard(connection)
        if not connection.release() or self._closed:
            connection.close()
            return
        kept = self._idle.get(origin)
        if kept is None:
            kept = self._idle[origin] = deque()
        kept.append(connection)
        while len(kept) > MAX_IDLE or not kept[0].alive or _expired(kept[0]):
            kept.popleft().close()
            if not kept:
                return

    async def _connect(self, origin: Origin, seconds: float) -> Connection:
        scheme, host, port = origin
        tls = self._context() if scheme == "https" else None
        try:
            async with asyncio.timeout(seconds):
                _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port, ssl=tls)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} within {seconds:g} seconds") from None
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise httpx.ConnectError(f"no connection to {host}:{port}: {reason}") from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def break_off(self, why: str) -> None:
        """End all exchanges that are under way, as if their time had run out."""
        for connection in list(self._busy):
            connection.give_up(why)

    def linger(self, origin: Origin, connection: Connection) -> None:
        """Let an unfinished body come to its end in the background, for a moment, so that the connection is kept."""
        task = asyncio.get_running_loop().create_task(self._linger(origin, connection))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _linger(self, origin: Origin, connection: Connection) -> None:
        size = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while size <= LINGER_BYTES and (piece := await connection.read()):
                    size += len(piece)
        except (TimeoutError, httpx.HTTPError):
            pass  # it is not complete, and therefore closed
        finally:
            self.keep(origin, connection)

    async def aclose(self) -> None:
        """Close all kept connections; those in use are closed when they are let go."""
        self._closed = True
        for task in list(self._lingering):
            task.cancel()
        for kept in self._idle.values():
            for connection in kept:
                connection.close()
        self._idle.clear()


class PooledBody(httpx.AsyncByteStream):
    """One answer, its body unread. `aclose` gives the connection back when it was read whole, else drops it."""

    __slots__ = ("_connection", "_origin", "_pool", "headers", "read", "status")

    def __init__(self, pool: PooledTransport, connection: Connection, origin: Origin) -> None:
        self.status = connection.status
        self.headers = connection.headers  # lower-case names
        self._pool = pool
        self._connection: Connection | None = connection
        self._origin = origin
        # Some more of the body, empty at its end: what iteration does, but cheaper.
        self.read: Callable[[], Coroutine[None, None, bytes]] = connection.read

    @property
    def is_read(self) -> bool:
        """Whether it was read to its end."""
        return self._connection is not None and self._connection.is_read

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while piece := await self.read():
            yield piece

    async def aclose(self) -> None:
        """Done with it; what has not come yet is not wanted."""
        connection = self._let_go()
        if connection is not None:
            self._pool.keep(self._origin, connection)

    def finish(self) -> None:
        """Done with it, and the rest, if any, is known to be short: wait for it in the background."""
        connection = self._let_go()
        if connection is None:
            return
        if connection.complete or not connection.alive:
            self._pool.keep(self._origin, connection)
        else:
            self._pool.linger(self._origin, connection)

    def _let_go(self) -> Connection | None:
        """From here on the connection may be another's: nothing must be read through this body any more."""
        connection, self._connection = self._connection, None
        self.read = _closed
        return connection


async def _closed() -> bytes:
    raise httpx.ReadError("the answer was closed before it was read")


def origin_of(url: httpx.URL) -> Origin:
    """What connections are kept by: scheme, host and port."""
    return (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))


def _expired(connection: Connection) -> bool:
    return connection.loop.time() - connection.idle_since > MAX_IDLE_SECONDS


async def _upload(connection: Connection, pieces: AsyncIterable[bytes], size: int | None) -> None:
    """Send a body of `size` bytes, or in chunks when that is not known; stops when it is answered before its end."""
    left = size or 0
    async for piece in pieces:
        if not piece:
            continue
        left -= len(piece)
        connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if size is None else piece)
        if not await connection.drain():
            connection.alive = False
            return
    if size is None:
        connection.write(b"0\r\n\r\n")
    elif left:
        raise httpx.LocalProtocolError(f"a body of {size} bytes was announced, {size - left} came")
