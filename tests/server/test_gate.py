"""Who may ask: names of the server, origins of pages, keys; nothing is executed for anybody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Client, ask
from support.backend import ScriptedBackend
from support.serving import served

from velollm.config import ServerSettings, Settings
from velollm.server import create_app
from velollm.server.app import ServerApp, is_loopback

pytestmark = pytest.mark.anyio
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"
KEY = "a-key-of-sixteen-bytes"
ORIGIN = "https://app.example"


def app_with(backend: ScriptedBackend, **server: Any) -> ServerApp:
    return served(backend, settings=Settings(server=ServerSettings(**server)))


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "localhost."])
async def test_own_names_are_answered(backend: ScriptedBackend, host: str) -> None:
    assert (await ask(served(backend), "POST", CHAT, QUESTION, host=host)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "evil.example:8000", "[::2]"]
)
async def test_foreign_names_are_refused(backend: ScriptedBackend, host: str) -> None:
    for path in (CHAT, "/api/chat", "/v1/messages", "/health", "/metrics", "/"):
        answer = await ask(served(backend), "POST", path, QUESTION, host=host)
        assert answer.status == 403
    assert (await ask(served(backend), "POST", CHAT, QUESTION, host=host)).json["error"]["code"] == "host_not_allowed"
    assert backend.requests == []


async def test_further_names_can_be_allowed(backend: ScriptedBackend) -> None:
    app = app_with(backend, allowed_hosts=("LLM.example",))
    assert (await ask(app, "POST", CHAT, QUESTION, host="llm.example:443")).status == 200
    assert (await ask(app, "POST", CHAT, QUESTION, host="evil.example")).status == 403
    assert (await ask(app_with(backend, allowed_hosts=("*",)), "POST", CHAT, QUESTION, host="any")).status == 200


async def test_a_server_for_the_network_goes_by_any_name_unless_told(backend: ScriptedBackend) -> None:
    assert (await ask(app_with(backend, host="0.0.0.0"), "POST", CHAT, QUESTION, host="any")).status == 200
    app = app_with(backend, host="0.0.0.0", allowed_hosts=("llm.example",))
    assert (await ask(app, "POST", CHAT, QUESTION, host="any")).status == 403


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("Localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# ---- pages of other origins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "file://", "http://["])
async def test_pages_of_others_are_refused(backend: ScriptedBackend, origin: str) -> None:
    headers = {"host": "localhost:8000", "origin": origin, "content-type": "text/plain"}
    for path in (CHAT, "/api/chat", "/api/pull"):
        answer = await ask(served(backend), "POST", path, QUESTION, **headers)
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
    assert backend.requests == [] == backend.forwarded


async def test_a_page_of_nowhere_is_nobodys(backend: ScriptedBackend) -> None:
    assert (await ask(served(backend), "POST", CHAT, QUESTION, origin="null")).status == 403
    assert (await ask(served(backend), "POST", CHAT, QUESTION, origin="")).status == 403


async def test_pages_of_our_own_are_answered(backend: ScriptedBackend) -> None:
    answer = await ask(served(backend), "POST", CHAT, QUESTION, host="localhost:8000", origin="http://localhost:8000")
    assert answer.status == 200


async def test_allowed_pages_may_ask_and_read(backend: ScriptedBackend) -> None:
    app = app_with(backend, cors_origins=(ORIGIN + "/",))
    answer = await ask(app, "POST", CHAT, QUESTION, host="localhost", origin=ORIGIN)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["vary"] == "origin"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    failed = await ask(app, "POST", CHAT, b"{", host="localhost", origin=ORIGIN)
    assert failed.headers["access-control-allow-origin"] == ORIGIN, "a page must be able to read what was wrong"


async def test_a_preflight_needs_no_key(tmp_path: Path) -> None:
    app = with_keys(tmp_path, ServerSettings(cors_origins=(ORIGIN,)))
    answer = await ask(
        app, "OPTIONS", CHAT, host="localhost", origin=ORIGIN,
        access_control_request_method="POST", access_control_request_headers="authorization, content-type",
    )  # fmt: skip
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "access-control-allow-credentials" not in answer.headers


# ---- keys ------------------------------------------------------------------------------------------------------------


def with_keys(folder: Path, server: ServerSettings | None = None) -> ServerApp:
    path = folder / "keys.toml"
    path.write_text(f'[[keys]]\nname = "one"\nkey = "{KEY}"\n')
    values = {field: getattr(server, field) for field in ("cors_origins", "host")} if server else {}
    return create_app(Settings(server=ServerSettings(keys=str(path), **values)), environ={})


PATHS = [
    CHAT, "/v1/models", "/v1/messages", "/api/chat", "/api/tags", "/api/pull", "/metrics", "/", "/openapi.json",
    "/velollm/", "/velollm/api/status", "/velollm/api/requests", "/nowhere", "//v1/models", "/v1/../v1/models",
    "/v1/models/", "/V1/models", "/health/../v1/models", "/health/", "/ready/",
]  # fmt: skip
WRONG: list[Callable[[], dict[str, str]]] = [
    dict,
    lambda: {"authorization": ""},
    lambda: {"authorization": "Bearer"},
    lambda: {"authorization": "Bearer "},
    lambda: {"authorization": "Bearer wrong"},
    lambda: {"authorization": f"Basic {KEY}"},
    lambda: {"authorization": f"Bearer {KEY}x"},
    lambda: {"authorization": f"Bearer {KEY[:-1]}"},
    lambda: {"authorization": "Bearer ' OR '1'='1"},
    lambda: {"authorization": "Bearer " + "x" * 5000},
    lambda: {"x_api_key": ""},
    lambda: {"x_api_key": "\xe9\xff"},
    lambda: {"x_api_key": KEY.upper()},
]


@pytest.mark.parametrize("path", PATHS)
async def test_every_spelling_of_every_path_needs_a_key(tmp_path: Path, path: str) -> None:
    app = with_keys(tmp_path)
    for wrong in WRONG:
        for method in ("GET", "POST", "DELETE"):
            client = Client(method, path, QUESTION, host="localhost", **wrong())
            client.scope["headers"] = [(n, v.decode().encode("latin-1")) for n, v in client.scope["headers"]]
            await app(client.scope, client.receive, client.send)
            assert client.status in (401, 403), (method, wrong())
            assert KEY not in client.text


async def test_refusals_speak_the_clients_dialect(tmp_path: Path) -> None:
    app = with_keys(tmp_path)
    openai = await ask(app, "POST", CHAT, QUESTION, host="localhost")
    assert openai.json["error"]["code"] == "invalid_api_key"
    assert openai.headers["www-authenticate"] == "Bearer"
    anthropic = await ask(app, "POST", "/v1/messages", QUESTION, host="localhost")
    assert anthropic.json["error"]["type"] == "authentication_error"
    assert isinstance((await ask(app, "POST", "/api/chat", QUESTION, host="localhost")).json["error"], str)


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"},
                                     {"x_api_key": KEY}])  # fmt: skip
async def test_a_known_key_opens(tmp_path: Path, headers: dict[str, str]) -> None:
    assert (await ask(with_keys(tmp_path), "GET", "/", host="localhost", **headers)).status == 200


async def test_probes_need_no_key_and_learn_little(tmp_path: Path) -> None:
    app = with_keys(tmp_path)
    assert (await ask(app, "GET", "/health", host="localhost")).status == 200
    ready = await ask(app, "GET", "/ready", host="localhost")
    assert ready.status == 503
    assert ready.json == {"status": "unavailable"}


async def test_keys_are_hashed_where_they_lie(tmp_path: Path) -> None:
    with_keys(tmp_path)
    path = tmp_path / "keys.toml"
    assert KEY not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
