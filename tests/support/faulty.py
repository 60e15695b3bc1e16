"""An engine that speaks OpenAI's API and fails as a test dictates, with the whole server in front of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import orjson
from support.asgi import Client, until
from support.serving import served
from support.upstream import Peer, Received, Server, answer, chunk, head, scripted

from velollm.backend import Limits
from velollm.config import CacheSettings, Settings
from velollm.contrib.openai import OpenAIBackend
from velollm.server.app import ServerApp

__all__ = [
    "JSON",
    "MODELS",
    "QUICK",
    "SSE",
    "STREAM",
    "WHOLE",
    "Engine",
    "Front",
    "client_text",
    "delta",
    "events",
    "frame",
    "front",
    "last",
    "whole_answer",
]  # fmt: skip

QUICK = Limits(connect=1.0, first_byte=0.6, idle=0.4, max_response=1 << 20)
JSON = b"content-type: application/json"
SSE = b"content-type: text/event-stream"
CHUNKED = b"transfer-encoding: chunked"
MODELS = orjson.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]})
QUESTION = [{"role": "user", "content": "Hi"}]
STREAM: dict[str, Any] = {"model": "m", "messages": QUESTION, "stream": True}
WHOLE: dict[str, Any] = {"model": "m", "messages": QUESTION}

Script = Callable[[Peer, Received], Awaitable[Any]]


def frame(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % (value if isinstance(value, bytes) else orjson.dumps(value))


def delta(text: str, **fields: Any) -> bytes:
    """An event with a piece of text."""
    content = {"role": "assistant", "content": text} if fields.pop("role", False) else {"content": text}
    choice = {"index": 0, "delta": content, "finish_reason": None, **fields}
    return frame({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def last(reason: str = "stop") -> bytes:
    """The event that ends the answer, the usage, and `[DONE]`."""
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    end = frame({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    usage = frame({**base, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}})
    return end + usage + frame(b"[DONE]")


def events(*texts: str) -> bytes:
    """The events of some texts."""
    return b"".join(delta(text, role=number == 0) for number, text in enumerate(texts))


def whole_answer(text: str = "Hello world") -> bytes:
    """The body of an answer in one piece."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return orjson.dumps({"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                         "usage": usage})  # fmt: skip


@attrs.define
class Engine:
    """A running engine: how many generations it was asked for, and its connections."""

    server: Server
    asked: list[Received] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        return f"openai+{self.server.url}/v1"


@asynccontextmanager
async def engine(script: Script) -> AsyncGenerator[Engine, None]:
    """Serves its list of models; every other request is answered by `script`, which may keep the connection."""

    async def play(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if request.method == b"GET":
                peer.send(answer(MODELS, JSON))
                continue
            made.asked.append(request)
            await script(peer, request)
            if peer.writer.is_closing():
                return

    async with scripted(play) as server:
        made = Engine(server)
        yield made


@attrs.define
class Front:
    """The server in front of engines."""

    app: ServerApp
    engines: list[Engine]

    @property
    def asked(self) -> int:
        return sum(len(one.asked) for one in self.engines)

    def client(self, payload: Any, path: str = "/v1/chat/completions", **headers: str) -> Client:
        return Client("POST", path, payload, host="localhost", **headers)

    async def ask(self, payload: Any, path: str = "/v1/chat/completions", **headers: str) -> Client:
        client = self.client(payload, path, **headers)
        async with asyncio.timeout(8):
            await self.app(client.scope, client.receive, client.send)
        assert client.complete, "the answer was not ended"
        return client

    @property
    def running(self) -> int:
        return sum(member.health.running for member in self.app.pool.members)


@asynccontextmanager
async def front(*scripts: Script, limits: Limits = QUICK) -> AsyncGenerator[Front, None]:
    """The whole server before one engine a script. At the end, nothing may be left running: no task, no request."""
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(engine(script)) for script in scripts]
        names = "abcdefgh"
        backends = [OpenAIBackend(one.url, name=names[i], limits=limits) for i, one in enumerate(engines)]
        settings = Settings(cache=CacheSettings(enabled=False))  # each request is to reach an engine
        made = Front(served(*backends, settings=settings), engines)
        yield made
        assert made.running == 0, "a request was not given back"
        pools = [backend.upstream._pool for backend in backends]
        await until(lambda: not any(pool._busy for pool in pools if pool is not None))  # else: a lost connection
        await made.app.backend.aclose()
    async with asyncio.timeout(3):
        while left := [task for task in asyncio.all_tasks() - before if not task.done()]:
            assert all(not task.done() for task in left)
            await asyncio.sleep(0.005)


def client_text(client: Client) -> tuple[str, list[dict[str, Any]], bool]:
    """What a client makes of an event stream: its text, the errors in it, and whether it ended with `[DONE]`."""
    text, errors, done = "", [], False
    for line in client.text.split("\n"):
        if not line.startswith("data: "):
            assert line == "" or line.startswith((":", "event:")), line
            continue
        if line == "data: [DONE]":
            done = True
            continue
        event = orjson.loads(line[6:])
        if "error" in event:
            errors.append(event["error"])
            continue
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
            assert not (errors and choice["finish_reason"]), "a finish behind an error"
    return text, errors, done


def streamed(*pieces: bytes) -> bytes:
    """A chunked event stream, not ended."""
    return head(SSE, CHUNKED) + b"".join(chunk(piece) for piece in pieces)
