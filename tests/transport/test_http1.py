"""One connection, fed bytes by hand: framing, limits, and what may be kept."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.upstream import answer, chunk, head

from velollm.transport.http1 import MAX_HEAD, Connection, Patience


class Wire(asyncio.Transport):
    """Takes what is written and can be closed; that is all a connection needs."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def outcome(*pieces: bytes, end: bool = False, method: str = "GET") -> tuple[int, bytes, bool, str | None]:
    """Status, body, whether the connection may be kept, and the kind of the error if one came."""

    async def play() -> tuple[int, bytes, bool, str | None]:
        connection = Connection()
        connection.connection_made(Wire())
        connection.begin(Patience(1, 10, 10), is_head=method == "HEAD")
        connection.sent()
        for piece in pieces:
            connection.data_received(piece)
        if end:
            connection.eof_received()
            connection.connection_lost(None)
        body = b""
        error = None
        try:
            async with asyncio.timeout(0.05):
                await connection.wait_for_head()
                while piece := await connection.read():
                    body += piece
        except TimeoutError:
            error = "waiting"
        except httpx.HTTPError as caught:
            error = type(caught).__name__
        keep = connection.release()
        connection.close()
        return connection.status, body, keep, error

    return asyncio.run(play())


GOOD = [
    answer(b"hello"),
    answer(b"hello", b"x-empty:", b"x: a,b"),
    head(b"Transfer-Encoding: chunked") + chunk(b"hel") + chunk(b"lo") + chunk(),
    head(b"transfer-encoding: chunked") + b"5;ext=1\r\nhello\r\n0\r\nTrailer: x\r\nx-length: 7\r\n\r\n",
    head(status=b"100 Continue") + head(b"link: x", status=b"103 Early Hints") + answer(b"hello"),
]


@pytest.mark.parametrize("stream", GOOD)
def test_a_good_answer_is_read_and_its_connection_kept(stream: bytes) -> None:
    assert outcome(stream) == (200, b"hello", True, None)
    assert outcome(*(bytes([byte]) for byte in stream)) == (200, b"hello", True, None)


@pytest.mark.parametrize(
    ("stream", "end", "expected"),
    [
        (answer(b"hello", b"connection: close"), False, (200, b"hello", False, None)),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", False, (200, b"hello", False, None)),
        (head() + b"hello", True, (200, b"hello", False, None)),  # its end is the connection's
        (head() + b"hello", False, (200, b"hello", False, "waiting")),
        (head(status=b"204 No Content"), False, (204, b"", True, None)),
        (head(b"content-length: 5", status=b"304 Not Modified"), False, (304, b"", True, None)),
        (answer(b"", status=b"307 Temporary Redirect"), False, (307, b"", True, None)),
        (answer(b"hello", status=b"599 x"), False, (599, b"hello", True, None)),
    ],
)
def test_other_ways_to_end(stream: bytes, end: bool, expected: tuple[int, bytes, bool, str | None]) -> None:
    assert outcome(stream, end=end) == expected


def test_the_answer_to_head_has_no_body() -> None:
    assert outcome(head(b"content-length: 5"), method="HEAD") == (200, b"", False, None)


BROKEN = {
    "HTTP/0.9": b"<html>hello</html>",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x16",
    "status": head(status=b"abc OK"),
    "status 0": head(b"content-length: 0", status=b"000 x"),
    "status 999": head(b"content-length: 0", status=b"999 x"),
    "length and chunks": head(b"content-length: 5", b"transfer-encoding: chunked") + chunk(b"hello") + chunk(),
    "chunks and length": head(b"transfer-encoding: chunked", b"content-length: 5") + chunk(b"hello") + chunk(),
    "two lengths": head(b"content-length: 5", b"content-length: 6") + b"hello!",
    "no number": head(b"content-length: 5x") + b"hello",
    "negative": head(b"content-length: -5") + b"hello",
    "huge number": head(b"content-length: 99999999999999999999999") + b"hello",
    "chunk size": head(b"transfer-encoding: chunked") + b"zz\r\nhello\r\n",
    "huge chunk": head(b"transfer-encoding: chunked") + b"fffffffffffffffff\r\nhello\r\n",
    "switch": head(b"upgrade: x", b"connection: upgrade", status=b"101 Switching Protocols"),
    "space before colon": head(b"x : y") + b"",
    "NUL": head(b"x: a\0b"),
    "many headers": head(*[b"x: y"] * 600, b"content-length: 0"),
    "large head": head(b"x: " + b"y" * (MAX_HEAD + 1), b"content-length: 0"),
    "large name": b"HTTP/1.1 200 OK\r\n" + b"y" * (MAX_HEAD + 1),
    "endless hints": head(status=b"103 Early Hints") * 4000,
    "large trailer": head(b"transfer-encoding: chunked") + chunk(b"hello") + b"0\r\n" + b"x: y\r\n" * 20_000,
    "length in the trailer": head(b"transfer-encoding: chunked") + chunk(b"hi") + b"0\r\ncontent-length: 7\r\n\r\n",
    "chunk extension": head(b"transfer-encoding: chunked") + b"5;" + b"x" * 2 * MAX_HEAD,
}


