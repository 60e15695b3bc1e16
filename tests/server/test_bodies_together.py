"""Bodies that are being received are bounded all together, over real sockets; who has sent all of it is not counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
from support.backend import ScriptedBackend
from support.serving import Connection, Served, post, serve, served

from velollm.asgi import Bodies, ClientLeft, read_body
from velollm.config import ServerSettings, Settings
from velollm.config.units import Size
from velollm.door import Door
from velollm.errors import BodyTooLarge, Overloaded
from velollm.server.app import ServerApp

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
LARGE = orjson.dumps({**QUESTION, "user": "x" * 90_000})
MOST = 250_000  # room for two of them
SETTINGS = Settings(server=ServerSettings(max_body=Size(100_000), max_bodies=Size(MOST)))


@pytest.fixture
def app() -> ServerApp:
    return served(ScriptedBackend(), settings=SETTINGS)


@pytest.fixture
async def server(app: ServerApp) -> AsyncGenerator[Served, None]:
    async with serve(app) as running:
        yield running


async def until_held(app: ServerApp, size: int) -> None:
    """All that clients have sent has come, or is let go."""
    door: Door = app._app.app.app.door  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while door.bodies.held != size:
            await asyncio.sleep(0.002)


def head(path: str = PATH, *, length: int = len(LARGE)) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (path.encode(), length)


async def fill(app: ServerApp, server: Served, stack: AsyncExitStack) -> list[Connection]:
    """Two clients who have sent all of a large body but its last byte."""
    clients = [await stack.enter_async_context(server.connect()) for _ in range(2)]
    for client in clients:
        client.send(head(), LARGE[:-1])
    await until_held(app, 2 * len(LARGE[:-1]))
    return clients


@pytest.mark.parametrize("path", [PATH, "/v1/messages", "/api/chat"])
async def test_what_goes_beyond_is_refused_until_there_is_room(app: ServerApp, server: Served, path: str) -> None:
    async with AsyncExitStack() as stack:
        first, second = await fill(app, server, stack)
        async with server.connect() as third:
            third.send(head(path), LARGE[:-1])
            code, headers, body = await third.answer()
            assert code == 503
            assert headers[b"retry-after"] == b"1"
            assert headers[b"connection"] == b"close"
            said = orjson.loads(body)["error"]
            assert "--max-bodies" in (said if path.startswith("/api/") else said["message"])
            if path == PATH:
                assert said["code"] == "too_many_bodies"
        async with server.connect() as small:
            small.send(post(PATH, QUESTION))
            assert (await small.answer())[0] == 200, "what comes in one piece is not refused"
        first.writer.transport.abort()
        await until_held(app, len(LARGE[:-1]))
        async with server.connect() as third:
            third.send(head(), LARGE[:-1])
            await until_held(app, 2 * len(LARGE[:-1]))
            for client in (second, third):
                client.send(LARGE[-1:])
                assert (await client.answer())[0] == 200
    async with AsyncExitStack() as stack:
        for client in await fill(app, server, stack):
            client.send(LARGE[-1:])
            assert (await client.answer())[0] == 200, "all room is there again"


async def test_what_is_passed_on_piece_by_piece_is_not_counted(app: ServerApp, server: Served) -> None:
    piece = b"x" * 50_000
    async with server.connect() as client:
        client.send(head("/api/blobs/sha256:1", length=40 * len(piece)), *[piece] * 39)
        await client.writer.drain()
        async with AsyncExitStack() as stack:
            for other in await fill(app, server, stack):
                other.send(LARGE[-1:])
                assert (await other.answer())[0] == 200
        client.send(piece)
        assert (await client.answer())[0] == 200


async def test_however_a_body_ends_it_is_counted_back() -> None:
    def receive(*messages: dict[str, Any]) -> Any:
        coming = iter(messages)

        async def one() -> Any:
            return next(coming)

        return one

    def piece(size: int, *, more: bool = True) -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * size, "more_body": more}

    gone = {"type": "http.disconnect"}
    bodies = Bodies(100, 150)
    assert await read_body(receive(piece(60), piece(40, more=False)), {}, bodies) == b"x" * 100
    for messages in ((piece(60), gone), (piece(60), piece(60)), (piece(60),)):
        with pytest.raises((ClientLeft, BodyTooLarge, RuntimeError)):
            await read_body(receive(*messages), {}, bodies)
        assert bodies.held == 0
    bodies.held = 100
    with pytest.raises(Overloaded):
        await read_body(receive(piece(40), piece(40, more=False)), {}, bodies)
    assert await read_body(receive(piece(90, more=False)), {}, bodies) == b"x" * 90
    assert bodies.held == 100


def test_one_body_fits_always() -> None:
    assert Bodies(100, 50).together == 100
