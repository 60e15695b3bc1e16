"""A backend that fails before it has said anything: the client gets a right answer, or a right error, in time."""

from __future__ import annotations

import asyncio
import gzip
import time
from typing import Any

import orjson
import pytest
from support.asgi import Client
from support.faulty import JSON, MODELS, STREAM, WHOLE, client_text, events, front, last, streamed, whole_answer
from support.upstream import Peer, Received, answer, chunk, head

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("payload", [STREAM, WHOLE], ids=["stream", "whole"])
DIALECTS = pytest.mark.parametrize(
    ("path", "extra"),
    [("/v1/chat/completions", {}), ("/v1/messages", {"max_tokens": 9}), ("/api/chat", {})],
    ids=["openai", "anthropic", "ollama"],
)


def error_of(client: Client, path: str = "/v1/chat/completions") -> str:
    """The words of an error, which must have the shape of its dialect."""
    error = client.json["error"]
    if path.startswith("/api/"):
        assert isinstance(error, str)
        return error
    if path == "/v1/messages":
        assert client.json["type"] == "error"
        assert set(error) >= {"type", "message"}
    else:
        assert set(error) >= {"message", "type", "code", "param"}
    message: str = error["message"]
    return message


def sends(*data: bytes, then: str = "stay") -> Any:
    """A script that sends bytes and then stays, closes, resets or ends its half."""

    async def script(peer: Peer, request: Received) -> None:
        peer.send(*data)
        if then == "close":
            peer.close()
        elif then == "reset":
            peer.reset()
        elif then == "half":
            peer.half_close()
            await peer.left(5)

    return script


# ---- nothing comes ----


@BOTH
@DIALECTS
@pytest.mark.parametrize("then", ["close", "reset"])
async def test_the_connection_ends_before_a_byte(then: str, path: str, extra: Any, payload: Any) -> None:
    async with front(sends(then=then)) as proxy:
        begin = time.monotonic()
        client = await proxy.ask({**payload, "stream": payload.get("stream", False), **extra}, path)
        assert client.status == 502
        error_of(client, path)
        assert proxy.asked <= 3
        assert time.monotonic() - begin < 5


@BOTH
@DIALECTS
async def test_no_first_byte_is_a_timeout(path: str, extra: Any, payload: Any) -> None:
    async def silent(peer: Peer, request: Received) -> None:
        await peer.left(5)

    async with front(silent) as proxy:
        client = await proxy.ask({**payload, "stream": payload.get("stream", False), **extra}, path)
        assert client.status == 504
        assert "ttft" in error_of(client, path)
        assert proxy.asked == 1


@BOTH
async def test_a_slow_first_byte_is_waited_for(payload: Any) -> None:
    async def slow(peer: Peer, request: Received) -> None:
        await asyncio.sleep(0.45)
        if payload.get("stream"):
            peer.send(streamed(events("Hello", " world"), last()), chunk())
        else:
            peer.send(answer(whole_answer(), JSON))

    async with front(slow) as proxy:
        client = await proxy.ask(payload)
        assert client.status == 200
        if payload.get("stream"):
            assert client_text(client) == ("Hello world", [], True)


@BOTH
async def test_nobody_listens(payload: Any) -> None:
    async with front(sends(), sends()) as proxy:
        for engine in proxy.engines:
            engine.server.listening.close()
        client = await proxy.ask(payload)
        assert client.status == 503
        assert client.headers["retry-after"].isdigit()
        assert client.json["error"]["code"] == "backend_unreachable"


# ---- refusals ----


@BOTH
@pytest.mark.parametrize("body", [b'{"error":{"message":"overheated"}}', b"<html>no</html>", b""])
async def test_an_engine_with_5xx(body: bytes, payload: Any) -> None:
    async with front(sends(answer(body, JSON, status=b"500 Oops"))) as proxy:
        client = await proxy.ask(payload)
        assert client.status >= 500
        error_of(client)
        assert proxy.asked <= 3


@BOTH
@pytest.mark.parametrize("status", [b"400 Bad", b"404 No", b"422 No"])
async def test_an_engine_with_4xx_is_asked_once(status: bytes, payload: Any) -> None:
    async with front(sends(answer(b'{"error":{"message":"not so"}}', JSON, status=status))) as proxy:
        client = await proxy.ask(payload)
        assert client.status == int(status[:3])
        assert "not so" in error_of(client)
        assert proxy.asked == 1


@DIALECTS
@pytest.mark.parametrize("status", [b"429 Slow", b"503 Busy"])
async def test_retry_after_is_kept(status: bytes, path: str, extra: Any) -> None:
    busy = answer(b'{"error":{"message":"later"}}', JSON, b"retry-after: 17", status=status)
    async with front(sends(busy)) as proxy:
        begin = time.monotonic()
        client = await proxy.ask({**STREAM, **extra}, path)
        assert client.status == int(status[:3])
        assert client.headers["retry-after"] == "17"
        assert time.monotonic() - begin < 5


