"""The pool against a server on loopback: what is kept, what is sent again, what is closed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine

import httpx
import pytest
from support.upstream import Peer, answer, chunk, head, scripted

from velollm.transport import PooledTransport

Runner = Callable[[Coroutine[None, None, None]], None]


def _loops() -> list[str]:
    return ["asyncio"] if sys.platform == "win32" else ["asyncio", "uvloop"]


@pytest.fixture(params=_loops())
def on_loop(request: pytest.FixtureRequest) -> Runner:
    """Runs a coroutine on each kind of loop."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")

        def run(work: Coroutine[None, None, None]) -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(work)

        return run
    return asyncio.run


async def get(pool: PooledTransport, url: str, **timeout: float) -> tuple[int, bytes]:
    request = httpx.Request("GET", url, extensions={"timeout": {"connect": 2.0, "read": 2.0, **timeout}})
    return await ask(pool, request)


async def post(pool: PooledTransport, url: str, content: bytes | AsyncGenerator[bytes, None]) -> tuple[int, bytes]:
    return await ask(pool, httpx.Request("POST", url, content=content))


async def ask(pool: PooledTransport, request: httpx.Request) -> tuple[int, bytes]:
    response = await pool.handle_async_request(request)
    try:
        return response.status_code, await response.aread()
    finally:
        await response.aclose()


async def obliging(peer: Peer) -> None:
    while request := await peer.request():
        peer.send(answer(request.method + b" " + request.target + b" " + request.body))


def test_connections_are_kept_and_shared_out(on_loop: Runner) -> None:
    async def work() -> None:
        pool = PooledTransport()
        async with scripted(obliging) as server:
            for number in range(5):
                assert await post(pool, f"{server.url}/a?b={number}", b"x" * number) == (
                    200,
                    b"POST /a?b=%d %b" % (number, b"x" * number),
                )
            assert len(server.peers) == 1
            await asyncio.gather(*(get(pool, server.url) for _ in range(8)))
            assert len(server.peers) == 8
            await asyncio.gather(*(get(pool, server.url) for _ in range(8)))
            assert len(server.peers) == 8
            await pool.aclose()
            await asyncio.gather(*(asyncio.wait_for(peer.ended.wait(), 1) for peer in server.peers))

    on_loop(work())


def test_a_body_in_pieces_is_sent_in_chunks_or_by_its_length(on_loop: Runner) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for piece in (b"one", b"", b"two" * 100_000):
            yield piece

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(obliging) as server:
            expected = (200, b"POST / one" + b"two" * 100_000)
            assert await post(pool, server.url, pieces()) == expected
            known = httpx.Request("POST", server.url, content=pieces(), headers={"content-length": "300003"})
            assert await ask(pool, known) == expected
            assert server.requests[0].headers[b"transfer-encoding"] == b"chunked"
            assert b"transfer-encoding" not in server.requests[1].headers
            wrong = httpx.Request("POST", server.url, content=pieces(), headers={"content-length": "300004"})
            with pytest.raises(httpx.LocalProtocolError, match="300003 came"):
                await ask(pool, wrong)
            await pool.aclose()

    on_loop(work())


def test_an_upload_ends_when_it_is_answered_early(on_loop: Runner) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.send(answer(b"too large", status=b"413 Content Too Large"))
        await peer.left(5)

    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0.001)

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(refuse) as server:
            assert await post(pool, server.url, endless()) == (413, b"too large")
            assert await post(pool, server.url, endless()) == (413, b"too large")
            assert len(server.peers) == 2  # half a request lies on the first

    on_loop(work())


