"""A fixed upstream in a process of its own: OpenAI's chat completions on a bare asyncio protocol, as cheap as can be.

A request with `"stream": true` is answered by 64 chunks of SSE, each written by itself; every other one by JSON. A body
that holds /paced/ leaves 5 ms between chunks, as a model does. Prints its port and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any, cast

CHUNKS = 64
PACE = 0.005
CREATED = 1_700_000_000


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _delta(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED, "model": "m"}
    return b"data: " + _json({**head, "choices": [choice]}) + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _answer() -> bytes:
    message = {"role": "assistant", "content": "word " * 64}
    body = _json(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": CREATED,
            "model": "m",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 64, "total_tokens": 84},
        }
    )
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


ANSWER = _answer()
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM = [
    _chunk(_delta({"role": "assistant", "content": "word "})),
    *[_chunk(_delta({"content": "word "}))] * (CHUNKS - 2),
    _chunk(_delta({}, "stop")),
]
STREAM_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
MODELS = _json({"object": "list", "data": [{"id": "m", "object": "model", "created": CREATED, "owned_by": "bench"}]})


class Engine(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 : head.find(b"\r", at)]) if at >= 0 else 0
        if len(self.buffer) < end + size:
            return
        body, self.buffer = self.buffer[end : end + size], self.buffer[end + size :]
        self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(MODELS) + MODELS)
        elif b'"stream":true' in body.replace(b" ", b""):
            self.transport.write(STREAM_HEAD)
            self.stream(iter(STREAM), paced=b"/paced/" in body)
        else:
            self.transport.write(ANSWER)

    def stream(self, chunks: Iterator[bytes], *, paced: bool) -> None:
        if self.transport.is_closing():
            return
        piece = next(chunks, None)
        self.transport.write(piece or STREAM_END)
        if piece is None:
            return
        if paced:
            self.loop.call_later(PACE, lambda: self.stream(chunks, paced=True))
        else:
            self.loop.call_soon(lambda: self.stream(chunks, paced=False))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0, backlog=512)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
