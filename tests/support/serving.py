"""An app behind the real server (uvicorn with our protocol) on a free port, and clients that send whatever bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from velollm.config import Settings
from velollm.observability import Metrics
from velollm.routing import BackendPool
from velollm.server.app import ServerApp
from velollm.server.protocol import GuardedProtocol
from velollm.server.runner import Server, bind, server_config

__all__ = ["Connection", "Served", "post", "serve", "served"]


def served(*backends: Any, settings: Settings | None = None, keys: Any = None) -> ServerApp:
    """The standalone app in front of `backends`."""
    metrics = Metrics()
    return ServerApp(settings or Settings(), BackendPool(backends, on_health=metrics.set_backend), metrics, keys)


class Served:
    """A running server; `connections` are those that clients hold open."""

    def __init__(self, port: int, server: Server) -> None:
        self.port = port
        self.server = server

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    async def ask(self, *data: bytes, eof: bool = False, seconds: float = 5.0) -> bytes:
        """Send bytes and read until the server closes."""
        async with self.connect() as connection:
            connection.send(*data)
            if eof:
                connection.writer.write_eof()
            return await connection.rest(seconds)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection, None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.transport.abort()


class Connection:
    """A client's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *data: bytes) -> None:
        for piece in data:
            self.writer.write(piece)

    async def rest(self, seconds: float = 5.0) -> bytes:
        """Everything until the server closes; fails when it does not within `seconds`."""
        data = b""
        async with asyncio.timeout(seconds):
            try:
                while piece := await self.reader.read(65536):
                    data += piece
            except ConnectionResetError:
                pass
        return data

    async def answer(self, seconds: float = 5.0) -> tuple[int, dict[bytes, bytes], bytes]:
        """One answer of known length, or in chunks: status, headers, body."""
        async with asyncio.timeout(seconds):
            status, headers = await self.head()
            return status, headers, await self.body(headers)

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        """The beginning of an answer: status, headers."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        return int(lines[0].split(b" ")[1]), dict(line.lower().split(b": ", 1) for line in lines[1:])

    async def body(self, headers: dict[bytes, bytes]) -> bytes:
        """The rest of it."""
        body = b""
        if headers.get(b"transfer-encoding") == b"chunked":
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        elif b"content-length" in headers:
            body = await self.reader.readexactly(int(headers[b"content-length"]))
        return body


@asynccontextmanager
async def serve(
    app: Any, *, protocol: type[GuardedProtocol] = GuardedProtocol, drain_timeout: float = 1.0
) -> AsyncGenerator[Served, None]:
    """Serve `app` until the block ends."""
    sockets = bind("127.0.0.1", 0)
    config = server_config(app, drain_timeout=drain_timeout, protocol=protocol)
    server = Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=sockets)  # what `serve` does, but for signals, and pauses that tests would wait for
    try:
        yield Served(sockets[0].getsockname()[1], server)
    finally:
        for listening in server.servers:
            listening.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        async with asyncio.timeout(5):
            await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
            await server.lifespan.shutdown()


def post(path: str, body: Any, *headers: bytes) -> bytes:
    """A POST of JSON (or of bytes) as a client sends it."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"host: localhost", b"content-length: %d" % len(content), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + content