def test_a_kept_connection_that_ends_before_a_byte_came_is_replaced_once(on_loop: Runner) -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        peer.send(answer(b"%d" % peer.number))
        await peer.request()  # and closes

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(once) as server:
            assert await get(pool, server.url) == (200, b"0")
            assert await post(pool, server.url, b"x") == (200, b"1")
            assert len(server.requests) == 3
            await pool.aclose()

    on_loop(work())


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_new_connection_that_ends_before_a_byte_came_is_not_tried_again(on_loop: Runner, way: str) -> None:
    async def never(peer: Peer) -> None:
        await peer.request()
        getattr(peer, way)()

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(never) as server:
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError), match="before an answer came"):
                await get(pool, server.url)
            assert len(server.peers) == 1

    on_loop(work())


def test_a_kept_connection_that_broke_off_is_not_tried_again(on_loop: Runner) -> None:
    async def halves(peer: Peer) -> None:
        await peer.request()
        peer.send(answer(b"fine"))
        await peer.request()
        peer.send(head(b"content-length: 10")[:-5])
        peer.close()

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(halves) as server:
            assert await get(pool, server.url) == (200, b"fine")
            with pytest.raises(httpx.RemoteProtocolError, match="middle of the answer"):
                await get(pool, server.url)
            assert len(server.requests) == 2

    on_loop(work())


def test_a_body_in_pieces_is_never_sent_twice(on_loop: Runner) -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        peer.send(answer(b"fine"))
        await peer.request()

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"x"

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(once) as server:
            assert await get(pool, server.url) == (200, b"fine")
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await post(pool, server.url, pieces())
            assert len(server.requests) == 2

    on_loop(work())


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_bytes_after_an_answer_never_answer_another_request(on_loop: Runner, pause: float) -> None:
    async def chatty(peer: Peer) -> None:
        while await peer.request():
            peer.send(answer(b"right"))
            await peer.writer.drain()
            await asyncio.sleep(pause)
            peer.send(answer(b"wrong"))

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(chatty) as server:
            for _ in range(5):
                assert await get(pool, server.url) == (200, b"right")
                await asyncio.sleep(2 * pause)
            assert len(server.peers) == 5
            await pool.aclose()

    on_loop(work())


def test_what_waits_in_the_socket_is_seen_before_it_is_used_again(on_loop: Runner) -> None:
    gate = asyncio.Event()

    async def chatty(peer: Peer) -> None:
        while await peer.request():
            peer.send(answer(b"right"))
            await gate.wait()
            peer.send(answer(b"wrong"))

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(chatty) as server:
            assert await get(pool, server.url) == (200, b"right")
            gate.set()
            await asyncio.sleep(0)  # the server writes; our loop has not looked at the socket since
            await asyncio.sleep(0)
            assert await get(pool, server.url) == (200, b"right")
            await pool.aclose()

    on_loop(work())


def test_an_answer_dropped_before_its_end_closes_the_connection_at_once(on_loop: Runner) -> None:
    left: list[float] = []

    async def endless(peer: Peer) -> None:
        await peer.request()
        peer.send(head(b"transfer-encoding: chunked"), chunk(b"x"))
        left.append(await peer.left())

    async def work() -> None:
        pool = PooledTransport()
        loop = asyncio.get_running_loop()
        async with scripted(endless) as server:
            response = await pool.handle_async_request(httpx.Request("GET", server.url))
            begin = loop.time()
            await response.aclose()
            while not left:
                await asyncio.sleep(0.001)
            assert loop.time() - begin < 0.1

    on_loop(work())


@pytest.mark.parametrize("when", ["head", "body", "upload"])
def test_cancelling_closes_the_connection_at_once(on_loop: Runner, when: str) -> None:
    started = asyncio.Event()
    left: list[float] = []

    async def slow(peer: Peer) -> None:
        await (peer.reader.readuntil(b"\r\n\r\n") if when == "upload" else peer.request())
        if when == "body":
            peer.send(head(b"transfer-encoding: chunked"), chunk(b"x"))
        started.set()
        left.append(await peer.left())

    async def stuck() -> AsyncGenerator[bytes, None]:
        yield b"x"
        await asyncio.sleep(60)

    async def work() -> None:
        pool = PooledTransport()
        loop = asyncio.get_running_loop()
        async with scripted(slow) as server:
            asking = get(pool, server.url, read=60) if when != "upload" else post(pool, server.url, stuck())
            task = asyncio.ensure_future(asking)
            await started.wait()
            await asyncio.sleep(0.02)
            begin = loop.time()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while not left:
                await asyncio.sleep(0.001)
            assert loop.time() - begin < 0.1

    on_loop(work())


