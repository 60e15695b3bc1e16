"""Which engine answers at an address, told from what each kind says of itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from support.upstream import Peer, Script, answer, scripted

from velollm.backend import Limits, open_backend
from velollm.discovery import Found, ProbedBackend, find_engines, identify, ollama_address
from velollm.errors import BackendUnreachable, ConfigError
from velollm.messages import ChatRequest, Message

pytestmark = pytest.mark.anyio
NOT_FOUND = answer(b'{"detail":"Not Found"}', status=b"404 Not Found")
MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}]}
ENGINES: dict[str, tuple[dict[str, Any], tuple[bytes, ...], str]] = {
    "Ollama": ({"/api/version": {"version": "0.17.4"}, "/v1/models": MODELS}, (), "ollama"),
    "llama-server": (
        {"/health": {"status": "ok"}, "/props": {"default_generation_settings": {}}, "/v1/models": MODELS},
        (), "llamacpp",
    ),
    "llama-server, still loading": ({}, (b"server: llama.cpp",), "llamacpp"),
    "vLLM": ({"/version": {"version": "0.11.0"}, "/v1/models": MODELS}, (), "vllm"),
    "SGLang": ({"/v1/models": MODELS}, (), "openai"),
    "LM Studio": ({"/v1/models": MODELS}, (b"x-powered-by: Express",), "openai"),
    "VeloLLM": ({"/health": {"status": "ok", "service": "velollm"}, "/v1/models": MODELS}, (), "velollm"),
}  # fmt: skip


def engine(paths: Mapping[str, Any], *headers: bytes, wait: float = 0.0) -> Script:
    """A server that answers these paths, and 404 to any other."""

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            await asyncio.sleep(wait)
            said = paths.get(request.target.decode())
            peer.send(NOT_FOUND.replace(b"\r\n", b"\r\n" + b"".join(h + b"\r\n" for h in headers), 1)
                      if said is None else answer(orjson.dumps(said), *headers))  # fmt: skip

    return script


@pytest.mark.parametrize("name", ENGINES)
async def test_each_kind_is_told_from_what_it_says(name: str) -> None:
    paths, headers, kind = ENGINES[name]
    async with scripted(engine(paths, *headers)) as server:
        for url in (server.url, f"{server.url}/", f"{server.url}/v1", f"{server.url}/v1/"):
            assert await identify(url) == Found(kind=kind, url=server.url)  # type: ignore[arg-type]


async def test_a_server_that_wants_a_key_is_an_engine_all_the_same() -> None:
    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            known = request.headers.get(b"authorization") == b"Bearer k"
            body = MODELS if known else {"error": {"message": "no key"}}
            peer.send(answer(orjson.dumps(body), status=b"200 OK" if known else b"401 Unauthorized"))

    async with scripted(script) as server:
        assert await identify(server.url) == Found(kind="openai", url=server.url)
        found = await identify(server.url, api_key="k")
        assert found is not None


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"", b"[]", b"null", b'{"data": 5}', b"\xff"])
async def test_a_web_server_is_no_engine(body: bytes) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request():
            peer.send(answer(body))

    async with scripted(script) as server:
        assert await identify(server.url) is None
        assert await find_engines([server.url]) == []


async def test_what_is_no_http_is_no_engine() -> None:
    async def script(peer: Peer) -> None:
        peer.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        await peer.left()

    async with scripted(script) as server:
        assert await identify(server.url) is None


async def test_nobody_there() -> None:
    with pytest.raises(BackendUnreachable):
        await identify(f"http://127.0.0.1:{closed_port()}")


@pytest.mark.parametrize("url", ["gpu:8000", "ftp://gpu", "http://", "http:///v1", ""])
async def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:port is wanted"):
        await identify(url)


async def test_engines_are_found_in_order_and_ourselves_never_or_last() -> None:
    ollama, velollm = ENGINES["Ollama"][0], ENGINES["VeloLLM"][0]
    async with (
        scripted(engine(ollama)) as first,
        scripted(engine(velollm)) as second,
        scripted(engine(ENGINES["vLLM"][0])) as third,
    ):
        gone = f"http://127.0.0.1:{closed_port()}"
        found = await find_engines([third.url, gone, second.url, first.url, third.url])
        assert [one.url for one in found] == [third.url, first.url]
        found = await find_engines([second.url, first.url], proxies=True)
        assert [one.url for one in found] == [first.url, second.url], "engines come first"
        assert [one.url for one in await find_engines([first.url, third.url], ports_not={first.port})] == [third.url]


async def test_a_silent_server_does_not_hold_up_the_search() -> None:
    async with scripted(engine(ENGINES["Ollama"][0], wait=5)) as slow, scripted(engine(ENGINES["vLLM"][0])) as quick:
        begin = asyncio.get_running_loop().time()
        found = await find_engines([slow.url, quick.url], seconds=0.2)
        assert [one.kind for one in found] == ["vllm"]
        assert asyncio.get_running_loop().time() - begin < 1


@pytest.mark.parametrize(
    ("kind", "url", "expected"),
    [
        ("ollama", "http://gpu:11434", "ollama://gpu:11434"),
        ("llamacpp", "http://gpu:8080", "llamacpp://gpu:8080"),
        ("vllm", "http://gpu:8000", "openai+http://gpu:8000/v1"),
        ("openai", "https://gpu/prefix", "openai+https://gpu/prefix/v1"),
        ("ollama", "https://gpu/prefix", "ollama+https://gpu/prefix"),
    ],
)
def test_the_url_of_a_backend(kind: Any, url: str, expected: str) -> None:
    assert Found(kind=kind, url=url).backend_url == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("", None),
        ("127.0.0.1:11435", "http://127.0.0.1:11435"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("[::]:11434", "http://[::1]:11434"),
        (":5000", "http://127.0.0.1:5000"),
        ("gpu", "http://gpu:11434"),
        ("http://gpu", "http://gpu:80"),
        ("https://gpu", "https://gpu:443"),
        ("https://gpu/ollama/", "https://gpu:443/ollama"),
        ('"gpu:1"', "http://gpu:1"),
        ("gpu:port", None),
        ("gpu:99999", None),
        ("ftp://gpu", None),
    ],
)
def test_ollamas_variable(host: str, expected: str | None) -> None:
    assert ollama_address(host) == expected


# ---- a backend of unknown kind ---------------------------------------------------------------------------------------


CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
QUESTION = ChatRequest(model="m", messages=[Message(role="user", content="Hi")])


async def test_a_probed_backend_becomes_what_it_found() -> None:
    paths = {**ENGINES["SGLang"][0], "/v1/chat/completions": CHAT}
    async with scripted(engine(paths)) as server, open_backend(server.url) as backend:
        assert isinstance(backend, ProbedBackend)
        assert backend.kind == "openai"
        assert [event.text async for event in backend.chat(QUESTION)] == ["Hello"]
        assert [model.id for model in await backend.models()] == ["m"]
        assert "openai" in backend.capabilities.dialects


async def test_it_is_asked_again_after_it_was_gone() -> None:
    port = closed_port()
    backend = open_backend(f"http://127.0.0.1:{port}", limits=Limits(connect=0.5))
    assert isinstance(backend, ProbedBackend)
    with pytest.raises(BackendUnreachable):
        await backend.models()
    assert backend.kind is None
    for kind in ("SGLang", "vLLM"):  # another engine comes up in its place
        async with scripted(engine(ENGINES[kind][0]), port=port):
            assert [model.id for model in await backend.models()] == ["m"]
            assert backend.kind == ENGINES[kind][2]
        with pytest.raises(BackendUnreachable):
            await backend.models()
    await backend.aclose()


async def test_what_does_not_say_what_it_is_counts_as_openai(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(engine({"/v1/chat/completions": CHAT})) as server, open_backend(server.url) as backend:
        assert [event.text async for event in backend.chat(QUESTION)] == ["Hello"]
    assert "does not say what it is" in caplog.text


async def test_many_at_once_ask_once() -> None:
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        while (request := await peer.request()) is not None:
            asked += request.target == b"/version"
            await asyncio.sleep(0.05)
            peer.send(answer(orjson.dumps(MODELS)) if request.target == b"/v1/models" else NOT_FOUND)

    async with scripted(script) as server, open_backend(server.url) as backend:
        await asyncio.gather(*(backend.models() for _ in range(20)))
    assert asked == 1


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
