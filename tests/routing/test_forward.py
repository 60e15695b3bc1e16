"""Requests that a pool passes on: to the backend whose model they name, where one does."""

from __future__ import annotations

import pytest
from support.backend import ScriptedBackend

from velollm.backend import HttpRequest
from velollm.messages import ModelInfo
from velollm.routing import BackendPool

pytestmark = pytest.mark.anyio


class Named(ScriptedBackend):
    """An Ollama with one model."""

    def __init__(self, name: str, model: str) -> None:
        super().__init__(dialects=frozenset({"ollama"}))
        self.name = name
        self.model = model

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id=self.model)]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"model": "b"}', 1),
        (b'{"model": "", "name": "b:latest"}', 1),
        (b'{"model": "a"}', 0),
        (b'{"model": "other"}', 0),
        (b'{"model": 5}', 0),
        (b"{broken", 0),
        (b"", 0),
    ],
)
async def test_to_the_backend_that_has_the_model(body: bytes, place: int) -> None:
    backends = [Named("one", "a:latest"), Named("two", "b:latest")]
    async with BackendPool(backends) as pool:
        await pool.models()
        await pool.forward(HttpRequest(method="POST", target="/api/show", body=body))
    assert [len(backend.forwarded) for backend in backends] == [1 - place, place]
