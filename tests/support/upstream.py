"""A server on loopback whose bytes a test dictates: one script plays every connection.

async def script(peer: Peer) -> None:
    while await peer.request():
        peer.send(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n{}")

async with scripted(script) as server:
    Upstream(server.url, ...)
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

import attrs

__all__ = ["Peer", "Received", "Server", "answer", "chunk", "head", "scripted"]


@attrs.frozen(kw_only=True)
class Received:
    """A request as it came; names of headers in lower case, chunked bodies put together."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes


class Peer:
    """The server's end of one connection; `number` counts connections from 0."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.requests: list[Received] = []
        self.ended = asyncio.Event()  # its script is over, as it is when the client has gone

    async def request(self) -> Received | None:
        """The next request, read whole; None when the client has gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head[:-4].split(b"\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
            body = await self._body(headers)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        method, target, _ = lines[0].split(b" ")
        received = Received(method=method, target=target, headers=headers, body=body)
        self.requests.append(received)
        return received

    async def _body(self, headers: dict[bytes, bytes]) -> bytes:
        if headers.get(b"transfer-encoding") != b"chunked":
            return await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return body

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def flood(self, piece: bytes, times: int) -> int:
        """Send as much as the client takes, `times` pieces at most; how many it took."""
        for count in range(times):
            self.writer.write(piece)
            try:
                await asyncio.wait_for(self.writer.drain(), 0.5)
            except (TimeoutError, ConnectionError):
                return count
        return times

    def close(self) -> None:
        """FIN."""
        self.writer.close()

    def half_close(self) -> None:
        """FIN, but go on reading."""
        self.writer.write_eof()

    def reset(self) -> None:
        """RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def left(self, seconds: float = 2.0) -> float:
        """Wait until the client closes its end; how long that took. Raises TimeoutError after `seconds`."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    pass
        except ConnectionError:
            pass
        return loop.time() - begin


Script = Callable[[Peer], Awaitable[None]]


class Server:
    """What the test sees: the address, and every connection in the order of their coming."""

    def __init__(self, listening: asyncio.Server, scheme: str) -> None:
        self.listening = listening
        self.port: int = listening.sockets[0].getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []

    @property
    def requests(self) -> list[Received]:
        return [request for peer in self.peers for request in peer.requests]


@asynccontextmanager
async def scripted(script: Script, *, tls: SSLContext | None = None, port: int = 0) -> AsyncGenerator[Server, None]:
    """Serve; a failure inside the script fails the test. At the end of its script a connection is closed."""
    tasks: set[asyncio.Task[None]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(len(server.peers), reader, writer)
        server.peers.append(peer)
        try:
            await script(peer)
        except ConnectionError:
            pass
        except asyncio.CancelledError:
            pass  # the test is over before its script
        except BaseException as error:
            server.failures.append(error)
        finally:
            tasks.discard(task)
            peer.ended.set()
            writer.close()

    listening = await asyncio.start_server(play, "127.0.0.1", port, ssl=tls, limit=1 << 26)
    server = Server(listening, "https" if tls else "http")
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
    if server.failures:
        raise server.failures[0]


def head(*headers: bytes, status: bytes = b"200 OK") -> bytes:
    """The head of an answer."""
    return b"\r\n".join((b"HTTP/1.1 " + status, *headers, b"", b""))


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole answer of known length."""
    return head(*headers, b"content-length: %d" % len(body), status=status) + body


def chunk(data: bytes = b"") -> bytes:
    """One chunk of a chunked body; the last one when empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)
