"""The cache through the door: every dialect, around an app, behind a mount, and as a setting of the stack."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.backend import ScriptedBackend

from velollm import VeloLLM
from velollm.cache import ResponseCache
from velollm.config import CacheSettings, Settings
from velollm.messages import ModelInfo
from velollm.middleware import CacheMiddleware
from velollm.observability import Metrics
from velollm.stack import build

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "How do I boil an egg?"}]
ASK: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": MESSAGES, "max_tokens": 9},
    "/v1/messages": {"model": "tiny", "messages": MESSAGES, "max_tokens": 9},
    "/v1/responses": {"model": "tiny", "input": "How do I boil an egg?", "max_output_tokens": 9},
    "/api/chat": {"model": "tiny", "messages": MESSAGES, "options": {"num_predict": 9}},
    "/api/generate": {"model": "tiny", "prompt": "How do I boil an egg?", "options": {"num_predict": 9}},
}


class Engine(ScriptedBackend):
    """One that knows its model."""

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id="tiny", digest="sha256:1", capabilities=["completion"])]


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", sorted(ASK))
async def test_what_one_dialect_asked_another_gets(first: str, stream: bool) -> None:
    backend = Engine()
    async with client(VeloLLM(backend=backend, cache=True)) as http:
        asked = await http.post(first, json={**ASK[first], "stream": not stream})
        assert asked.headers["x-velollm-cache"] == "miss"
        for path, body in ASK.items():
            again = await http.post(path, json={**body, "stream": stream})
            assert again.status_code == 200
            assert again.headers["x-velollm-cache"] == "hit-exact", path
            assert again.headers["age"] == "0"
            assert "Hello" in again.text
    assert len(backend.requests) == 1


async def test_a_stream_that_is_a_hit_is_a_whole_stream() -> None:
    async with client(VeloLLM(backend=ScriptedBackend(), cache=True)) as http:
        body = {**ASK["/v1/chat/completions"], "stream": True, "stream_options": {"include_usage": True}}
        once = await http.post("/v1/chat/completions", json=body)
        again = await http.post("/v1/chat/completions", json=body)
    assert again.headers["content-type"] == once.headers["content-type"]
    assert again.text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"stop"' in again.text
    assert '"completion_tokens":3' in again.text


async def test_without_being_asked_the_middleware_keeps_nothing() -> None:
    backend = ScriptedBackend()
    async with client(VeloLLM(backend=backend)) as http:
        for _ in range(2):
            response = await http.post("/v1/chat/completions", json=ASK["/v1/chat/completions"])
            assert "x-velollm-cache" not in response.headers
    assert len(backend.requests) == 2


@pytest.mark.parametrize("cache", [CacheSettings(semantic="on"), ResponseCache(semantic="on")])
async def test_settings_and_a_cache_of_ones_own(cache: Any) -> None:
    async with client(VeloLLM(backend=ScriptedBackend(), cache=cache)) as http:
        await http.post("/v1/chat/completions", json=ASK["/v1/chat/completions"])
        other = [{"role": "user", "content": "What is the best way to boil eggs?"}]
        again = await http.post("/v1/chat/completions", json={**ASK["/v1/chat/completions"], "messages": other})
    assert again.headers["x-velollm-cache"] == "hit-semantic"


class App:
    """An app that serves /v1/chat/completions itself, slowly, and other things."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        self.asked += scope["path"] == "/v1/chat/completions"
        await asyncio.sleep(0.01)
        body = (
            b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":'
            b'{"role":"assistant","content":"Boil it."},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,'
            b'"completion_tokens":2,"total_tokens":3}}'
        )
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def test_the_middleware_alone_around_an_app() -> None:
    app = App()
    async with client(CacheMiddleware(app, semantic="on")) as http:
        seen = []
        for headers in (
            {},
            {},
            {"authorization": "Bearer a"},
            {"authorization": "Bearer b"},
            {"authorization": "Bearer a"},
        ):
            answer = await http.post("/v1/chat/completions", json=ASK["/v1/chat/completions"], headers=headers)
            assert answer.json()["choices"][0]["message"]["content"] == "Boil it."
            seen.append(answer.headers["x-velollm-cache"])
        assert seen == ["miss", "hit-exact", "miss", "miss", "hit-exact"]
        assert app.asked == 3
        assert "x-velollm-cache" not in (await http.get("/other")).headers


async def test_the_leader_leaves_and_the_app_goes_on_for_the_others() -> None:
    app = App()
    async with client(CacheMiddleware(app)) as http:
        path, body = "/v1/chat/completions", ASK["/v1/chat/completions"]
        leader = asyncio.create_task(http.post(path, json=body))
        await asyncio.sleep(0.003)
        others = [asyncio.create_task(http.post(path, json=body)) for _ in range(3)]
        await asyncio.sleep(0.003)
        leader.cancel()
        assert {answer.json()["choices"][0]["message"]["content"] for answer in await asyncio.gather(*others)} == {
            "Boil it."
        }
    assert app.asked == 1


async def test_the_stack_counts() -> None:
    metrics = Metrics()
    backend = build(ScriptedBackend(), Settings(), metrics)
    async with client(VeloLLM(backend=backend)) as http:
        for _ in range(2):
            await http.post("/v1/chat/completions", json=ASK["/v1/chat/completions"])
    exposed = metrics.expose().decode()
    assert 'velollm_cache_requests_total{outcome="miss",tier="none"} 1.0' in exposed
    assert 'velollm_cache_requests_total{outcome="hit",tier="exact"} 1.0' in exposed
    assert "velollm_cache_store_up 1.0" in exposed


async def test_a_store_that_fails_is_seen_in_the_metrics_and_costs_nobody_an_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    metrics = Metrics()
    settings = Settings(cache=CacheSettings(store=f"sqlite:{tmp_path}/file/cache.db"))
    async with client(VeloLLM(backend=build(ScriptedBackend(), settings, metrics))) as http:
        response = await http.post("/v1/chat/completions", json=ASK["/v1/chat/completions"])
    assert response.status_code == 200
    exposed = metrics.expose().decode()
    assert "velollm_cache_store_up 0.0" in exposed
    assert "velollm_cache_store_failures_total 0.0" not in exposed


async def test_switched_off_it_is_not_there() -> None:
    backend = build(ScriptedBackend(), Settings(cache=CacheSettings(enabled=False)))
    async with client(VeloLLM(backend=backend)) as http:
        response = await http.post("/v1/chat/completions", json=ASK["/v1/chat/completions"])
    assert "x-velollm-cache" not in response.headers


@pytest.mark.parametrize("store", ["disk", "sqlite:", "redis:", "memory2", ""])
def test_a_store_that_makes_no_sense_is_refused_at_once(store: str) -> None:
    with pytest.raises(ValueError, match="sqlite:PATH"):
        CacheSettings(store=store)
