"""An OpenAI server on loopback for load: its tokens take a while, and it counts what runs at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from support.upstream import Peer, Received, answer, chunk, head

__all__ = ["STREAM", "Engine"]

STREAM = head(b"content-type: text/event-stream", b"transfer-encoding: chunked")


class Engine:
    """An OpenAI server whose tokens take a while; counts what runs at once."""

    def __init__(self, pause: float = 0.002, models: tuple[str, ...] = ("m",)) -> None:
        self.pause = pause
        self.models = models
        self.running = self.most = 0
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            await self.serve(peer, request)

    async def serve(self, peer: Peer, request: Received) -> None:
        if request.method == b"GET":
            listed = {"data": [{"id": name} for name in self.models]}
            known = request.target == b"/v1/models"
            peer.send(answer(json.dumps(listed if known else {}).encode(), status=b"200 OK" if known else b"404 No"))
            return
        body = json.loads(request.body)
        if body["model"] not in self.models:
            peer.send(answer(b'{"error": {"message": "no such model"}}', status=b"404 Not Found"))
            return
        self.bodies.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        peer.send(STREAM)
        for number in range(count := body["max_tokens"]):
            await asyncio.sleep(self.pause)
            last = number == count - 1
            peer.send(self.token("length" if last else None))
        usage = {"prompt_tokens": 7, "completion_tokens": count}
        peer.send(
            chunk(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], "usage": usage}).encode()), chunk()
        )
        self.running -= 1

    def token(self, finish: str | None) -> bytes:
        choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": finish}
        return chunk(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())
