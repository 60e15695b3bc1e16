"""The dashboard: nothing from elsewhere, nothing that was said, nothing as markup, nothing without a key."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from support.asgi import ask
from support.backend import ScriptedBackend
from support.serving import served

from velollm.config import ObservabilitySettings, ServerSettings, Settings
from velollm.errors import BackendUnreachable
from velollm.messages import ModelInfo
from velollm.server import create_app

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
KEY = "a-key-of-sixteen-bytes"
FILES = ["/velollm/", "/velollm/dashboard.css", "/velollm/dashboard.js", "/velollm/icon.svg"]
EVIL = "<img src=x onerror=alert(1)>"


def question(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "my secret prompt"}], **more}


class Down(ScriptedBackend):
    name = "down"

    async def models(self) -> list[ModelInfo]:
        raise BackendUnreachable("down cannot be reached", backend="down")


@pytest.mark.parametrize("path", FILES)
async def test_files_are_our_own_and_may_load_nothing_else(path: str) -> None:
    answer = await ask(served(ScriptedBackend()), "GET", path)
    assert answer.status == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]", text.replace("// ", "")), "no address of elsewhere"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|<script>|<style| on\w+=", text)


async def test_what_the_page_names_is_there() -> None:
    app = served(ScriptedBackend())
    page = (await ask(app, "GET", "/velollm/")).text
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (await ask(app, "GET", f"/velollm/{name}")).status == 200
    script = (await ask(app, "GET", "/velollm/dashboard.js")).text
    ids = set(re.findall(r'id="([\w-]+)"', page))
    wanted = set(re.findall(r'(?:\$|spark|showLayer)\("([\w-]+)"', script))
    assert wanted
    assert wanted <= ids
    assert {f"{name}-spark" for name in ("tokens", "requests", "running")} <= ids


async def test_without_its_slash_it_leads_there() -> None:
    answer = await ask(served(ScriptedBackend()), "GET", "/velollm")
    assert (answer.status, answer.headers["location"]) == (308, "/velollm/")


async def test_status() -> None:
    app = served(ScriptedBackend(), Down())
    await ask(app, "POST", CHAT, question(stream=True))
    await ask(app, "POST", CHAT, question(), cache_control="no-store")
    await ask(app, "POST", CHAT, question("missing"))
    state = (await ask(app, "GET", "/velollm/api/status")).json
    by_name = {backend["name"]: backend for backend in state["backends"]}
    assert by_name["scripted"]["up"]
    assert by_name["scripted"]["models"] == ["tiny"]
    assert not by_name["down"]["up"]
    assert by_name["down"]["error"] == "down cannot be reached"
    tiny = state["models"]["tiny"]
    assert tiny["finished"] == {"stop": 2}
    assert (tiny["prompt_tokens"], tiny["generation_tokens"]) == (10, 6)
    assert tiny["prefix_cache"] == {"queries": 10, "hits": 4}
    assert tiny["ttft"].keys() == {"p50", "p90", "p99"}
    assert state["models"]["other"]["failed"] == {"model_not_found": 1}
    assert state["rates"]["requests_per_second"] > 0
    assert state["running"] == 0


async def test_requests_show_what_became_of_them_and_never_what_was_said() -> None:
    app = served(ScriptedBackend(["my", " secret", " answer"]))
    await ask(app, "POST", CHAT, question(), authorization="Bearer sk-secret")
    await ask(app, "POST", CHAT, b'{"my secret')
    await ask(app, "GET", "/health")
    await ask(app, "GET", "/velollm/api/status")
    answer = await ask(app, "GET", "/velollm/api/requests")
    refused, good = answer.json["requests"]
    assert (good["model"], good["status"], good["outcome"], good["completion_tokens"]) == ("tiny", 200, "ok", 3)
    assert refused["status"] == 400
    for path in ("/velollm/api/requests", "/velollm/api/status", "/metrics"):
        assert "secret" not in (await ask(app, "GET", path)).text


async def test_names_stay_text_and_short() -> None:
    app = served(ScriptedBackend())
    await ask(app, "POST", CHAT, question(EVIL))
    await ask(app, "POST", CHAT, question("x" * 100_000))
    await ask(app, "GET", "/" + "y" * 50_000)
    for path in ("/velollm/api/status", "/velollm/api/requests"):
        answer = await ask(app, "GET", path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert len(answer.text) < 5000


async def test_counters_of_layers_show_when_there_are_any() -> None:
    from prometheus_client import Counter

    app = served(ScriptedBackend())
    state = (await ask(app, "GET", "/velollm/api/status")).json
    assert "cache" not in state
    counter = Counter("velollm_cache_requests", "", ["tier", "outcome"], registry=app.metrics.registry)
    counter.labels("exact", "hit").inc(3)
    counter.labels("exact", "miss")
    state = (await ask(app, "GET", "/velollm/api/status")).json
    assert state["cache"] == [{"tier": "exact", "outcome": "hit", "count": 3}]


async def test_a_browser_can_ask_its_user_for_the_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[[keys]]\nname = "one"\nkey = "{KEY}"\n')
    app = create_app(Settings(server=ServerSettings(keys=str(path))), environ={})
    refused = await ask(app, "GET", "/velollm/", host="localhost")
    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith("Basic realm=")
    for secret, status in ((KEY, 200), ("wrong", 401)):
        basic = "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()
        assert (await ask(app, "GET", "/velollm/", host="localhost", authorization=basic)).status == status
        assert (await ask(app, "GET", "/v1/models", host="localhost", authorization=basic)).status == 401
    for broken in ("Basic", "Basic %%%", "Basic AAAA", "Basic " + "A" * 5000):
        assert (await ask(app, "GET", "/velollm/", host="localhost", authorization=broken)).status == 401


async def test_a_key_sees_its_own_requests_and_an_admin_all(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = {"one": KEY, "two": KEY[::-1], "boss": KEY * 2}
    path.write_text("".join(
        f'[[keys]]\nname = "{name}"\nkey = "{key}"\nadmin = {str(name == "boss").lower()}\n'
        for name, key in keys.items()
    ))  # fmt: skip
    app = create_app(Settings(server=ServerSettings(keys=str(path))), environ={})
    for name in ("one", "two"):
        await ask(app, "GET", f"/v1/{name}", host="localhost", authorization=f"Bearer {keys[name]}")
    seen = {}
    for name, key in keys.items():
        answer = await ask(app, "GET", "/velollm/api/requests", host="localhost", authorization=f"Bearer {key}")
        seen[name] = [request["key"] for request in answer.json["requests"]]
    assert seen == {"one": ["one"], "two": ["two"], "boss": ["two", "one"]}


async def test_traces_are_times_alone_and_for_administrators(tmp_path: Path) -> None:
    timed = ObservabilitySettings(traces=True)
    app = served(ScriptedBackend(["my", " secret", " answer"]), settings=Settings(observability=timed))
    await ask(app, "POST", CHAT, question(stream=True))
    answer = await ask(app, "GET", "/velollm/api/traces")
    names = [span["name"] for span in answer.json["traces"][0]["spans"]]
    assert names[0] == "observe"
    assert names[-2:] == ["scheduling", "engine"]
    assert "secret" not in answer.text
    assert (await ask(served(ScriptedBackend()), "GET", "/velollm/api/traces")).status == 404
    path = tmp_path / "keys.toml"
    keys = {"one": KEY, "boss": KEY * 2}
    path.write_text("".join(
        f'[[keys]]\nname = "{name}"\nkey = "{key}"\nadmin = {str(name == "boss").lower()}\n'
        for name, key in keys.items()
    ))  # fmt: skip
    app = create_app(Settings(server=ServerSettings(keys=str(path)), observability=timed), environ={})
    for name, status in (("one", 403), ("boss", 200)):
        bearer = f"Bearer {keys[name]}"
        answer = await ask(app, "GET", "/velollm/api/traces", host="localhost", authorization=bearer)
        assert answer.status == status
