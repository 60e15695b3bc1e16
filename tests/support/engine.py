"""An engine whose answers a test dictates, reached through `httpx.MockTransport`; it knows what it is working on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson


class ScriptedEngine:
    """A subclass answers a path by the method that its last segment names; `answers` overrides what a path returns.

    `busy` holds the requests and the bodies that are on their way, `seen` all requests so far.
    """

    def __init__(self) -> None:
        self.busy: set[object] = set()
        self.seen: list[httpx.Request] = []
        self.answers: dict[str, Callable[[httpx.Request], httpx.Response]] = {}

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.busy.add(request)
        try:
            await request.aread()
            self.seen.append(request)
            await asyncio.sleep(0.02)
            path = request.url.path
            answer = self.answers.get(path) or getattr(self, path.rpartition("/")[2].replace("-", "_"))
            response: httpx.Response = answer(request)
            return response
        finally:
            self.busy.discard(request)

    def asked(self, path: str) -> list[Any]:
        """The JSON of every request to `path`."""
        return [orjson.loads(seen.content or b"null") for seen in self.seen if seen.url.path == path]

    def streamed(self, *pieces: bytes, kind: str = "text/event-stream") -> httpx.Response:
        """A response whose body comes piece by piece."""
        body = _Body(self, list(pieces))
        self.busy.add(body)
        return httpx.Response(200, headers={"content-type": kind}, stream=body)


class _Body(httpx.AsyncByteStream):
    """A body that comes in pieces, and tells its engine when it is over."""

    def __init__(self, engine: ScriptedEngine, pieces: list[bytes]) -> None:
        self.engine = engine
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            await asyncio.sleep(0.01)
            yield piece

    async def aclose(self) -> None:
        self.engine.busy.discard(self)
