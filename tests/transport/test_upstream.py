"""What adapters see of a server that is fine, slow, broken or hostile: answers, or errors that say what to do."""

from __future__ import annotations

import asyncio
import gzip
import resource
import zlib
from collections.abc import AsyncGenerator

import httpx
import orjson
import pytest
from support.upstream import Peer, Received, answer, chunk, head, scripted

from velollm.backend import HttpRequest, Limits
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    ConfigError,
    RequestError,
    VeloError,
)
from velollm.transport import Upstream, UpstreamResponse

pytestmark = pytest.mark.anyio

QUICK = Limits(connect=1, first_byte=1, idle=0.2, max_response=1 << 20)
JSON = b"content-type: application/json"


def upstream(url: str, limits: Limits = QUICK, **options: object) -> Upstream:
    return Upstream(url, name="engine", limits=limits, **options)  # type: ignore[arg-type]


async def ask(*data: bytes, close: bool = False, limits: Limits = QUICK, pause: float = 0.0) -> bytes:
    """The body of the one answer that a server gives, which then stays silent or closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in data:
            peer.send(piece)
            await asyncio.sleep(pause)
        if not close:
            await peer.left(5)

    async with scripted(script) as server:
        engine = upstream(server.url, limits)
        try:
            async with await engine.send("GET", "/") as response:
                return await response.read()
        finally:
            await engine.aclose()


# ---- what is sent ----------------------------------------------------------------------------------------------------


async def record(url: str = "", **options: object) -> Received:
    async def script(peer: Peer) -> None:
        while await peer.request():
            peer.send(answer(b"{}"))

    async with scripted(script) as server:
        engine = upstream(url.format(port=server.port) or server.url, **options)
        async with await engine.post_json("/chat?x=1", {"a": "é"}, headers=[(b"traceparent", b"00")]) as response:
            assert await response.json() == {}
        await engine.aclose()
        return server.requests[0]


async def test_a_request_carries_what_it_must_and_nothing_else() -> None:
    received = await record(headers={"Authorization": "Bearer key"})
    assert (received.method, received.target, received.body) == (b"POST", b"/chat?x=1", '{"a":"é"}'.encode())
    assert received.headers.pop(b"host").startswith(b"127.0.0.1:")
    assert received.headers == {
        b"accept": b"*/*",
        b"accept-encoding": b"identity",
        b"authorization": b"Bearer key",
        b"content-length": b"10",
        b"content-type": b"application/json",
        b"traceparent": b"00",
    }


async def test_the_base_may_have_a_path_and_credentials() -> None:
    received = await record("http://me:p%40ss@127.0.0.1:{port}/v1/")
    assert received.target == b"/v1/chat?x=1"
    assert received.headers[b"authorization"] == b"Basic bWU6cEBzcw=="
    assert b"@" not in received.headers[b"host"]


async def test_proxies_in_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await record()).method == b"POST"


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://host", "http://", "http://host:port", "http://h:99999"])
async def test_a_wrong_base_is_an_error_of_configuration(url: str) -> None:
    with pytest.raises(ConfigError):
        upstream(url)


async def test_what_is_not_json_or_not_a_path_is_the_callers_fault() -> None:
    engine = upstream("http://127.0.0.1:1")
    with pytest.raises(RequestError):
        await engine.post_json("/", {"a": object()})
    with pytest.raises(RequestError):
        await engine.send("GET", "/\r\nx")
    with pytest.raises(RequestError):
        await engine.send("GET", "/", headers=[(b"x", b"a\r\nevil: 1")])


# ---- bodies ----------------------------------------------------------------------------------------------------------


async def test_chunks_arrive_as_they_are_sent() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(head(b"transfer-encoding: chunked"))
        for number in range(3):
            peer.send(chunk(b"%d" % number))
            await gates[number].wait()
        peer.send(chunk())

    gates = [asyncio.Event() for _ in range(3)]
    async with scripted(script) as server:
        engine = upstream(server.url)
        async with await engine.send("GET", "/") as response:
            seen = []
            async for piece in response.chunks():
                seen.append(piece)
                gates[int(piece)].set()
        assert seen == [b"0", b"1", b"2"]
        await engine.aclose()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        (b"gzip", gzip.compress(b"hello" * 1000, mtime=0)),
        (b"x-gzip", gzip.compress(b"hel", mtime=0) + gzip.compress(b"lo" + b"hello" * 999, mtime=0)),
        (b"deflate", zlib.compress(b"hello" * 1000)),
        (b"Deflate", zlib.compress(b"hello" * 1000, wbits=-15)),
        (b"identity", b"hello" * 1000),
    ],
)
async def test_compression_that_nobody_asked_for_is_undone(encoding: bytes, packed: bytes) -> None:
    whole = answer(packed, b"content-encoding: " + encoding)
    if encoding == b"x-gzip":  # a second member is not what servers send
        with pytest.raises(BackendProtocolError):
            await ask(whole)
        return
    assert await ask(whole) == b"hello" * 1000
    assert await ask(whole[:100], whole[100:], pause=0.01) == b"hello" * 1000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", b"{}"),
        (b"gzip", gzip.compress(b"hello", mtime=0)[:-4]),
        (b"gzip", gzip.compress(b"hello", mtime=0) + b"more"),
        (b"deflate", b"\xff\xff"),
        (b"br", b"{}"),
        (b"gzip, gzip", gzip.compress(gzip.compress(b"hello", mtime=0), mtime=0)),
        (b"\xff\xfe", b"{}"),
    ],
)
async def test_false_compression_is_an_error(encoding: bytes, body: bytes) -> None:
    with pytest.raises(BackendProtocolError, match="compress"):
        await ask(answer(body, b"content-encoding: " + encoding))


async def test_a_bomb_does_no_harm() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BackendProtocolError, match="longer than"):
        await ask(answer(bomb, b"content-encoding: gzip"), limits=Limits(max_response=32 << 20))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


async def test_an_answer_without_end_is_cut_off() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(head())
        await peer.flood(b"x" * (1 << 16), 1000)

    async with scripted(script) as server:
        engine = upstream(server.url)
        with pytest.raises(BackendProtocolError, match="longer than 1048576 bytes"):
            async with await engine.send("GET", "/") as response:
                await response.read()
        async with await engine.send("GET", "/", limit=10_000_000) as response:
            pieces = response.chunks()
            size = 0
            with pytest.raises(BackendProtocolError, match="longer than 10000000 bytes"):
                async for piece in pieces:
                    size += len(piece)
            assert size > 1 << 20


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage\r\n\r\n",
        head(b"content-length: 5") + b"hell",
        head(b"transfer-encoding: chunked") + chunk(b"hello"),
        head(b"transfer-encoding: chunked", b"content-length: 5") + chunk(b"hello") + chunk(),
        head(b"transfer-encoding: chunked") + b"xyz\r\n",
    ],
)
async def test_what_breaks_off_or_is_no_http_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(BackendProtocolError, match="engine failed") as caught:
        await ask(data, close=True)
    assert (caught.value.status, caught.value.backend) == (502, "engine")


async def test_a_reset_in_the_middle_is_an_error_even_without_a_length() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(head(), b"half")
        await asyncio.sleep(0.02)
        peer.reset()

    async with scripted(script) as server:
        with pytest.raises(BackendProtocolError):
            async with await upstream(server.url).send("GET", "/") as response:
                await response.read()


async def test_a_half_close_after_the_whole_answer_is_fine() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(answer(b"whole"))
        peer.half_close()
        await peer.left()

    async with scripted(script) as server:
        engine = upstream(server.url)
        for _ in range(2):
            async with await engine.send("GET", "/") as response:
                assert await response.read() == b"whole"


async def test_silence_is_a_timeout() -> None:
    with pytest.raises(BackendTimeout, match=r"engine kept silent: no first byte .*--ttft-timeout") as caught:
        await ask(limits=Limits(first_byte=0.05))
    assert caught.value.status == 504
    with pytest.raises(BackendTimeout, match=r"no further byte within 0\.05"):
        await ask(head(b"content-length: 5"), b"h", limits=Limits(idle=0.05))
    assert await ask(head(b"content-length: 2"), b"h", b"i", limits=Limits(first_byte=1, idle=0.2), pause=0.05) == b"hi"


async def test_nobody_there() -> None:
    async def script(peer: Peer) -> None:
        pass

    async with scripted(script) as server:
        url = server.url
    with pytest.raises(BackendUnreachable, match=r"engine cannot be reached: .* is it running\?") as caught:
        await upstream(url).send("GET", "/")
    assert (caught.value.status, caught.value.retryable) == (503, True)


async def test_a_redirect_is_not_followed() -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            peer.send(answer(b"", b"location: http://127.0.0.1:1/", status=b"302 Found"))

    async with scripted(script) as server:
        engine = upstream(server.url)
        with pytest.raises(BackendProtocolError, match="redirect"):
            await engine.get_json("/")
        assert len(server.requests) == 1
        await engine.aclose()


async def refused(status: bytes, body: bytes, *headers: bytes) -> VeloError:
    async def script(peer: Peer) -> None:
        while await peer.request():
            peer.send(answer(body, *headers, status=status))

    async with scripted(script) as server:
        engine = upstream(server.url)
        with pytest.raises(VeloError) as caught:
            await engine.post_json("/", {})
        await engine.aclose()
        return caught.value


async def test_the_engines_own_words_reach_the_caller() -> None:
    body = orjson.dumps({"error": {"message": "no such tool", "param": "tools", "code": 7}})
    error = await refused(b"400 Bad Request", body, JSON)
    assert isinstance(error, BackendRefused)
    assert (error.status, error.message, error.param) == (400, "no such tool", "tools")
    assert (await refused(b"404 x", b'{"error":"model not found"}')).message == "model not found"
    assert (await refused(b"503 x", b'{"detail":"busy"}', b"retry-after: 7")).retry_after == 7
    assert (await refused(b"500 x", b"<html>oops</html>")).message == "engine answered with status 500"
    assert (await refused(b"500 x", b"")).status == 500
    assert (await refused(b"401 x", b"{}")).status == 502
    gzipped = gzip.compress(b'{"error":"packed"}', mtime=0)
    assert (await refused(b"400 x", gzipped, b"content-encoding: gzip")).message == "packed"
    assert (await refused(b"400 x", b"x" * 100_000)).status == 400


@pytest.mark.parametrize("value", [b"nan", b"inf", b"1e400", b"-5", b"soon", b"Wed, 21 Oct 2026 07:28:00 GMT", b""])
async def test_an_odd_retry_after_is_dropped(value: bytes) -> None:
    assert (await refused(b"429 x", b"", b"retry-after: " + value)).retry_after is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"NaN", b'{"a":', b"[" * 60_000, b'"\xff"', b'"\\ud800"'])
async def test_what_is_not_json_is_a_protocol_error(body: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(answer(body, JSON))

    async with scripted(script) as server:
        with pytest.raises(BackendProtocolError, match="not JSON"):
            await upstream(server.url).get_json("/")


# ---- letting go ------------------------------------------------------------------------------------------------------


async def consume(response: UpstreamResponse) -> AsyncGenerator[bytes, None]:
    async with response:
        async for piece in response.chunks():
            yield piece


@pytest.mark.parametrize("way", ["close", "cancel", "error"])
async def test_closing_or_cancelling_the_reader_ends_the_work_upstream(way: str) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(head(b"transfer-encoding: chunked"), chunk(b"x"))
        await peer.left()
        left.set()

    async with scripted(script) as server:
        pieces = consume(await upstream(server.url, Limits()).send("GET", "/"))
        assert await anext(pieces) == b"x"
        if way == "close":
            await pieces.aclose()
        elif way == "error":
            with pytest.raises(ZeroDivisionError):
                await pieces.athrow(ZeroDivisionError())
        else:
            waiting = asyncio.ensure_future(anext(pieces))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with asyncio.timeout(0.1):
            await left.wait()


async def test_nothing_is_read_through_an_answer_that_was_closed() -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            peer.send(answer(b"mine"))

    async with scripted(script) as server:
        engine = upstream(server.url)
        async with await engine.send("GET", "/") as first:
            pieces = first.chunks()
            assert await anext(pieces) == b"mine"
        async with await engine.send("GET", "/") as second:
            with pytest.raises(BackendProtocolError, match="closed"):
                await anext(pieces)
            assert await second.read() == b"mine"
        assert len(server.peers) == 1
        await engine.aclose()


# ---- forwarding ------------------------------------------------------------------------------------------------------


async def test_forwarding_keeps_everything_but_what_concerns_one_connection() -> None:
    packed = gzip.compress(b"hello", mtime=0)

    async def script(peer: Peer) -> None:
        await peer.request()
        hop = (b"connection: x-hop, keep-alive", b"keep-alive: 5", b"x-hop: 1", b"x-end: 2", b"upgrade: h2c")
        peer.send(answer(packed, *hop, b"content-encoding: gzip", status=b"418 teapot"))

    async def body() -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b"two"

    async with scripted(script) as server:
        headers = [
            (b"connection", b"X-Drop, close"),
            (b"x-drop", b"1"),
            (b"te", b"trailers"),
            (b"host", b"evil"),
            (b"accept-encoding", b"br"),
            (b"x-keep", b"1"),
        ]
        request = HttpRequest(method="PUT", target="/api/x?y=1", headers=headers, body=body())
        response = await upstream(server.url).forward(request)
        assert response.status == 418
        assert response.headers == [
            (b"x-end", b"2"),
            (b"content-encoding", b"gzip"),
            (b"content-length", b"%d" % len(packed)),
        ]
        assert b"".join([piece async for piece in response.body]) == packed
        received = server.requests[0]
        assert (received.method, received.target, received.body) == (b"PUT", b"/api/x?y=1", b"onetwo")
        assert received.headers == {
            b"host": server.url.removeprefix("http://").encode(),
            b"accept-encoding": b"identity",
            b"x-keep": b"1",
            b"transfer-encoding": b"chunked",
        }


# ---- any other transport ---------------------------------------------------------------------------------------------


class Slow(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for piece in (b"a", b"", b"b"):
            yield piece
        await asyncio.sleep(60)


async def test_any_transport_is_held_to_the_same_limits() -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/silent":
            await asyncio.sleep(60)
        if request.url.path == "/slow":
            return httpx.Response(200, stream=Slow())
        return httpx.Response(200, json={"sent": orjson.loads(await request.aread())})

    limits = Limits(connect=0.02, first_byte=0.03, idle=0.05, max_response=1000)
    engine = upstream("http://engine", limits, transport=httpx.MockTransport(handle))
    async with await engine.post_json("/", {"a": 1}) as response:
        assert await response.json() == {"sent": {"a": 1}}
    with pytest.raises(BackendTimeout, match="no first byte"):
        await engine.send("GET", "/silent")
    seen: list[bytes] = []
    with pytest.raises(BackendTimeout, match=r"no further byte within 0\.05"):
        async with await engine.send("GET", "/slow") as response:
            async for piece in response.chunks():
                seen += [piece]
    assert seen == [b"a", b"b"]
    async with await engine.post_json("/", {"a": "x" * 2000}) as response:
        with pytest.raises(BackendProtocolError, match="longer than 1000"):
            await response.read()


async def test_failures_of_any_transport_are_explained() -> None:
    def engine(error: Exception) -> Upstream:
        async def fail(request: httpx.Request) -> httpx.Response:
            raise error

        return upstream("http://engine", transport=httpx.MockTransport(fail))

    for error, kind in (
        (httpx.ConnectError("x"), BackendUnreachable),
        (httpx.ConnectTimeout("x"), BackendUnreachable),
        (httpx.ReadTimeout("x"), BackendTimeout),
        (httpx.RemoteProtocolError("x"), BackendProtocolError),
        (httpx.DecodingError("x"), BackendProtocolError),
    ):
        with pytest.raises(kind):
            await engine(error).send("GET", "/")
