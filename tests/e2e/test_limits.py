"""Memory, files and time of a real `velollm serve` before engines that send too much, and clients that read nothing."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
from support.faulty import JSON, MODELS, SSE, delta, last, whole_answer
from support.upstream import Peer, Server, answer, chunk, head, scripted

from .conftest import serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc"),
]

MIB = 1 << 20
PATIENCE = 12.0


@attrs.define
class Rig:
    """The server's process, and the engine behind it: `says` answers every generation."""

    port: int
    pid: int
    engine: Server
    says: Callable[[Peer], Awaitable[None]] | None = None

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes that the process holds, or (`VmHWM`) held at most since `forget_peak`."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def connect(self, text: str = "Hi", *, stream: bool = True) -> Connection:
        """Ask; nothing is read yet."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=65536)
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream})
        lines = [b"POST /v1/chat/completions HTTP/1.1", b"host: localhost", b"connection: close",
                 b"cache-control: no-store", b"content-length: %d" % len(body)]  # fmt: skip
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        return Connection(reader, writer)

    async def ask(self, *, stream: bool = True) -> tuple[int, bytes, bytes]:
        """Status, and the beginning and the end of the answer."""
        connection = await self.connect(stream=stream)
        first = end = b""
        async with asyncio.timeout(PATIENCE):
            while piece := await connection.reader.read(65536):
                first = first or piece
                end = (end + piece)[-2000:]
        connection.leave()
        return int(first.split(b" ")[1]), first, end


@attrs.define
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def leave(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def rig(folder: Path) -> AsyncGenerator[Rig, None]:
    async def play(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if request.method == b"GET":
                peer.send(answer(MODELS, JSON))
                continue
            if made is None or made.says is None:
                peer.send(answer(whole_answer(), JSON))
                continue
            await made.says(peer)
            if peer.writer.is_closing():
                return

    made: Rig | None = None
    async with scripted(play) as engine:
        context = serving(folder, "limits", "m", "--backend", f"openai+{engine.url}/v1")
        served = await asyncio.to_thread(context.__enter__)
        try:
            made = Rig(int(served.url.rpartition(":")[2]), served.pid, engine)
            await made.ask(stream=False)
            yield made
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.fixture
async def proxy(folder: Path) -> AsyncIterator[Rig]:
    async with rig(folder) as made:
        yield made


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(b"0" * MIB) for _ in range(size // MIB)), packer.flush()])


async def pour(peer: Peer, piece: bytes, times: int) -> None:
    """Send as much as is taken, and end the connection."""
    try:
        async with asyncio.timeout(PATIENCE):
            for _ in range(times):
                peer.writer.write(piece)
                await peer.writer.drain()
    except (TimeoutError, ConnectionError):
        pass
    peer.close()


BOMB = bomb(200 * MIB)


async def bombs(peer: Peer) -> None:
    peer.send(answer(BOMB, JSON, b"content-encoding: gzip"))


async def bombs_in_a_stream(peer: Peer) -> None:
    peer.send(answer(BOMB, SSE, b"content-encoding: gzip"))


async def megabytes_of_json(peer: Peer) -> None:
    peer.send(head(JSON, b"content-length: %d" % (64 * MIB)), whole_answer()[:90])
    await pour(peer, b"x" * MIB, 64)


async def one_line(peer: Peer) -> None:
    peer.send(head(SSE, b"transfer-encoding: chunked"), chunk(delta("a", role=True)), chunk(b'data: {"x":"'))
    await pour(peer, chunk(b"x" * MIB), 32)


@pytest.mark.parametrize(
    ("says", "stream", "most"),
    [(bombs, False, 150), (bombs_in_a_stream, True, 150), (megabytes_of_json, False, 200), (one_line, True, 150)],
)
async def test_too_much_is_an_error_soon_and_takes_little_memory(
    proxy: Rig, says: Any, stream: bool, most: int
) -> None:
    proxy.says = says
    proxy.forget_peak()
    before, begin = proxy.memory(), time.monotonic()
    status, first, end = await proxy.ask(stream=stream)
    assert time.monotonic() - begin < PATIENCE
    assert proxy.memory("VmHWM") - before < most * MIB
    assert status == 502 or b"error" in first + end
    assert b"[DONE]" not in end
    proxy.says = None
    assert (await proxy.ask(stream=False))[0] == 200


async def test_a_client_that_reads_nothing_holds_the_engine_back(proxy: Rig) -> None:
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        peer.send(head(SSE, b"transfer-encoding: chunked"))
        piece = chunk(delta("y" * 16000))
        try:
            for _ in range(160 * MIB // len(piece)):
                peer.writer.write(piece)
                await peer.writer.drain()
                sent += len(piece)
        except ConnectionError:
            pass
        peer.close()

    proxy.says = flood
    proxy.forget_peak()
    before = proxy.memory()
    clients = [await proxy.connect(f"Flood {number}") for number in range(2)]
    await asyncio.sleep(2)
    held = sent
    await asyncio.sleep(0.5)
    assert sent == held, "the engine is held back"
    assert proxy.memory("VmHWM") - before < 60 * MIB
    for client in clients:
        client.leave()
    busy = [peer for peer in proxy.engine.peers if peer.requests[-1].method == b"POST"]
    async with asyncio.timeout(2.5):
        for peer in busy[-2:]:
            await peer.ended.wait()


async def test_sixty_who_leave_at_random_leave_no_file_open(proxy: Rig) -> None:
    async def slowly(peer: Peer) -> None:
        peer.send(head(SSE, b"transfer-encoding: chunked"))
        try:
            for number in range(400):
                peer.send(chunk(delta(f" {number}", role=number == 0)))
                await peer.writer.drain()
                await asyncio.sleep(0.01)
            peer.send(chunk(last()), chunk())
        except ConnectionError:
            peer.close()

    proxy.says = slowly
    before, rng = proxy.files(), random.Random(1)

    async def one(number: int) -> None:
        client = await proxy.connect(f"Question {number}")
        await asyncio.sleep(rng.random())
        client.leave()

    await asyncio.gather(*(one(number) for number in range(60)))
    begin = time.monotonic()
    while any(peer.requests and peer.requests[-1].method == b"POST" and not peer.ended.is_set()
              and b"no-store" not in peer.requests[-1].body for peer in proxy.engine.peers[2:]):  # fmt: skip
        assert time.monotonic() - begin < 4
        await asyncio.sleep(0.02)
    assert proxy.files() - before < 40


async def test_three_hundred_who_keep_their_connections_leave_room_for_others(proxy: Rig) -> None:
    before = proxy.files()
    idle = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(300)]
    for _, writer in idle:
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    for reader, _ in idle:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    begin = time.monotonic()
    assert (await proxy.ask(stream=False))[0] == 200
    assert time.monotonic() - begin < 2
    for _, writer in idle:
        writer.transport.abort()
    begin = time.monotonic()
    while proxy.files() - before > 20:
        assert time.monotonic() - begin < 4
        await asyncio.sleep(0.02)


async def test_three_hundred_at_once_are_all_answered(proxy: Rig) -> None:
    before, files = proxy.memory(), proxy.files()
    begin = time.monotonic()
    answers = await asyncio.gather(*(proxy.ask(stream=False) for _ in range(300)))
    assert {status for status, _, _ in answers} == {200}
    assert time.monotonic() - begin < 20
    await asyncio.sleep(0.3)
    assert proxy.memory() - before < 250 * MIB
    assert proxy.files() - files < 60