@pytest.mark.parametrize("name", BROKEN)
def test_nonsense_is_an_error_and_its_connection_dropped(name: str) -> None:
    stream = BROKEN[name]
    _, _, keep, error = outcome(*(stream[at : at + 1000] for at in range(0, len(stream), 1000)))
    assert (keep, error) == (False, "RemoteProtocolError")
    _, _, keep, error = outcome(stream) if name not in ("large trailer", "chunk extension") else (0, b"", False, error)
    assert (keep, error) == (False, "RemoteProtocolError")


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        head(b"content-length: 5")[:-2],
        head(b"content-length: 5") + b"hell",
        head(b"transfer-encoding: chunked") + chunk(b"hello"),
        head(b"transfer-encoding: chunked") + b"5\r\nhel",
        head(b"transfer-encoding: chunked") + chunk(b"hello") + b"0\r\n",
        head(b"transfer-encoding: gzip") + b"hello",
    ],
)
def test_an_end_in_the_middle_is_an_error(stream: bytes) -> None:
    _, _, keep, error = outcome(stream, end=True)
    assert (keep, error) == (False, "RemoteProtocolError")


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200", answer(b"evil"), b"\0" * 10])
def test_bytes_after_the_answer_cost_the_connection(extra: bytes) -> None:
    assert outcome(answer(b"hello") + extra) == (200, b"hello", False, None)
    assert outcome(answer(b"hello"), extra) == (200, b"hello", False, None)


def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async def play() -> tuple[bool, bool]:
        connection, wire = Connection(), Wire()
        connection.connection_made(wire)
        connection.data_received(answer(b"evil"))
        return connection.alive, wire.aborted

    assert asyncio.run(play()) == (False, True)


@given(
    stream=st.sampled_from([*GOOD, *(stream for stream in BROKEN.values() if len(stream) < 200)]),
    places=st.lists(st.integers(0, 300), max_size=6),
)
@example(stream=GOOD[2], places=[60, 61])
def test_any_chunking_gives_the_same_outcome(stream: bytes, places: list[int]) -> None:
    bounds = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    cut = [stream[start:end] for start, end in pairwise(bounds) if start < end]
    assert outcome(*cut, end=True)[3] == outcome(stream, end=True)[3]
    assert outcome(*cut)[:2] == outcome(stream)[:2]


@given(data=st.binary(max_size=300), after=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", GOOD[2][:60]]))
def test_noise_never_escapes_as_anything_but_an_httpx_error(data: bytes, after: bytes) -> None:
    _, _, _, error = outcome(after + data, end=True)
    assert error in (None, "RemoteProtocolError", "ReadError")


@pytest.mark.anyio
async def test_a_slow_reader_stops_the_sender() -> None:
    connection, wire = Connection(), Wire()
    connection.connection_made(wire)
    connection.begin(Patience(1, 10, 10))
    connection.data_received(head(b"content-length: 10000000") + b"x" * 100_000)
    assert wire.reading
    connection.data_received(b"x" * 200_000)
    assert not wire.reading
    assert await connection.read() == b"x" * 300_000
    assert wire.reading
    connection.close()


@pytest.mark.anyio
async def test_an_upload_waits_for_the_other_side_but_not_for_ever() -> None:
    connection = Connection()
    connection.connection_made(Wire())
    connection.begin(Patience(1, 10, 0.02))
    connection.pause_writing()
    drained = asyncio.ensure_future(connection.drain())
    await asyncio.sleep(0)
    connection.resume_writing()
    assert await drained
    connection.pause_writing()
    assert not await connection.drain()
    with pytest.raises(httpx.ReadTimeout, match="not taken within"):
        await connection.wait_for_head()


@pytest.mark.anyio
async def test_the_first_byte_has_its_own_patience() -> None:
    connection = Connection()
    connection.connection_made(Wire())
    connection.begin(Patience(1, 0.05, 0.01))
    connection.sent()
    connection.data_received(head(b"content-length: 5"))  # servers send heads before they have read the prompt
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(httpx.ReadTimeout, match=r"no first byte within 0\.05"):
        await connection.read()
    assert 0.04 < loop.time() - begin < 1

    connection = Connection()
    connection.connection_made(Wire())
    connection.begin(Patience(1, 10, 0.03))
    connection.sent()
    connection.data_received(head(b"content-length: 5") + b"h")
    assert await connection.read() == b"h"
    await asyncio.sleep(0.02)
    connection.data_received(b"e")
    assert await connection.read() == b"e"
    with pytest.raises(httpx.ReadTimeout, match=r"no further byte within 0\.03"):
        await connection.read()
