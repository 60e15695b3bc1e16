"""Embeddings through the whole server, in the dialects that have them."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from support.faulty import JSON, front
from support.upstream import Peer, Received, answer

pytestmark = pytest.mark.anyio


async def embeds(peer: Peer, request: Received) -> None:
    """Vectors tell the length of their text; texts with a bang are refused."""
    inputs = orjson.loads(request.body)["input"]
    await asyncio.sleep(0.03)
    if any("!" in text for text in inputs):
        peer.send(answer(b'{"error":{"message":"no bangs"}}', JSON, status=b"400 Bad"))
        return
    data = [{"object": "embedding", "index": n, "embedding": [len(text), 0.5]} for n, text in enumerate(inputs)]
    tokens = sum(len(text) for text in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    peer.send(answer(orjson.dumps({"object": "list", "data": data, "model": "m", "usage": usage}), JSON))


async def test_sixty_four_clients_at_once_are_a_few_calls() -> None:
    async with front(embeds) as proxy:
        texts = ["x" * (number + 1) for number in range(64)]
        found = await asyncio.gather(*(proxy.ask({"model": "m", "input": text}, "/v1/embeddings") for text in texts))
        for text, client in zip(texts, found, strict=True):
            assert client.status == 200
            assert [one["embedding"] for one in client.json["data"]] == [[len(text), 0.5]]
            assert client.json["usage"]["prompt_tokens"] == len(text)
            assert client.headers["x-velollm-backend"] == "a"
        assert proxy.asked <= 8


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
async def test_one_bad_input_fails_alone(path: str) -> None:
    async with front(embeds) as proxy:
        texts = ["good", "fine", "bad!", "well", "nice"] * 3
        found = await asyncio.gather(*(proxy.ask({"model": "m", "input": text}, path) for text in texts))
        assert [client.status for client in found] == [400 if "!" in text else 200 for text in texts]
        vectors = [client.json["data"][0]["embedding"] if path == "/v1/embeddings" else client.json["embeddings"][0]
                   for client in found if client.status == 200]  # fmt: skip
        assert all(vector[0] / vector[1] == 8 for vector in vectors)
