"""Keys through the whole server: every dialect and path, what is refused, and that no key is ever told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support.asgi import Client, ask
from support.backend import ScriptedBackend
from support.faulty import JSON, WHOLE, engine, whole_answer
from support.serving import served
from support.upstream import Peer, Received, answer

from velollm.admission import KeyFile, add_key
from velollm.config import CacheSettings, Settings
from velollm.contrib.openai import OpenAIBackend
from velollm.server.app import ServerApp

pytestmark = pytest.mark.anyio

QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "stream": False}
CHATS = ["/v1/chat/completions", "/v1/messages", "/api/chat"]
UNCACHED = Settings(cache=CacheSettings(enabled=False))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(dialects=frozenset({"ollama", "openai"}))


def app_with(path: Path, backend: Any) -> ServerApp:
    return served(backend, settings=UNCACHED, keys=KeyFile(path))


async def post(app: ServerApp, where: str, key: str | None, body: Any = QUESTION, **headers: str) -> Client:
    given = {} if key is None else {"authorization": f"Bearer {key}"}
    return await ask(app, "POST", where, body, host="localhost", **given, **headers)


@pytest.mark.parametrize("where", [*CHATS, "/v1/models", "/v1/embeddings", "/metrics", "/api/tags", "/nowhere", "//v1"])
@pytest.mark.parametrize(
    "headers",
    [
        {}, {"authorization": "Bearer wrong"}, {"authorization": "Basic d3Jvbmc="}, {"x_api_key": "' OR 1=1 --"},
        {"authorization": "Bearer " + "x" * 5000}, {"authorization": "Bearer"}, {"x_api_key": ""},
        {"authorization": "bearer \x00\x01"},
    ],
)  # fmt: skip
async def test_without_a_key_nothing_is_answered(
    path: Path, backend: ScriptedBackend, where: str, headers: dict[str, str]
) -> None:
    add_key(path, "alice")
    client = await ask(app_with(path, backend), "POST", where, QUESTION, host="localhost", **headers)
    assert client.status == 401
    assert client.json["error"]
    assert backend.requests == []


async def test_both_headers_are_alike_and_wrong_bytes_are_refused(path: Path, backend: ScriptedBackend) -> None:
    secret = add_key(path, "alice")
    app = app_with(path, backend)
    assert (await post(app, CHATS[0], secret)).status == 200
    client = await ask(app, "POST", CHATS[0], QUESTION, host="localhost", x_api_key=secret)
    assert client.status == 200
    odd = Client("POST", CHATS[0], QUESTION, host="localhost")
    odd.scope["headers"].append((b"authorization", b"Bearer \xff\xfe\xc3"))  # type: ignore[attr-defined]
    await app(odd.scope, odd.receive, odd.send)
    assert odd.status == 401


@pytest.mark.parametrize("where", CHATS)
async def test_limits_are_told_in_every_dialect(path: Path, backend: ScriptedBackend, where: str) -> None:
    secret = add_key(path, "limited", rpm=1)
    app = app_with(path, backend)
    first = await post(app, where, secret)
    assert first.status == 200
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    second = await post(app, where, secret)
    assert second.status == 429
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    error = second.json["error"]
    if where == "/api/chat":
        assert isinstance(error, str)
    else:
        assert error["type"] == ("rate_limit_error" if where == "/v1/messages" else error["type"])
    assert len(backend.requests) == 1


async def test_only_its_models_are_shown_and_answered(path: Path, backend: ScriptedBackend) -> None:
    secret = add_key(path, "guest", models=("other*",))
    app = app_with(path, backend)
    for where in CHATS:
        client = await post(app, where, secret)
        assert client.status == 403
    for where in ("/v1/models", "/api/tags"):
        client = await ask(app, "GET", where, host="localhost", x_api_key=secret)
        assert client.status == 200
        assert "tiny" not in client.text
    assert (await ask(app, "GET", "/v1/models/tiny", host="localhost", x_api_key=secret)).status == 404
    show = await ask(app, "POST", "/api/show", {"model": "tiny"}, host="localhost", x_api_key=secret)
    assert show.status in (403, 404)
    assert backend.requests == []


@pytest.mark.parametrize(
    ("method", "where"),
    [("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"),
     ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:00"), ("POST", "/api/pull/"), ("POST", "/api/Pull")],
)  # fmt: skip
async def test_changing_models_needs_an_admin_key(
    path: Path, backend: ScriptedBackend, method: str, where: str
) -> None:
    plain, admin = add_key(path, "alice"), add_key(path, "ops", admin=True)
    app = app_with(path, backend)
    client = await ask(app, method, where, {"model": "x"}, host="localhost", x_api_key=plain)
    assert client.status in (403, 404)
    assert backend.forwarded == []
    await ask(app, method, where, {"model": "x"}, host="localhost", x_api_key=admin)
    assert len(backend.forwarded) == 1


async def test_changing_the_server_needs_an_admin_key(path: Path, backend: ScriptedBackend) -> None:
    plain, admin = add_key(path, "alice"), add_key(path, "ops", admin=True)
    app = app_with(path, backend)
    where = "/velollm/api/cache"
    assert (await ask(app, "DELETE", where, host="localhost", x_api_key=plain)).status == 403
    assert (await ask(app, "DELETE", where, host="localhost", x_api_key=admin)).status != 403


async def test_two_keys_never_share_an_answer(path: Path, backend: ScriptedBackend) -> None:
    alice, bob = add_key(path, "alice"), add_key(path, "bob")
    app = served(backend, keys=KeyFile(path))
    question = {**QUESTION, "temperature": 0}
    for secret in (alice, bob, alice, bob):
        assert (await post(app, CHATS[0], secret, question)).status == 200
    assert len(backend.requests) == 2
    assert {request.context.tenant for request in backend.requests} == {"alice", "bob"}
    await app.backend.aclose()


async def test_a_key_is_never_told_to_anybody(
    path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def script(peer: Peer, request: Received) -> None:
        peer.send(answer(whole_answer(), JSON))

    secret = add_key(path, "alice")
    wrong = "sk-wrong-key-that-somebody-tried"
    async with engine(script) as upstream:
        app = app_with(path, OpenAIBackend(upstream.url, name="a"))
        with caplog.at_level(logging.DEBUG):
            assert (await post(app, CHATS[0], secret, WHOLE)).status == 200
            refused = await post(app, CHATS[0], wrong, WHOLE)
            assert (await post(app, "/v1/other/path", secret, WHOLE)).status == 200
            assert (await post(app, CHATS[0], secret, WHOLE, x_api_key=wrong)).status == 200
            shown = await ask(app, "GET", "/metrics", host="localhost", x_api_key=secret)
        received = b"".join(
            b"".join((one.target, one.body, *one.headers, *one.headers.values())) for one in upstream.server.requests
        )
        await app.backend.aclose()
    for given in (secret, wrong):
        assert given.encode() not in received
        assert given not in refused.text + shown.text + caplog.text + "".join(capsys.readouterr())
