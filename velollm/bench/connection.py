"""HTTP/1.1 for a load generator: the time of each piece is taken as it leaves the socket, and nothing else is done
then.

A client that parses what it reads while hundreds of streams run measures itself. Here pieces are kept with their times,
and read when there is time for it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import attrs
import httptools

from velollm.errors import BackendProtocolError, BackendTimeout, BackendUnreachable, ConfigError

__all__ = ["HttpClient", "Reply"]

CONNECT_SECONDS = 10.0
LOOK_SECONDS = 1.0
FRAMING = frozenset({b"content-length", b"transfer-encoding"})


@attrs.frozen(kw_only=True)
class Reply:
    """An answer: the pieces of its body with the times at which they came, and when it was sent (`perf_counter`)."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    pieces: Sequence[tuple[float, bytes]]
    sent: float


class Exchange(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.alive = True
        self.heard = 0.0
        self.done: asyncio.Future[None] | None = None
        self.reset()

    def reset(self) -> None:
        """Ready for another answer."""
        self.pieces: list[tuple[float, bytes]] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.begun = False
        self._open_ended = False  # nothing but the end of the connection ends the answer
        self._parser = httptools.HttpResponseParser(self)

    def ask(self, data: bytes) -> asyncio.Future[None]:
        """Send a request; the future is done with its answer, or fails."""
        self.done = self._loop.create_future()
        self.heard = perf_counter()
        assert self.transport is not None
        if not self.alive:
            self._fail(ConnectionError("the server closed the connection"))
        else:
            self.transport.write(data)
        return self.done

    def give_up(self) -> None:
        """The server has been silent for too long."""
        self._fail(TimeoutError())
        self.close()

    def close(self) -> None:
        """No more."""
        self.alive = False
        if self.transport is not None:
            self.transport.abort()

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.heard = perf_counter()
        self.begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ValueError(f"the answer is not HTTP: {error}"))
            self.close()

    def eof_received(self) -> None:
        self.alive = False
        if self._open_ended:
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False
        self._fail(error or ConnectionError("the server closed the connection before its answer was complete"))

    # ---- httptools' side ----

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._open_ended = self.status >= 200 and not any(name in FRAMING for name, _ in self.headers)

    def on_body(self, body: bytes) -> None:
        self.pieces.append((self.heard, body))

    def on_message_complete(self) -> None:
        if self.status < 200:  # what comes before an answer (100 Continue, 103 Early Hints)
            return
        if not self._parser.should_keep_alive():
            self.alive = False
        self._finish()

    def _finish(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)


class HttpClient:
    """A server at `url`, which may be silent for `patience` seconds. Raises `ConfigError` for what is no URL."""

    def __init__(self, url: str, *, headers: Mapping[str, str] = {}, patience: float = 600.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not the URL of a server: http://host:port is wanted")
        self.name = parts.netloc
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._patience = patience
        lines = [f"host: {parts.netloc.rpartition('@')[2]}", "content-type: application/json", "accept: */*"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise ConfigError("a header must not hold a line break")
        self._head = "\r\n".join(lines)
        self._idle: deque[Exchange] = deque()
        self._busy: set[Exchange] = set()
        self._watch: asyncio.Task[None] | None = None

    async def post(self, path: str, body: bytes, more: str = "") -> Reply:
        """POST, and the whole answer whatever its status; `more` are further lines of the head.

        A kept connection that was closed is replaced, once.

        Raises `BackendUnreachable`, `BackendTimeout` or `BackendProtocolError`.
        """
        head = f"POST {self._prefix}{path} HTTP/1.1\r\n{self._head}\r\n{more}content-length: {len(body)}\r\n\r\n"
        return await self._send(head.encode("latin-1") + body)

    async def get(self, path: str) -> Reply:
        """GET, with the same errors."""
        return await self._send(f"GET {self._prefix}{path} HTTP/1.1\r\n{self._head}\r\n\r\n".encode("latin-1"))

    async def aclose(self) -> None:
        """Close all connections."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        for exchange in (*self._idle, *self._busy):
            exchange.close()
        self._idle.clear()

    async def _send(self, data: bytes) -> Reply:
        sent = perf_counter()
        while self._idle:
            kept = self._idle.pop()
            if not kept.alive:
                continue
            try:
                return await self._exchange(kept, data, sent)
            except BackendProtocolError:
                if kept.begun:
                    raise
        return await self._exchange(await self._connect(), data, sent)

    async def _exchange(self, exchange: Exchange, data: bytes, sent: float) -> Reply:
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())
        self._busy.add(exchange)
        try:
            await exchange.ask(data)
        except TimeoutError:
            raise BackendTimeout(f"{self.name} was silent for {self._patience:g} seconds") from None
        except (OSError, ValueError) as error:
            raise BackendProtocolError(f"{self.name}: {error}") from error
        except asyncio.CancelledError:
            exchange.close()
            raise
        finally:
            self._busy.discard(exchange)
        reply = Reply(status=exchange.status, headers=exchange.headers, pieces=exchange.pieces, sent=sent)
        if exchange.alive:
            exchange.reset()
            self._idle.append(exchange)
        else:
            exchange.close()
        return reply

    async def _connect(self) -> Exchange:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, exchange = await loop.create_connection(Exchange, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise BackendUnreachable(f"no connection to {self.name} within {CONNECT_SECONDS:g} seconds") from None
        except OSError as error:
            raise BackendUnreachable(f"no connection to {self.name}: {error.strerror or error}") from error
        return exchange

    async def _look(self) -> None:
        """End what has been silent for too long."""
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, self._patience / 4))
            latest = perf_counter() - self._patience
            for exchange in list(self._busy):
                if exchange.heard < latest:
                    exchange.give_up()
