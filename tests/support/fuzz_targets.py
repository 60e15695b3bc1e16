"""What is fed with bytes of strangers, as functions that take any bytes: they return, or the code has a fault.

`tests/test_fuzz.py` tries each with some thousands of damaged examples, `tests/fuzz.py` for as long as one likes.
The first bytes of an input say how the rest is cut into pieces: however it comes, the same must be made of it.
"""

from __future__ import annotations

import asyncio
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import orjson
from support.toolcall_formats import FORMATS, TOOLS
from support.toolcall_stream import streamed
from uvicorn import Config
from uvicorn.server import ServerState

from velollm.api import anthropic, ollama, openai, responses
from velollm.api.ollama import upstream as ollama_upstream
from velollm.api.ollama.lines import LineDecoder
from velollm.api.openai import upstream as openai_upstream
from velollm.api.openai.upstream import StreamDecoder
from velollm.api.sse import SSEDecoder
from velollm.cache.entry import Damaged, Entry, decode, encode
from velollm.errors import RequestError, VeloError
from velollm.messages import ChatRequest, RequestContext
from velollm.models.gguf import GGUFError, read_gguf
from velollm.server.protocol import GuardedProtocol
from velollm.toolcalls import fix
from velollm.transport.http1 import Connection, Patience

__all__ = ["TARGETS", "Target"]


@attrs.frozen
class Target:
    """One reader of bytes, and good examples of what it reads."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def pieces(cuts: bytes, data: bytes) -> Iterator[bytes]:
    """`data`, cut where `cuts` say."""
    start = 0
    for cut in cuts:
        if start < len(data):
            yield data[start : start + cut + 1]
            start += cut + 1
    if start < len(data):
        yield data[start:]


# ---- model output ----------------------------------------------------------------------------------------------------


def tool_calls(data: bytes) -> None:
    """Text and arguments of models: what runs is right, whatever the chunks, and a second look changes nothing."""
    seed, text = int.from_bytes(data[:2], "big"), data[2:].decode("utf-8", "replace")
    result = fix(text, TOOLS)
    fixer, said, got = streamed(text, TOOLS, seed)
    assert (fixer.result.calls, fixer.result.content) == (result.calls, result.content)
    assert got == [(call.name, call.arguments_json) for call in result.calls]
    if not result.calls:
        assert said == text
    made = fix([{"function": {"name": "write_note", "arguments": text}}], TOOLS)
    again = [{"function": {"name": call.name, "arguments": call.arguments_json}} for call in made.calls]
    assert fix(again, TOOLS).calls == made.calls
    for call in (*result.calls, *made.calls):
        assert orjson.loads(call.arguments_json) == call.arguments or "e" in call.arguments_json.lower()


def event_stream(data: bytes) -> None:
    """A stream of an engine: the same frames however it is cut, and clients get JSON events only."""
    cuts, stream = data[:4], data[4:]
    whole = SSEDecoder()
    frames = [*whole.feed(stream), *whole.end()]
    in_pieces = SSEDecoder()
    again = [frame for piece in pieces(cuts, stream) for frame in in_pieces.feed(piece)] + in_pieces.end()
    assert [frame[:2] for frame in again] == [frame[:2] for frame in frames]
    for wire in ("openai.chat", "openai.completions"):
        decoder = StreamDecoder(wire, "engine")
        try:
            for event in decoder.read(frames):
                check_events(event.raw)
            decoder.close()
        except VeloError:
            pass


def check_events(raw: bytes | None) -> None:
    """What goes to a client as it came is nothing but events of JSON."""
    if raw:
        assert raw.endswith(b"\n\n")
        for frame in raw[:-2].split(b"\n\n"):
            assert frame.startswith(b"data: ")
            assert isinstance(orjson.loads(frame[6:]), dict)


def lines(data: bytes) -> None:
    """A stream of an Ollama: the same, line by line."""
    said = []
    for cuts in (b"", data[:4]):
        decoder = LineDecoder("ollama.chat", "engine")
        events: list[Any] = []
        try:
            for piece in pieces(cuts, data[4:]):
                events += decoder.feed(piece)
            events += decoder.end()
            failed = False
        except VeloError:
            failed = True
        for event in events:
            assert not event.raw or isinstance(orjson.loads(event.raw), dict)
        said.append(("" if failed else "".join(event.text for event in events), failed))
    assert said[0] == said[1]


# ---- requests --------------------------------------------------------------------------------------------------------

ENDPOINTS = (openai.ChatCompletions(), openai.Completions(), responses.Responses(), anthropic.Messages(),
             ollama.Chat(), ollama.Generate())  # fmt: skip


def requests(data: bytes) -> None:
    """The JSON of a client, in every dialect: understood, and said again to every engine, or refused."""
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    if not isinstance(payload, dict):
        return
    for endpoint in ENDPOINTS:
        try:
            request = endpoint.parse(payload, data, RequestContext(request_id="req_1"))
            say_again(request)
        except RequestError:
            pass


def say_again(request: ChatRequest) -> None:
    assert isinstance(orjson.loads(openai_upstream.request_body(request)), dict)
    bare = attrs.evolve(request, source=None)
    encoded = ollama_upstream.encode_chat if request.prompt is None else ollama_upstream.encode_generate
    for encode_for in (openai_upstream.request_body, encoded):
        encode_for(bare)


# ---- HTTP ------------------------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """Takes what is written, and can be closed."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 5)})
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


