"""The protocol over real sockets: what is slow, too long, or could be read in two ways, is refused and closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest
from support.backend import ScriptedBackend
from support.serving import Served, post, serve, served

from velollm.server.protocol import GuardedProtocol

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"


class Impatient(GuardedProtocol):
    """The same, a hundred times faster."""

    head_seconds = 0.2
    body_window = 0.1
    check_every = 0.02
    linger_seconds = 0.2


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
async def server(backend: ScriptedBackend) -> AsyncGenerator[Served, None]:
    async with serve(served(backend), protocol=Impatient) as running:
        yield running


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return found


# ---- what can be read in two ways ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5\r\ncontent-length: 5\r\n",
        b"content-length: 5, 5\r\n",
        b"content-length: +5\r\n",
        b"content-length: -5\r\n",
        b"content-length: 0x5\r\n",
        b"content-length: 5 5\r\n",
        b"content-length: " + b"9" * 30 + b"\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: chunked, chunked\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: \x0bchunked\r\n",
        b"transfer-encoding: identity\r\n",
        b"transfer-encoding:\r\n chunked\r\n",
        b"transfer-encoding : chunked\r\n",
        b"content-length : 5\r\n",
        b"x: a\rb\r\n",
        b"x: a\x00b\r\n",
        b"x\x00y: a\r\n",
        b"x: a\nhost: evil\r\n",
        b" x: folded\r\n",
        b"x: a\r\n folded\r\n",
        b"host: other\r\n",
        b"x y: a\r\n",
        b": empty\r\n",
        b"no colon\r\n",
    ],
)
async def test_what_can_be_read_in_two_ways_is_refused(server: Served, backend: ScriptedBackend, head: bytes) -> None:
    smuggled = b"0\r\n\r\n" + LAST
    answer = await server.ask(HEAD + head + b"\r\n" + smuggled)
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1 4") == 1 == answer.count(b"\r\n\r\n"), "nothing behind it is answered"
    assert b"connection: close" in answer
    assert error(answer)["code"] == "invalid_request"
    assert backend.requests == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/2.0\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/1.9\r\nhost: localhost\r\n\r\n",
        b"GET /hea lth HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"G\x00T /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"CONNECT evil:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x00" * 100,
        b"hello\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
)
async def test_what_is_no_http_is_refused(server: Served, data: bytes) -> None:
    answer = await server.ask(data)
    assert answer == b"" or status(answer) in (400, 404, 405)
    assert status(await server.ask(LAST)) == 200


async def test_without_a_host_only_http_1_0_is_answered(server: Served) -> None:
    assert status(await server.ask(b"GET /health HTTP/1.0\r\n\r\n")) == 200


# ---- what is too long ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HEAD + b"x: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
        (HEAD + b"".join(b"x%d: a\r\n" % number for number in range(20_000)) + b"\r\n", 431),
        (HEAD + b"".join(b"x%d: a\r\n" % number for number in range(200)) + b"\r\n", 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
        (b"GET /?" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
        (b"X" * 100_000, 400),
    ],
    ids=["one header", "20000 headers", "200 headers", "path", "query", "method"],
)
async def test_long_heads_are_refused(server: Served, data: bytes, expected: int) -> None:
    answer = await server.ask(data)
    assert status(answer) == expected
    assert b"connection: close" in answer


async def test_a_head_that_never_ends_is_refused_at_its_limit(server: Served) -> None:
    async with server.connect() as connection:
        connection.send(HEAD)
        for _ in range(20):  # no longer than the server goes on reading
            connection.send(b"".join(b"x%d: %b\r\n" % (number, b"a" * 100) for number in range(200)))
            await asyncio.sleep(0)
        assert status(await connection.rest()) == 431


async def test_trailers_are_bounded_and_never_become_headers(server: Served, backend: ScriptedBackend) -> None:
    body = orjson.dumps(QUESTION)
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(body), body)
    async with server.connect() as connection:
        connection.send(chunked + b"authorization: Bearer x\r\nx-request-id: smuggled\r\nhost: evil\r\n\r\n")
        code, headers, _ = await connection.answer()
        assert code == 200
        assert headers[b"x-request-id"] != b"smuggled"
    assert "authorization" not in backend.requests[0].context.client_headers
    answer = await server.ask(chunked + b"x: ", *[b"a" * 100_000] * 10)
    assert status(answer) == 431
    assert len(backend.requests) == 1


@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\nab\r\n0\r\n\r\n", b"-1\r\nab\r\n0\r\n\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"fffffffffffffffff\r\na", b"\r\n",
     b"0x2\r\nab\r\n0\r\n\r\n", b"2 \nab\r\n", b"1\r\na0\r\n\r\n"],
)  # fmt: skip
async def test_bad_chunks_are_refused(server: Served, backend: ScriptedBackend, chunks: bytes) -> None:
    answer = await server.ask(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks)
    assert status(answer) == 400
    assert backend.requests == []


async def test_a_body_over_the_limit_is_refused_before_it_is_read(backend: ScriptedBackend) -> None:
    async with serve(served(backend), protocol=Impatient) as server:
        answer = await server.ask(HEAD + b"content-length: 67108864\r\n\r\n" + b"x" * 1000)
        assert status(answer) == 413
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        answer = await server.ask(HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 20)
        assert status(answer) == 413
        assert error(answer)["code"] == "body_too_large"
    assert backend.requests == []


# ---- what is slow ----------------------------------------------------------------------------------------------------


async def dribble(server: Served, data: bytes, every: float) -> bytes:
    """Send a byte at a time until the server has had enough."""
    async with server.connect() as connection:
        reading = asyncio.create_task(connection.rest())
        for byte in data:
            if reading.done():
                break
            connection.send(bytes([byte]))
            await asyncio.sleep(every)
        return await reading


async def test_slow_heads_are_ended_while_others_are_served(server: Served) -> None:
    slow = [asyncio.create_task(dribble(server, HEAD + b"x: " + b"a" * 1000, 0.01)) for _ in range(30)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(1):
        assert status(await server.ask(LAST)) == 200
    for answer in await asyncio.gather(*slow):
        assert status(answer) == 408
        assert error(answer)["code"] == "request_timeout"


async def test_slow_bodies_are_ended(server: Served, backend: ScriptedBackend) -> None:
    answer = await dribble(server, post(PATH, QUESTION)[:-1] + b" " * 1000, 0.01)
    assert status(answer) == 408
    assert backend.requests == []


async def test_half_a_body_is_ended(server: Served, backend: ScriptedBackend) -> None:
    answer = await server.ask(HEAD + b"content-length: 1000\r\n\r\n{")
    assert status(answer) == 408
    await until_idle(server)
    assert backend.requests == []


async def test_a_client_that_says_nothing_is_ended(server: Served) -> None:
    assert await server.ask() == b""


async def test_empty_lines_do_not_keep_a_connection(server: Served) -> None:
    assert await dribble(server, b"\r\n" * 500, 0.01) == b""
    await until_idle(server)


async def test_a_body_that_ends_too_early_is_never_executed(server: Served, backend: ScriptedBackend) -> None:
    whole = post(PATH, QUESTION)
    cut = whole.replace(b"content-length: %d" % len(orjson.dumps(QUESTION)), b"content-length: 500")
    await server.ask(cut, eof=True)
    await until_idle(server)
    assert backend.requests == []


async def test_a_steady_upload_is_not_ended(backend: ScriptedBackend) -> None:
    class Steady(Impatient):
        body_least = 512

    body = orjson.dumps({**QUESTION, "user": "x" * 20_000})
    async with serve(served(backend), protocol=Steady) as server, server.connect() as connection:
        connection.send(HEAD + b"content-length: %d\r\n\r\n" % len(body))
        for begin in range(0, len(body), 500):
            connection.send(body[begin : begin + 500])
            await asyncio.sleep(0.01)
        code, _, _ = await connection.answer()
        assert code == 200


async def test_a_slow_answer_is_not_ended() -> None:
    backend = ScriptedBackend(["word "] * 10, pause=0.05)
    async with serve(served(backend), protocol=Impatient) as server, server.connect() as connection:
        connection.send(post(PATH, {**QUESTION, "stream": True}))
        code, _, body = await connection.answer()
        assert code == 200
        assert body.endswith(b"data: [DONE]\n\n")
        connection.send(LAST)
        assert status(await connection.rest()) == 200


# ---- order and manners -----------------------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order() -> None:
    class Echo(ScriptedBackend):
        async def _events(self, request: Any) -> Any:
            await asyncio.sleep(0.05 if request.messages[0].text == "0" else 0)
            self.words = [request.messages[0].text]
            async for event in super()._events(request):
                yield event

    async with serve(served(Echo())) as server, server.connect() as connection:
        texts = [str(number) for number in range(5)]
        connection.send(*(post(PATH, {**QUESTION, "messages": [{"role": "user", "content": text}]}) for text in texts))
        answers = [await connection.answer() for _ in texts]
        assert [orjson.loads(body)["choices"][0]["message"]["content"] for _, _, body in answers] == texts


async def test_a_bad_request_behind_a_good_one_does_not_cost_its_answer(server: Served) -> None:
    answer = await server.ask(GET + b"rubbish\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"status":"ok"' in answer


async def test_expect_100_continue(server: Served) -> None:
    body = orjson.dumps(QUESTION)
    async with server.connect() as connection:
        connection.send(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
        assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        connection.send(body)
        assert (await connection.answer())[0] == 200
        connection.send(HEAD + b"expect: 100-continue\r\ncontent-length: 67108864\r\n\r\n")
        assert (await connection.answer())[0] == 413, "it need not send it first"


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
async def test_upgrades_are_declined(server: Served, upgrade: bytes) -> None:
    answer = await server.ask(GET[:-2] + b"connection: upgrade\r\nupgrade: " + upgrade + b"\r\n\r\n", seconds=2)
    assert status(answer) == 200


async def test_a_client_that_leaves_ends_the_work() -> None:
    backend = ScriptedBackend(["word "] * 1000, pause=0.01)
    for stream in (True, False):
        async with serve(served(backend)) as server:
            async with server.connect() as connection:
                connection.send(post(PATH, {**QUESTION, "stream": stream}))
                await until(lambda: backend.running == 1)
                if stream:
                    await connection.reader.readuntil(b"word")
            begin = asyncio.get_running_loop().time()
            await until(lambda: backend.running == 0)
            assert asyncio.get_running_loop().time() - begin < 0.1
    assert backend.cancelled == 2


async def test_a_kept_connection_is_closed_in_the_end(backend: ScriptedBackend) -> None:
    async with serve(served(backend), protocol=Impatient) as server, server.connect() as connection:
        server.server.config.timeout_keep_alive = 0.2  # type: ignore[assignment]
        async with server.connect() as kept:
            kept.send(GET)
            assert (await kept.answer())[0] == 200
            await asyncio.sleep(0.1)
            kept.send(GET)
            assert (await kept.answer())[0] == 200, "every request begins the wait anew"
            begin = asyncio.get_running_loop().time()
            assert await kept.rest(2) == b""
            assert 0.1 < asyncio.get_running_loop().time() - begin < 0.5
        assert await connection.rest() == b""


async def test_many_idle_connections_cost_nobody_anything(server: Served) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            connection = await stack.enter_async_context(server.connect())
            connection.send(GET)
            assert (await connection.answer())[0] == 200
        assert server.connections == 300
        async with asyncio.timeout(1):
            assert status(await server.ask(LAST)) == 200
    await until_idle(server)


async def until(condition: Any) -> None:
    async with asyncio.timeout(3):
        while not condition():
            await asyncio.sleep(0.002)


async def until_idle(server: Served) -> None:
    """Every connection is gone, and every request with it."""
    await until(lambda: server.connections == 0 and not server.server.server_state.tasks)
