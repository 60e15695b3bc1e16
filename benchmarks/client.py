"""A client for load: asks one question on a connection of its own, and notes when what came."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs

__all__ = ["Answer", "ask", "get", "percentile"]


@attrs.define(kw_only=True)
class Answer:
    """One answer. Times are in seconds from when it was asked; `first` is None without a token."""

    asked: float = 0.0
    status: int = 0
    code: str = ""
    first: float | None = None
    total: float = 0.0
    text: str = ""
    tokens: int = 0
    finish: str | None = None
    usage: dict[str, Any] | None = None
    headers: dict[str, str] = attrs.field(factory=dict)
    error: str = ""

    @property
    def good(self) -> bool:
        return self.status == 200 and self.finish is not None and not self.error


async def ask(port: int, body: Mapping[str, Any], headers: Mapping[str, str] = {}, *, leave: float = 0.0) -> Answer:
    """Ask `POST /v1/chat/completions`; with `leave`, go away after so many seconds."""
    loop = asyncio.get_running_loop()
    answer = Answer(asked=loop.time())
    try:
        async with asyncio.timeout(leave or 300):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
            try:
                writer.write(_request(body, headers, port))
                await _read(reader, answer, loop)
            finally:
                writer.close()
    except TimeoutError:
        answer.error = "left" if leave else "timeout"
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        answer.error = repr(error)
    answer.total = loop.time() - answer.asked
    return answer


async def get(port: int, path: str) -> tuple[float, dict[str, Any]]:
    """GET a JSON object; seconds it took, and the object."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(_headers(head)["content-length"])
    value = json.loads(await reader.readexactly(length))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return loop.time() - begin, value


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def _request(body: Mapping[str, Any], headers: Mapping[str, str], port: int) -> bytes:
    data = json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{port}", "content-type: application/json",
        f"content-length: {len(data)}", *(f"{name}: {value}" for name, value in headers.items()),
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def _read(reader: asyncio.StreamReader, answer: Answer, loop: asyncio.AbstractEventLoop) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    answer.status = int(head.split(b" ", 2)[1])
    answer.headers = _headers(head)
    if "content-length" in answer.headers:
        _whole(json.loads(await reader.readexactly(int(answer.headers["content-length"]))), answer, loop)
        return
    async for event in _events(reader):
        if "error" in event:
            answer.error = str(event["error"])
            return
        answer.usage = event.get("usage") or answer.usage
        for choice in event.get("choices", ()):
            said = choice.get("delta", {}).get("content") or ""
            if said:
                if answer.first is None:
                    answer.first = loop.time() - answer.asked
                answer.text += said
                answer.tokens += 1
            answer.finish = choice.get("finish_reason") or answer.finish


def _whole(value: dict[str, Any], answer: Answer, loop: asyncio.AbstractEventLoop) -> None:
    if answer.status != 200:
        answer.code = value["error"]["code"]
        return
    choice = value["choices"][0]
    answer.first = loop.time() - answer.asked
    answer.text, answer.finish, answer.usage = choice["message"]["content"], choice["finish_reason"], value["usage"]
    answer.tokens = value["usage"]["completion_tokens"]


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The events of a chunked stream of server-sent events."""
    buffer = b""
    while size := int(await reader.readline(), 16):
        buffer += await reader.readexactly(size)
        await reader.readexactly(2)
        *frames, buffer = buffer.split(b"\n\n")
        for frame in frames:
            data = frame.removeprefix(b"data: ")
            if frame.startswith(b"data: ") and data != b"[DONE]":
                yield json.loads(data)


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
