"""VeloLLM inside the web frameworks people use, ASGI and WSGI: adding the API, wrapping it, and below a prefix."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import litestar
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from support.backend import ScriptedBackend

from velollm import VeloLLM

pytestmark = pytest.mark.anyio
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
STREAMED = {**QUESTION, "stream": True}
MESSAGES = {**QUESTION, "max_tokens": 10}
OWN_ANSWER = {
    "id": "own-1",
    "object": "chat.completion",
    "created": 1,
    "model": "own",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "I am the app"}, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
}


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://host")


def own_stream() -> Iterator[bytes]:
    for word in ("I", " am", " streamed"):
        chunk = {"id": "own-1", "object": "chat.completion.chunk", "created": 1, "model": "own"}
        yield (
            b"data: %s\n\n"
            % json.dumps(
                {**chunk, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            ).encode()
        )
    yield (
        b"data: %s\n\n"
        % json.dumps({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()
    )
    yield b"data: [DONE]\n\n"


async def own_stream_async() -> AsyncIterator[bytes]:
    for piece in own_stream():
        yield piece


# ---- ASGI hosts: each has a route of its own, /own, and its own chat under /v1 where it is to be wrapped -------------


def starlette_app(wrapped: bool, **options: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def own(request: Request) -> Response:
        return JSONResponse({"own": True})

    async def chat(request: Request) -> Response:
        if (await request.json()).get("stream"):
            return StreamingResponse(own_stream(), media_type="text/event-stream")
        return JSONResponse(OWN_ANSWER)

    routes = [Route("/own", own)] + ([Route("/v1/chat/completions", chat, methods=["POST"])] if wrapped else [])
    app = Starlette(routes=routes)
    app.add_middleware(VeloLLM, **options)
    return app


def fastapi_app(wrapped: bool, **options: Any) -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/own")
    def own() -> dict[str, bool]:
        return {"own": True}

    async def chat(request: Request) -> Response:
        if (await request.json()).get("stream"):
            return StreamingResponse(own_stream(), media_type="text/event-stream")
        return JSONResponse(OWN_ANSWER)

    if wrapped:
        app.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
    app.add_middleware(VeloLLM, **options)
    return app


def litestar_app(wrapped: bool, **options: Any) -> Any:
    from litestar import Litestar, get, post
    from litestar.middleware import DefineMiddleware

    @get("/own", sync_to_thread=False)
    def own() -> dict[str, bool]:
        return {"own": True}

    @post("/v1/chat/completions", status_code=200)
    async def chat(request: litestar.Request[Any, Any, Any]) -> litestar.Response[Any] | litestar.response.Stream:
        if (await request.json()).get("stream"):
            return litestar.response.Stream(own_stream(), media_type="text/event-stream")
        return litestar.Response(OWN_ANSWER)

    if not wrapped:
        # Litestar's middleware runs for matched routes only; the app as a whole is wrapped instead.
        return VeloLLM(Litestar(route_handlers=[own]), **options)
    return Litestar(route_handlers=[own, chat], middleware=[DefineMiddleware(VeloLLM, **options)])


def django_urls(wrapped: bool) -> list[Any]:
    from django.core.handlers.asgi import ASGIRequest
    from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
    from django.urls import path

    def own(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"own": True})

    def chat(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        if json.loads(request.body).get("stream"):
            pieces = own_stream_async() if isinstance(request, ASGIRequest) else own_stream()
            return StreamingHttpResponse(pieces, content_type="text/event-stream")
        return JsonResponse(OWN_ANSWER)

    return [path("own", own)] + ([path("v1/chat/completions", chat)] if wrapped else [])


def django_settings(wrapped: bool) -> None:
    import types

    import django
    from django.conf import settings
    from django.urls import clear_url_caches

    if not settings.configured:
        settings.configure(DEBUG=False, SECRET_KEY="test", ALLOWED_HOSTS=["*"], MIDDLEWARE=[])
        django.setup()
    urls = types.ModuleType("velollm_test_urls")
    urls.urlpatterns = django_urls(wrapped)  # type: ignore[attr-defined]
    settings.ROOT_URLCONF = urls
    clear_url_caches()


def django_asgi_app(wrapped: bool, **options: Any) -> Any:
    django_settings(wrapped)
    from django.core.handlers.asgi import ASGIHandler

    return VeloLLM(ASGIHandler(), **options)


ASGI_HOSTS = [starlette_app, fastapi_app, litestar_app, django_asgi_app]


@pytest.mark.parametrize("host", ASGI_HOSTS)
async def test_adds_the_api_to_an_app_that_has_none(host: Any) -> None:
    backend = ScriptedBackend()
    async with client(host(False, backend=backend)) as http:
        assert (await http.get("/own")).json() == {"own": True}
        answer = (await http.post("/v1/chat/completions", json=QUESTION)).json()
        assert answer["choices"][0]["message"]["content"] == "Hello world"
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == "tiny"
        ollama = (await http.post("/api/chat", json={**QUESTION, "stream": False})).json()
        assert ollama["message"]["content"] == "Hello world"
        anthropic = (await http.post("/v1/messages", json=MESSAGES)).json()
        assert anthropic["content"][0]["text"] == "Hello world"
        assert (await http.get("/nowhere")).status_code == 404
    assert len(backend.requests) == 3


@pytest.mark.parametrize("host", ASGI_HOSTS)
async def test_wraps_an_app_that_serves_the_api_already(host: Any) -> None:
    async with client(host(True)) as http:
        assert (await http.get("/own")).json() == {"own": True}
        answer = (await http.post("/v1/chat/completions", json=QUESTION)).json()
        assert answer["choices"][0]["message"]["content"] == "I am the app"
        streamed = (await http.post("/v1/chat/completions", json=STREAMED)).text
        assert streamed.count("data: ") == 6  # the role, which the app left out, comes first
        assert streamed.count('"own-1"') == 5
        assert streamed.endswith("data: [DONE]\n\n")
        if host is not litestar_app:  # whose middleware sees matched routes only
            anthropic = (await http.post("/v1/messages", json=MESSAGES)).json()
            assert anthropic["content"][0]["text"] == "I am the app"
            lines = (await http.post("/api/chat", json=QUESTION)).text.splitlines()
            assert "".join(json.loads(line)["message"]["content"] for line in lines) == "I am streamed"


async def test_a_wrapped_app_sees_its_own_client() -> None:
    from starlette.applications import Starlette
    from starlette.routing import Route

    seen: list[Request] = []

    async def chat(request: Request) -> Response:
        seen.append(request)
        assert (await request.json())["messages"]
        return JSONResponse(OWN_ANSWER)

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    app.add_middleware(VeloLLM)
    headers = {"authorization": "Bearer own", "cookie": "session=1", "accept-encoding": "gzip", "x-own": "yes"}
    async with client(app) as http:
        assert (await http.post("/v1/chat/completions?x=1", json=QUESTION, headers=headers)).status_code == 200
    (request,) = seen
    assert request.headers["authorization"] == "Bearer own"
    assert request.cookies == {"session": "1"}
    assert request.headers["host"] == "host"
    assert request.headers["x-own"] == "yes"
    assert request.headers.getlist("content-length") == [str(len(await request.body()))]
    assert request.headers["accept-encoding"] == "identity"
    assert request.app is app


async def test_mounted_below_a_prefix_in_starlette() -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    backend = ScriptedBackend()
    app = Starlette(routes=[Mount("/llm", app=VeloLLM(backend=backend))])
    async with client(app) as http:
        assert (await http.post("/llm/v1/chat/completions", json=QUESTION)).status_code == 200
        assert (await http.post("/v1/chat/completions", json=QUESTION)).status_code == 404
        assert (await http.get("/llm/nowhere")).json()["error"]["code"] == "path_not_found"


async def test_mounted_below_a_prefix_in_fastapi() -> None:
    from fastapi import FastAPI

    app = FastAPI()
    app.mount("/llm", VeloLLM(backend=ScriptedBackend()))
    async with client(app) as http:
        assert (await http.post("/llm/api/generate", json={"model": "tiny", "prompt": "Hi"})).status_code == 200


@pytest.mark.parametrize("host", [starlette_app, fastapi_app, django_asgi_app])
async def test_prefix_as_an_option(host: Any) -> None:
    async with client(host(False, backend=ScriptedBackend(), prefix="/llm/")) as http:
        assert (await http.post("/llm/v1/chat/completions", json=QUESTION)).status_code == 200
        assert (await http.post("/llmv1/chat/completions", json=QUESTION)).status_code == 404
        assert (await http.post("/v1/chat/completions", json=QUESTION)).status_code == 404


async def test_app_below_keeps_its_own_paths_under_api() -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def users(request: Any) -> PlainTextResponse:
        return PlainTextResponse("mine")

    app = Starlette(routes=[Route("/api/users", users), Route("/v1/chat/completions", users, methods=["GET"])])
    app.add_middleware(VeloLLM, backend=ScriptedBackend(dialects=frozenset({"ollama"})))
    async with client(app) as http:
        assert (await http.get("/api/users")).text == "mine"
        assert (await http.get("/v1/chat/completions")).text == "mine"


@pytest.mark.parametrize("kind", ["http", "websocket", "of tomorrow"])
async def test_what_the_host_raises_is_its_own(kind: str) -> None:
    """What is not ours passes with the very same scope, receive and send: there is nothing in between to cost time."""
    broken, got = ValueError("the host's"), []

    async def host_app(*given: Any) -> None:
        got.append(given)
        raise broken

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    app = VeloLLM(host_app, backend=ScriptedBackend(), cache=True)
    given = ({"type": kind, "method": "GET", "path": "/users/v1/models", "headers": []}, nothing, lambda _: nothing())
    with pytest.raises(ValueError, match="the host's") as caught:
        await app(*given)
    assert caught.value is broken
    assert all(mine is its for mine, its in zip(got[0], given, strict=True))
    await app.backend.aclose()


async def test_lifespan_of_the_host_closes_the_backend() -> None:
    from starlette.applications import Starlette

    backend = ScriptedBackend()
    app = Starlette()
    app.add_middleware(VeloLLM, backend=backend)
    await lifespan(app)
    assert backend.closed == 1


async def test_lifespan_alone_closes_the_backend() -> None:
    backend = ScriptedBackend()
    await lifespan(VeloLLM(backend=backend))
    assert backend.closed == 1


async def lifespan(app: Any) -> None:
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# ---- WSGI hosts ------------------------------------------------------------------------------------------------------


def flask_app(wrapped: bool) -> Any:
    from flask import Flask, Response, jsonify, request

    app = Flask("host")

    @app.get("/own")
    def own() -> Any:
        return jsonify(own=True)

    if wrapped:

        @app.post("/v1/chat/completions")
        def chat() -> Any:
            if (request.get_json() or {}).get("stream"):
                return Response(own_stream(), mimetype="text/event-stream")
            return jsonify(OWN_ANSWER)

    return app.wsgi_app


def django_wsgi_app(wrapped: bool) -> Any:
    django_settings(wrapped)
    from django.core.handlers.wsgi import WSGIHandler

    return WSGIHandler()


@pytest.fixture(params=[flask_app, django_wsgi_app])
def wsgi_host(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def wsgi() -> Iterator[Any]:
    opened = []

    def make(app: Any, **options: Any) -> httpx.Client:
        velo = VeloLLM.wsgi(app, **options)
        opened.append(velo)
        return httpx.Client(transport=httpx.WSGITransport(app=velo), base_url="http://host")

    yield make
    for velo in opened:
        velo.close()


def test_wsgi_adds_the_api(wsgi: Any, wsgi_host: Any) -> None:
    with wsgi(wsgi_host(False), backend=ScriptedBackend()) as http:
        assert http.get("/own").json() == {"own": True}
        answer = http.post("/v1/chat/completions", json=QUESTION).json()
        assert answer["choices"][0]["message"]["content"] == "Hello world"
        assert http.post("/v1/chat/completions", json=STREAMED).text.endswith("data: [DONE]\n\n")
        assert http.post("/v1/chat/completions", content=b"{").status_code == 400
        assert http.get("/nowhere").status_code == 404


def test_wsgi_wraps_an_app_that_serves_the_api(wsgi: Any, wsgi_host: Any) -> None:
    with wsgi(wsgi_host(True)) as http:
        assert http.get("/own").json() == {"own": True}
        answer = http.post("/v1/chat/completions", json=QUESTION).json()
        assert answer["choices"][0]["message"]["content"] == "I am the app"
        anthropic = http.post("/v1/messages", json=MESSAGES).json()
        assert anthropic["content"][0]["text"] == "I am the app"
        lines = http.post("/api/chat", json=QUESTION).text.splitlines()
        assert "".join(json.loads(line)["message"]["content"] for line in lines) == "I am streamed"


def test_a_wrapped_wsgi_app_sees_its_own_client(wsgi: Any) -> None:
    from flask import Flask, request

    app = Flask("test")
    seen: dict[str, str] = {}

    @app.post("/v1/chat/completions")
    def chat() -> Any:
        seen.update(request.headers, app=request.environ["own.key"])
        assert request.get_json()["messages"]
        return OWN_ANSWER

    def outer(environ: dict[str, Any], start_response: Any) -> Any:
        return velo({**environ, "own.key": "kept"}, start_response)

    with wsgi(app.wsgi_app) as http:
        velo = http._transport.app
        http._transport.app = outer
        headers = {"authorization": "Bearer own", "cookie": "session=1"}
        assert http.post("/v1/chat/completions", json=QUESTION, headers=headers).status_code == 200
    assert (seen["Authorization"], seen["Cookie"], seen["app"]) == ("Bearer own", "session=1", "kept")


def test_wsgi_streams_piece_by_piece_and_cancels_when_closed(wsgi_host: Any) -> None:
    backend = ScriptedBackend(["word "] * 1000, pause=0.01)
    velo = VeloLLM.wsgi(wsgi_host(False), backend=backend)
    body = json.dumps(STREAMED).encode()
    environ = httpx_environ(body)
    statuses: list[str] = []
    response = velo(environ, lambda status, headers: statuses.append(status))
    pieces = iter(response)
    assert b"word" in next(pieces) + next(pieces)
    assert statuses == ["200 OK"]
    assert backend.running == 1
    response.close()
    for _ in range(100):
        if backend.running == 0:
            break
        anyio.run(anyio.sleep, 0.01)
    assert backend.running == 0
    assert backend.cancelled == 1
    velo.close()


def httpx_environ(body: bytes) -> dict[str, Any]:
    import io

    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/v1/chat/completions",
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/json",
        "SERVER_NAME": "host",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(body),
        "wsgi.url_scheme": "http",
    }


def test_wsgi_without_an_app_refuses_other_paths(wsgi: Any) -> None:
    with wsgi(None, backend=ScriptedBackend()) as http:
        assert http.get("/nowhere").status_code == 404
        assert http.get("/v1/models").status_code == 200


def test_needs_a_backend_or_an_app() -> None:
    with pytest.raises(TypeError, match="needs a backend"):
        VeloLLM()
    with pytest.raises(ValueError, match="unknown dialect"):
        VeloLLM(backend=ScriptedBackend(), dialects=["gopher"])
    with pytest.raises(ValueError, match="slash"):
        VeloLLM(backend=ScriptedBackend(), prefix="llm")