def test_a_reader_that_sleeps_is_not_sent_everything(on_loop: Runner) -> None:
    taken: list[int] = []

    async def flood(peer: Peer) -> None:
        await peer.request()
        peer.send(head(b"content-length: %d" % (160 << 20)))
        taken.append(await peer.flood(b"x" * (1 << 20), 160))

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(flood) as server:
            response = await pool.handle_async_request(httpx.Request("GET", server.url))
            while not taken:
                await asyncio.sleep(0.05)
            assert taken[0] < 20  # MiB: what socket buffers hold
            await response.aclose()

    on_loop(work())


def test_timeouts(on_loop: Runner) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        if peer.requests[0].target == b"/stalls":
            peer.send(head(b"content-length: 9"), b"x")
        await peer.left(5)

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(silent) as server:
            with pytest.raises(httpx.ReadTimeout, match=r"no first byte within 0\.05"):
                await get(pool, server.url, first_byte=0.05)
            with pytest.raises(httpx.ReadTimeout, match=r"no further byte within 0\.05"):
                await get(pool, f"{server.url}/stalls", read=0.05)

    on_loop(work())


def test_dripped_heads_run_out_of_time(on_loop: Runner) -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        for byte in head(b"content-length: 0") * 10:
            peer.send(bytes([byte]))
            await asyncio.sleep(0.01)

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(drip) as server:
            with pytest.raises(httpx.ReadTimeout):
                await get(pool, server.url, first_byte=0.1)

    on_loop(work())


def test_nobody_listens(on_loop: Runner) -> None:
    async def work() -> None:
        async with scripted(obliging) as server:
            url = server.url
        with pytest.raises(httpx.ConnectError, match=r"no connection to 127\.0\.0\.1"):
            await get(PooledTransport(), url)

    on_loop(work())


def test_the_rest_of_a_short_answer_is_awaited_to_keep_the_connection(on_loop: Runner) -> None:
    async def late(peer: Peer) -> None:
        while await peer.request():
            peer.send(head(b"transfer-encoding: chunked"), chunk(b"data: [DONE]\n\n"))
            await peer.writer.drain()
            await asyncio.sleep(0.02)
            peer.send(chunk())

    async def work() -> None:
        pool = PooledTransport()
        async with scripted(late) as server:
            for _ in range(3):
                response = await pool.handle_async_request(httpx.Request("GET", server.url))
                stream = response.stream
                assert await anext(aiter(stream)) == b"data: [DONE]\n\n"  # type: ignore[arg-type]
                stream.finish()  # type: ignore[union-attr]
                await asyncio.sleep(0.05)
            assert len(server.peers) == 1
            await pool.aclose()

    on_loop(work())


def test_the_pool_outlives_a_loop() -> None:
    pool = PooledTransport()

    async def work() -> None:
        async with scripted(obliging) as server:
            assert (await get(pool, server.url))[0] == 200
            await pool.aclose()

    asyncio.run(work())
    asyncio.run(work())


def test_line_breaks_in_headers_never_reach_the_wire(on_loop: Runner) -> None:
    async def work() -> None:
        pool = PooledTransport()
        async with scripted(obliging) as server:
            for value in (b"a\r\nx-evil: 1", b"a\nb", b"a\rb"):
                with pytest.raises(httpx.LocalProtocolError):
                    await ask(pool, httpx.Request("GET", server.url, headers=[(b"x", value)]))
            assert server.requests == []

    on_loop(work())