async def test_a_burst_of_503_passes() -> None:
    burst = 3

    async def script(peer: Peer, request: Received) -> None:
        nonlocal burst
        burst -= 1
        if burst >= 0:
            peer.send(answer(b"{}", JSON, status=b"503 Busy"))
        else:
            peer.send(answer(whole_answer(), JSON))

    async with front(script) as proxy:
        statuses = [(await proxy.ask(WHOLE)).status for _ in range(4)]
        assert statuses[-1] == 200
        assert set(statuses) <= {200, 503}
        assert proxy.asked <= 4 + 3


async def test_one_refused_model_shuts_nobody_out() -> None:
    async def script(peer: Peer, request: Received) -> None:
        if b"strange" in request.body:
            peer.send(answer(b'{"error":{"message":"model gone"}}', JSON, status=b"404 No"))
        else:
            peer.send(answer(whole_answer(), JSON))

    async with front(script, script) as proxy:
        for _ in range(5):
            assert (await proxy.ask({**WHOLE, "user": "strange"})).status == 404
            assert (await proxy.ask(WHOLE)).status == 200


# ---- nonsense ----

DEEP = b'{"choices":' + b"[" * 60_000 + b"]" * 60_000 + b"}"


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        whole_answer()[:60], b"<html>hello</html>", b"", b"null", b"[]", b'{"choices":[]}', b"{}",
        b'{"choices":[{"index":0,"message":{"content":NaN},"finish_reason":"stop"}]}', DEEP,
        b'{"choices":[{"index":0,"message":{"content":5},"finish_reason":"stop"}]}', b"\xff\xfe",
    ],
    ids=["cut", "html", "empty", "null", "list", "no-choices", "object", "nan", "deep", "number", "bytes"],
)  # fmt: skip
async def test_200_with_nonsense(body: bytes, payload: Any) -> None:
    async with front(sends(answer(body, JSON))) as proxy:
        client = await proxy.ask(payload)
        assert client.status == 502
        error_of(client)


@pytest.mark.parametrize("kind", [b"text/html", b"text/event-stream"])
async def test_a_stream_of_html(kind: bytes) -> None:
    async with front(sends(answer(b"<html>no</html>", b"content-type: " + kind))) as proxy:
        client = await proxy.ask(STREAM)
        assert client.status == 502
        error_of(client)


@BOTH
@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n", b"HTTP/1.1 999 Odd\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x16\x03\x01\x00\x00",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        head(b"x: " + b"a" * (1 << 20)), head(*(b"x%d: a" % number for number in range(5000))),
    ],
    ids=["garbage", "999", "abc", "tls", "redirect", "megabyte", "headers"],
)  # fmt: skip
async def test_heads_that_are_none(data: bytes, payload: Any) -> None:
    async with front(sends(data, then="close")) as proxy:
        client = await proxy.ask(payload)
        assert client.status == 502
        error_of(client)


async def test_a_dripped_head_ends_in_time() -> None:
    async def drip(peer: Peer, request: Received) -> None:
        for number in range(100):
            peer.send(b"HTTP/1.1 200 OK\r\n"[number % 17 : number % 17 + 1])
            await asyncio.sleep(0.05)

    async with front(drip) as proxy:
        begin = time.monotonic()
        client = await proxy.ask(WHOLE)
        assert client.status in (502, 504)
        assert time.monotonic() - begin < 4


async def test_early_hints_are_no_answer() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    async with front(sends(hints, answer(whole_answer(), JSON, b"x-engine: 1", b"connection: x-engine"))) as proxy:
        client = await proxy.ask(WHOLE)
        assert client.status == 200
        assert "x-engine" not in client.headers


# ---- lengths and codings ----


@pytest.mark.parametrize(
    "data",
    [
        head(JSON, b"content-length: 5000") + whole_answer(),
        head(JSON, b"transfer-encoding: chunked") + b"zz\r\n" + whole_answer(),
        head(JSON, b"transfer-encoding: chunked") + chunk(whole_answer()),
        head(JSON, b"content-encoding: gzip", b"content-length: 9") + b"not gzip!",
        head(JSON, b"content-encoding: br", b"content-length: 9") + b"not known",
    ],
    ids=["short", "bad-chunk", "no-last-chunk", "fake-gzip", "brotli"],
)
async def test_a_body_that_is_not_what_its_head_says(data: bytes) -> None:
    async with front(sends(data, then="close")) as proxy:
        client = await proxy.ask(WHOLE)
        assert client.status == 502
        error_of(client)


