"""Frames come out the same however the bytes were cut, in time that grows with their number."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from velollm.api.sse import LineDecoder, SSEDecoder, SSEFrame, sse
from velollm.errors import BackendProtocolError

BREAKS = re.compile(rb"\r\n|\n|\r")


def frames(*pieces: bytes) -> list[SSEFrame]:
    decoder = SSEDecoder()
    found = [frame for piece in pieces for frame in decoder.feed(piece)]
    return found + decoder.end()


def reference(stream: bytes) -> list[tuple[str, bytes]]:
    """WHATWG's algorithm to the letter, line by line, but that an event at the end needs no blank line."""
    events: list[tuple[str, bytes]] = []
    kind, data = b"", []
    for line in [*BREAKS.split(stream.removeprefix(b"\xef\xbb\xbf")), b""]:
        if not line:
            if data:
                events.append((kind.decode("utf-8", "replace"), b"\n".join(data)))
            kind, data = b"", []
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if field == b"data":
            data.append(value)
        elif field == b"event":
            kind = value
    return events


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


TOKENS = [
    b"data: ",
    b"data:",
    b"data",
    b"event: x",
    b"event:",
    b"id: 1",
    b"retry: 5",
    b": hi",
    b"{}",
    b"\xc3\xa9",
    b" ",
]
BREAK = [b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\r\r"]
streams = st.lists(st.sampled_from(TOKENS + BREAK + BREAK), max_size=30).map(b"".join)
plain = st.lists(st.sampled_from([*TOKENS, b"\n", b"\n\n"]), max_size=30).map(b"".join)


@given(stream=streams | plain, places=st.lists(st.integers(0, 500), max_size=12), bom=st.booleans())
@example(stream=b"data: a\rdata: b\n\n", places=[], bom=False)
@example(stream=b"data: a\n\ndata: b\r\n\r\n", places=[9, 10, 19], bom=False)
@example(stream=b"data: a\n\r", places=[9], bom=False)
def test_any_chunking_gives_the_events_of_the_standard(stream: bytes, places: list[int], bom: bool) -> None:
    stream = b"\xef\xbb\xbf" + stream if bom else stream
    whole = frames(stream)
    assert [(frame.event, frame.data) for frame in whole] == reference(stream)
    assert frames(*cut(stream, places)) == whole
    assert frames(*(bytes([byte]) for byte in stream)) == whole


@given(stream=streams | plain, places=st.lists(st.integers(0, 500), max_size=12))
def test_raw_bytes_say_the_same_again(stream: bytes, places: list[int]) -> None:
    found = frames(*cut(stream, places))
    again = frames(*(frame.raw for frame in found))
    assert [frame[:2] for frame in again] == [frame[:2] for frame in found]


def test_a_frame_is_handed_out_as_soon_as_it_is_complete() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: one\n\ndata: tw") == [SSEFrame("", b"one", b"data: one\n\n")]
    assert decoder.feed(b"o\n") == []
    assert decoder.feed(b"\n") == [SSEFrame("", b"two", b"data: two\n\n")]
    assert decoder.feed(b"event: end\r\ndata: x\r\n\r\n") == [SSEFrame("end", b"x", b"event: end\r\ndata: x\r\n\r\n")]
    assert decoder.end() == []


def test_comments_and_other_fields_give_no_frame() -> None:
    assert frames(b": ping\n\nid: 7\nretry: 100\n\nevent: nothing\n\ndata: x\n\n") == [
        SSEFrame("", b"x", b"data: x\n\n")
    ]


def test_a_last_frame_without_its_blank_line_is_given_at_the_end() -> None:
    assert frames(b"data: one\n\ndata: [DONE]") == [
        SSEFrame("", b"one", b"data: one\n\n"),
        SSEFrame("", b"[DONE]", b"data: [DONE]\n\n"),
    ]


@pytest.mark.parametrize("prefix", [b"", b": \r\n\r\n"])
def test_an_endless_event_is_refused(prefix: bytes) -> None:
    decoder = SSEDecoder(limit=1000)
    decoder.feed(prefix)
    with pytest.raises(BackendProtocolError, match="1000 bytes"):
        for _ in range(101):
            decoder.feed(b"data: abc\n")


@pytest.mark.parametrize("piece", [b"data: x\n", b"data: x\r\n", b"x", b"x\r"])
def test_dribbled_lines_without_a_blank_one_take_linear_time(piece: bytes) -> None:
    def seconds(count: int) -> float:
        decoder = SSEDecoder()
        begin = time.process_time()
        for _ in range(count):
            decoder.feed(piece)
        return time.process_time() - begin

    assert seconds(80_000) < 1.0  # joining what is pending on every piece took five seconds


def test_frames_are_written_as_they_are_read() -> None:
    assert sse(b"{}") == b"data: {}\n\n"
    assert frames(sse(b"{}", "delta")) == [SSEFrame("delta", b"{}", b"event: delta\ndata: {}\n\n")]


# ---- NDJSON ----------------------------------------------------------------------------------------------------------


def lines(*pieces: bytes) -> list[bytes]:
    decoder = LineDecoder()
    found = [line for piece in pieces for line in decoder.feed(piece)]
    return found + decoder.end()


@given(
    stream=st.lists(st.sampled_from([b"{}", b'{"a":"\xc3\xa9"}', b"\n", b"\r\n", b" "]), max_size=30).map(b"".join),
    places=st.lists(st.integers(0, 200), max_size=8),
)
def test_lines_come_out_the_same_however_they_were_cut(stream: bytes, places: list[int]) -> None:
    expected = [line.rstrip(b"\r") for line in stream.split(b"\n") if line.strip()]
    assert lines(stream) == expected
    assert lines(*cut(stream, places)) == expected


def test_an_endless_line_is_refused() -> None:
    decoder = LineDecoder(limit=100)
    with pytest.raises(BackendProtocolError, match="100 bytes"):
        for _ in range(11):
            decoder.feed(b"0123456789")


def test_dribbled_bytes_of_one_line_take_linear_time() -> None:
    decoder = LineDecoder()
    begin = time.process_time()
    for _ in range(200_000):
        decoder.feed(b"x")
    assert decoder.feed(b"\n") == [b"x" * 200_000]
    assert time.process_time() - begin < 1.0