LOOP = asyncio.new_event_loop()
Seen = tuple[str, bytes, list[tuple[bytes, bytes]], bytes]


def clients(data: bytes) -> None:
    """What a client sends: never an error of ours, and the same requests out of it however it is cut."""
    cuts, stream = data[:4], data[4:]
    assert LOOP.run_until_complete(served(pieces(cuts, stream))) == LOOP.run_until_complete(served(iter([stream])))


async def served(data: Iterator[bytes]) -> list[Seen]:
    """The requests that were executed."""
    seen: list[Seen] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        seen.append((scope["method"], scope["raw_path"], scope["headers"], body))
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    config = Config(app, log_config=None, lifespan="off")
    protocol, wire = GuardedProtocol(config, ServerState(), {}, LOOP), Wire()
    protocol.connection_made(wire)
    for piece in data:
        if not wire.closed:
            protocol.data_received(piece)
        for _ in range(4):
            await asyncio.sleep(0)
    for _ in range(40):
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    for _ in range(4):
        await asyncio.sleep(0)
    for _, _, headers, _ in seen:
        assert sum(name.lower() == b"host" for name, _ in headers) <= 1
        assert not any(bad in part for header in headers for part in header for bad in (b"\r", b"\n", b"\0"))
    return seen


def engines(data: bytes) -> None:
    """What an engine answers: an answer, or an error that says so; the same however it is cut."""
    cuts, stream = data[:4], data[4:]
    whole, cut = (
        LOOP.run_until_complete(answered(iter([stream]))),
        LOOP.run_until_complete(answered(pieces(cuts, stream))),
    )
    assert whole[0] == cut[0], (whole, cut)
    if not whole[0]:
        assert whole == cut


async def answered(data: Iterator[bytes]) -> tuple[bool, int, bytes]:
    """Whether it failed, the status, the body."""
    connection = Connection()
    connection.connection_made(Wire())
    connection.begin(Patience(1, 10, 10), is_head=False)
    connection.sent()
    for piece in data:
        connection.data_received(piece)
    connection.eof_received()
    connection.connection_lost(None)
    body, failed = b"", False
    try:
        await connection.wait_for_head()
        while piece := await connection.read():
            body += piece
    except httpx.HTTPError:
        failed = True
    connection.release()
    connection.close()
    return failed, connection.status, body


# ---- files -----------------------------------------------------------------------------------------------------------