async def test_length_and_chunks_together_are_never_a_corrupt_answer() -> None:
    both = head(JSON, b"content-length: 5", b"transfer-encoding: chunked") + chunk(whole_answer()) + chunk()
    async with front(sends(both, then="close")) as proxy:
        client = await proxy.ask(WHOLE)
        assert client.status in (200, 502)
        if client.status == 200:
            assert client.json["choices"][0]["message"]["content"] == "Hello world"


async def test_a_body_that_ends_with_the_connection_is_whole() -> None:
    async with front(sends(head(JSON) + whole_answer(), then="close")) as proxy:
        client = await proxy.ask(WHOLE)
        assert client.json["choices"][0]["message"]["content"] == "Hello world"


async def test_gzip_that_nobody_asked_for_is_decoded() -> None:
    async with front(sends(answer(gzip.compress(whole_answer()), JSON, b"content-encoding: gzip"))) as proxy:
        client = await proxy.ask(WHOLE)
        assert client.json["choices"][0]["message"]["content"] == "Hello world"
        assert "content-encoding" not in client.headers


async def test_a_bomb_is_an_error_soon() -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    async with front(sends(answer(bomb, JSON, b"content-encoding: gzip"))) as proxy:
        begin = time.monotonic()
        client = await proxy.ask(WHOLE)
        assert client.status == 502
        assert "max-response" in error_of(client)
        assert time.monotonic() - begin < 5


@BOTH
async def test_a_body_without_end_is_cut_off(payload: Any) -> None:
    async def flood(peer: Peer, request: Received) -> None:
        kind = b"content-type: text/event-stream" if payload.get("stream") else JSON
        peer.send(head(kind, b"transfer-encoding: chunked"))
        await peer.flood(chunk(b"x" * 65536), 200)
        peer.close()

    async with front(flood) as proxy:
        client = await proxy.ask(payload)
        assert client.status == 502
        error_of(client)


async def test_extra_bytes_never_answer_another_request() -> None:
    stray = answer(whole_answer("WRONG"), JSON)

    async def script(peer: Peer, request: Received) -> None:
        peer.send(answer(whole_answer("right"), JSON) + stray)

    async with front(script) as proxy:
        for _ in range(4):
            client = await proxy.ask(WHOLE)
            assert client.status == 200
            assert client.json["choices"][0]["message"]["content"] == "right"
            await asyncio.sleep(0.01)


# ---- coming and going ----


async def test_a_flapping_engine_is_an_answer_or_an_error_each_time() -> None:
    count = 0

    async def script(peer: Peer, request: Received) -> None:
        nonlocal count
        count += 1
        if count % 2:
            peer.reset()
        else:
            peer.send(answer(whole_answer(), JSON))

    async with front(script) as proxy:
        for _ in range(10):
            client = await proxy.ask(WHOLE)
            assert client.status in (200, 502, 503)
            assert orjson.loads(client.text)


async def test_a_broken_one_is_passed_over_for_a_good_one() -> None:
    async def good(peer: Peer, request: Received) -> None:
        peer.send(answer(whole_answer(), JSON))

    async with front(sends(then="reset"), good) as proxy:
        for _ in range(12):
            client = await proxy.ask(WHOLE)
            assert client.status == 200
            assert client.headers["x-velollm-backend"] == "b"
        assert len(proxy.engines[0].asked) <= 6


@pytest.mark.parametrize("others", [0, 1])
async def test_an_engine_that_comes_back_is_asked_again_at_once(others: int) -> None:
    async def good(peer: Peer, request: Received) -> None:
        peer.send(answer(whole_answer(), JSON))

    async with front(good, *[good] * others) as proxy:
        assert (await proxy.ask(WHOLE)).status == 200
        server = proxy.engines[0].server
        server.listening.close()
        for peer in server.peers:
            peer.close()
        await asyncio.sleep(0.02)
        statuses = {(await proxy.ask(WHOLE)).status for _ in range(4)}
        assert statuses == ({200} if others else {503})
        asked = len(proxy.engines[0].asked)

        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(99, reader, writer)
            while (request := await peer.request()) is not None:
                proxy.engines[0].asked.append(request)
                peer.send(answer(MODELS if request.method == b"GET" else whole_answer(), JSON))
            writer.close()

        again = await asyncio.start_server(play, "127.0.0.1", server.port)
        begin = time.monotonic()
        while len([one for one in proxy.engines[0].asked[asked:] if one.method == b"POST"]) == 0:
            assert time.monotonic() - begin < 3
            assert (await proxy.ask(WHOLE)).status == 200
            await asyncio.sleep(0.02)
        await proxy.app.backend.aclose()
        again.close()
