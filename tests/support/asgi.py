"""One request to an ASGI app, driven by hand: scope, receive and send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

__all__ = ["Client", "ask", "until"]


class Client:
    """One request to an ASGI app; `leave()` is the client closing the connection."""

    def __init__(self, method: str, path: str, body: bytes | Any = b"", **headers: str) -> None:
        self.body = body if isinstance(body, bytes) else orjson.dumps(body)
        self.scope = {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "raw_path": path.partition("?")[0].encode(),
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        self.gone = asyncio.Event()
        self.sent = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.complete = False
        self.piece = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self.sent:
            self.sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            assert not self.status, "a second response"
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert not self.complete, "a piece after the last"
            self.pieces.append(message["body"])
            self.complete = not message.get("more_body", False)
            self.piece.set()

    def leave(self) -> None:
        self.gone.set()

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode()

    @property
    def json(self) -> Any:
        return orjson.loads(self.text)


async def ask(app: Any, method: str, path: str, body: Any = b"", **headers: str) -> Client:
    client = Client(method, path, body, **headers)
    await app(client.scope, client.receive, client.send)
    assert client.complete
    return client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0.002)