def model_files(data: bytes) -> None:
    """The head of a GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        path.write_bytes(data)
        try:
            model = read_gguf(path)
        except GGUFError:
            return
        assert model.size == len(data)


def cache_entries(data: bytes) -> None:
    """A stored answer; every other input has a right checksum."""
    damaged = data[1:]
    if data[:1] < b"\x80" and len(damaged) > 8:
        damaged = damaged[:4] + zlib.crc32(damaged[8:]).to_bytes(4, "big") + damaged[8:]
    try:
        entry = decode(damaged)
    except Damaged:
        return
    assert decode(encode(entry)) == entry or entry != entry  # a NaN


def _chunks(*texts: str) -> bytes:
    said = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    choices = [*said, {"index": 0, "delta": {}, "finish_reason": "stop"}]
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"".join(b"data: " + orjson.dumps({**base, "choices": [choice]}) + b"\n\n" for choice in choices)


def _lines(*texts: str) -> bytes:
    said = [{"model": "m", "message": {"role": "assistant", "content": text}, "done": False} for text in texts]
    return b"".join(orjson.dumps(line) + b"\n" for line in [*said, {**said[0], "done": True, "done_reason": "stop"}])


CALLS: list[Any] = [("write_note", {"path": "a", "body": "b"}), ("plan_route", {"stops": ["é", "🦊"]})]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BODIES: tuple[dict[str, Any], ...] = (
    {"model": "m", "messages": TURNS, "stream": True, "tools": [TOOL], "tool_choice": "auto", "stop": ["x"], "n": 1},
    {"model": "m", "prompt": "Hi", "suffix": "x", "options": {"num_ctx": 4096, "temperature": 0.5}, "keep_alive": "5m"},
    {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], "store": False},
    {"model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "s"}], "messages": TURNS, "thinking": {
        "type": "enabled", "budget_tokens": 1024}, "response_format": {"type": "json_object"}},
)  # fmt: skip
ENTRY = Entry(key=b"k" * 16, check=b"c", tenant=b"t", model="m", created=1.0, expires=2.0, answer=b"{}", prompt="Hi")
POST = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
NO_CUTS = b"\xff\xff\xff\xff"

TARGETS = {
    "tool_calls": Target(tool_calls, tuple(b"\0\1" + form(CALLS).encode() for form in FORMATS.values())),
    "event_stream": Target(
        event_stream,
        (
            NO_CUTS + _chunks("a", "é🦊", "") + b"data: [DONE]\n\n",
            NO_CUTS + _chunks("a", "b").replace(b"\n", b"\r\n") + b": hi\r\rid: 1\ndata:{}\r\n\n",
            NO_CUTS + b'event: error\ndata: {"error": {"message": "oom"}}\n\n',
        ),
    ),
    "lines": Target(
        lines,
        (
            NO_CUTS + _lines("a", "é🦊"),
            NO_CUTS + _lines("a", "b").replace(b'{"role":"assistant","content":"b"}', b'"b"'),
            NO_CUTS + b'{"error": "oom"}\n',
        ),
    ),
    "requests": Target(requests, tuple(orjson.dumps(body) for body in BODIES)),
    "clients": Target(
        clients,
        (
            NO_CUTS + POST + b"Content-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\nhost: b\r\n\r\n",
            NO_CUTS + POST + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n" + POST + b"\r\n",
            NO_CUTS + POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1",
            NO_CUTS + b"GET http://a/b HTTP/1.0\r\nConnection: keep-alive\r\nUpgrade: h2c\r\n\r\n",
        ),
    ),
    "engines": Target(
        engines,
        (
            NO_CUTS + b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: y\r\n\r\nhello",
            NO_CUTS + b"HTTP/1.1 103 Hints\r\n\r\n" + CHUNKED,
            NO_CUTS + b"HTTP/1.0 503 Busy\r\nretry-after: 1\r\n\r\nall of it",
        ),
    ),
    "model_files": Target(
        model_files,
        (
            b"GGUF\3\0\0\0" + (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + (3).to_bytes(8, "little")
            + b"a.b" + (8).to_bytes(4, "little") + (2).to_bytes(8, "little") + b"hi",
            b"GGUF\3\0\0\0" + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"k"
            + (9).to_bytes(4, "little") + (4).to_bytes(4, "little") + (2).to_bytes(8, "little") + bytes(8)
            + (1).to_bytes(8, "little") + b"t" + (1).to_bytes(4, "little") + (8).to_bytes(8, "little") + bytes(12 + 64),
        ),
    ),
    "cache_entries": Target(cache_entries, (b"\0" + encode(ENTRY), b"\xff" + encode(ENTRY))),
}  # fmt: skip
