"""What the standalone server says of itself."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.asgi import Client, ask
from support.backend import ScriptedBackend
from support.serving import served

from velollm import __version__
from velollm.config import ObservabilitySettings, Settings
from velollm.errors import BackendUnreachable
from velollm.messages import ModelInfo

pytestmark = pytest.mark.anyio
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


class Down(ScriptedBackend):
    name = "down"

    async def models(self) -> list[ModelInfo]:
        raise BackendUnreachable("down cannot be reached: no connection to 127.0.0.1:1", backend="down")


async def test_health() -> None:
    answer = await ask(served(Down()), "GET", "/health")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == {"status": "ok", "service": "velollm", "version": __version__}


async def test_ready_when_one_backend_answers() -> None:
    answer = await ask(served(Down(), ScriptedBackend()), "GET", "/ready")
    assert answer.status == 200
    assert answer.json["status"] == "ready"
    assert answer.json["backends"]["scripted"] == "ready"
    assert "cannot be reached" in answer.json["backends"]["down"]
    answer = await ask(served(Down()), "GET", "/ready")
    assert (answer.status, answer.json["status"]) == (503, "unavailable")


async def test_metrics_can_be_read_by_prometheus() -> None:
    app = served(ScriptedBackend(), Down())
    assert (await ask(app, "POST", "/v1/chat/completions", QUESTION)).status == 200
    answer = await ask(app, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.labels.get("model_name") == "tiny" or sample.labels.get("backend") == "scripted"
    }
    assert found["velollm_request_success_total"] == 1
    assert found["velollm_prompt_tokens_total"] == 5
    assert found["velollm_backend_up"] == 1
    assert 'velollm_backend_up{backend="down"} 0.0' in answer.text


async def test_metrics_can_be_switched_off() -> None:
    app = served(ScriptedBackend(), settings=Settings(observability=ObservabilitySettings(metrics=False)))
    assert (await ask(app, "GET", "/metrics")).status == 404


async def test_openapi_describes_what_is_served() -> None:
    answer = await ask(served(ScriptedBackend()), "GET", "/openapi.json")
    assert answer.json["openapi"].startswith("3.")
    assert "/v1/chat/completions" in answer.json["paths"]


@pytest.mark.parametrize("path", ["/nowhere", "/v2/models", "/healthz", "/../etc/passwd", "/velollm/nothing", "/%00"])
async def test_unknown_paths_are_404_in_json(path: str) -> None:
    for method in ("GET", "POST", "PUT"):
        answer = await ask(served(ScriptedBackend()), method, path)
        assert answer.status == 404
        assert answer.json["error"]["code"] == "path_not_found"


async def test_wrong_methods_are_405_in_json() -> None:
    answer = await ask(served(ScriptedBackend()), "POST", "/health")
    assert (answer.status, answer.json["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"
    assert (await ask(served(ScriptedBackend()), "GET", "/v1/chat/completions")).status == 405


async def test_head_is_answered_as_get() -> None:
    assert (await ask(served(ScriptedBackend()), "HEAD", "/health")).status == 200


async def test_the_root_says_what_there_is() -> None:
    assert "/v1/chat/completions" in (await ask(served(ScriptedBackend()), "GET", "/")).text


async def test_lifespan_starts_and_closes_the_backends() -> None:
    class Slow(ScriptedBackend):
        started = False

        async def start(self) -> None:
            self.started = True
            await asyncio.sleep(60)

    backend = Slow()
    app = served(backend)
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent = []

    async def receive() -> dict[str, str]:
        await asyncio.sleep(0.01)
        return next(messages)

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    async with asyncio.timeout(2):
        await app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert backend.started
    assert backend.closed == 1


async def test_websockets_are_closed() -> None:
    client = Client("GET", "/v1/chat/completions")
    client.scope["type"] = "websocket"
    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await served(ScriptedBackend())(client.scope, client.receive, send)
    assert sent == [{"type": "websocket.close", "code": 1000}]
