"""Through the whole of VeloLLM: an engine that writes raw text, and the SDKs of all three dialects before it."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any, TypeAlias

import anthropic
import httpx
import ollama
import openai
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from support.backend import ScriptedBackend
from support.toolcall_formats import FORMATS, TOOLS

from velollm import VeloLLM
from velollm.middleware import ToolCallMiddleware

pytestmark = pytest.mark.anyio

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("read_sensor", {"station": "Brest, quai nº 4", "depth": 12.5}),
    ("plan_route", {"stops": ["x y", "Łódź"], "options": {"avoid": ["tolls"], "limit_km": 40}}),
]
HI: list[Any] = [{"role": "user", "content": "Go."}]
Said: TypeAlias = tuple[list[tuple[str, Any]], str, str | None]
UNTYPED = {"minimax_m3"}  # all values are text, so that without a schema they stay text


def transport(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://velo")


def over(sdk: Any, app: Any) -> Any:
    """The client for `app` of whatever HTTP library `sdk` is built on."""
    library = import_module(sdk.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
    return library.AsyncClient(transport=library.ASGITransport(app=app), base_url="http://velo")


class Openai:
    """The openai SDK before `app`."""

    finish = "tool_calls"

    def __init__(self, app: Any) -> None:
        self.client = openai.AsyncOpenAI(base_url="http://velo/v1", api_key="none", http_client=over(openai, app))

    async def ask(self, *, stream: bool) -> Said:
        if not stream:
            answer = await self.client.chat.completions.create(model="tiny", messages=HI, tools=TOOLS)
            choice = answer.choices[0]
            calls = choice.message.tool_calls or []
            assert all(call.id for call in calls)
            found = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
            return found, choice.message.content or "", choice.finish_reason
        text = ""
        parts: dict[int, list[str]] = {}
        finish = None
        options: dict[str, Any] = {"model": "tiny", "messages": HI, "tools": TOOLS, "stream": True}
        async for chunk in await self.client.chat.completions.create(**options):
            for piece in chunk.choices:
                text += piece.delta.content or ""
                finish = piece.finish_reason or finish
                for delta in piece.delta.tool_calls or ():
                    part = parts.setdefault(delta.index, ["", ""])
                    part[0] += delta.function.name or ""
                    part[1] += delta.function.arguments or ""
        return [(name, json.loads(given)) for name, given in parts.values()], text, finish


class Anthropic:
    """The anthropic SDK before `app`."""

    finish = "tool_use"

    def __init__(self, app: Any) -> None:
        self.client = anthropic.AsyncAnthropic(base_url="http://velo", api_key="none", http_client=over(anthropic, app))

    async def ask(self, *, stream: bool) -> Said:
        tools: list[Any] = [
            {"name": item["function"]["name"], "input_schema": item["function"]["parameters"]} for item in TOOLS
        ]
        options: dict[str, Any] = {"model": "tiny", "max_tokens": 500, "messages": HI, "tools": tools}
        if stream:
            async with self.client.messages.stream(**options) as events:
                answer = await events.get_final_message()
        else:
            answer = await self.client.messages.create(**options)
        calls = [(block.name, block.input) for block in answer.content if block.type == "tool_use"]
        text = "".join(block.text for block in answer.content if block.type == "text")
        return calls, text, answer.stop_reason


class Ollama:
    """The ollama SDK before `app`. It sends no schema of what lies inside of an object."""

    finish = None

    def __init__(self, app: Any) -> None:
        self.client = ollama.AsyncClient(host="http://velo", transport=httpx.ASGITransport(app=app))

    async def ask(self, *, stream: bool) -> Said:
        if stream:
            parts = [part async for part in await self.client.chat("tiny", messages=HI, tools=TOOLS, stream=True)]
        else:
            parts = [await self.client.chat("tiny", messages=HI, tools=TOOLS)]
        made = [call.function for part in parts for call in part.message.tool_calls or ()]
        text = "".join(part.message.content or "" for part in parts)
        return [(call.name, call.arguments) for call in made], text, None


def chunked(text: str, seed: int) -> list[str]:
    chance = random.Random(seed)
    pieces = []
    while text:
        size = chance.choice((1, 2, 3, 7, 30))
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sdk", [Openai, Anthropic, Ollama])
async def test_every_family_arrives_in_every_dialect(sdk: Any, stream: bool) -> None:
    backend = ScriptedBackend()
    client = sdk(VeloLLM(backend=backend))
    for seed, (family, write) in enumerate(FORMATS.items()):
        if sdk is Ollama and family in UNTYPED:
            continue
        lead = "" if family == "react" else "I will do both.\n\n"
        backend.words = chunked(lead + write(CALLS), seed)
        calls, text, reason = await client.ask(stream=stream)
        assert calls == CALLS, family
        assert reason == sdk.finish
        if lead:
            assert text.strip() == lead.strip(), family


@pytest.mark.parametrize("stream", [False, True])
async def test_off_is_off(stream: bool) -> None:
    raw = FORMATS["hermes"](CALLS)
    app = VeloLLM(backend=ScriptedBackend([raw]), tool_calls=False)
    assert await Openai(app).ask(stream=stream) == ([], raw, "stop")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="repair, strict or off"):
        VeloLLM(backend=ScriptedBackend(), tool_calls="fix")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "more", "place"),
    [
        ("/v1/chat/completions", {}, "error.message"),
        ("/v1/messages", {"max_tokens": 5}, "error.message"),
        ("/api/chat", {}, "error"),
    ],
)
async def test_impossible_tools_are_the_clients_fault_in_its_own_dialect(path: str, more: Any, place: str) -> None:
    parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}}
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    if path == "/v1/messages":
        tools = [{"name": "f", "input_schema": parameters}]
    async with transport(VeloLLM(backend=ScriptedBackend())) as client:
        answer = await client.post(path, json={"model": "tiny", "messages": HI, "tools": tools, **more})
    assert answer.status_code == 400
    found = answer.json()
    for key in place.split("."):
        found = found[key]
    assert "does not resolve" in found


# ---- around an app that serves /v1 itself


async def serve(request: Request) -> Response:
    body = await request.json()
    said = "<tool_call>\n{'name': 'readSensor', 'arguments': {'station': 'x', 'depth': '3'}}\n</tool_call>"
    head = {"id": "own", "created": 1, "model": "own"}
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice]})

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(len(said) + 1):
            delta = {"content": said[number]} if number < len(said) else {}
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            yield b"data: %b\n\n" % orjson.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})
        yield b"data: [DONE]\n\n"

    return StreamingResponse(chunks(), media_type="text/event-stream")


async def own(_: Request) -> Response:
    return JSONResponse({"own": True})


@pytest.mark.parametrize("stream", [False, True])
async def test_the_middleware_alone(stream: bool) -> None:
    app = Starlette(routes=[Route("/v1/chat/completions", serve, methods=["POST"]), Route("/api/chat", own)])
    wrapped = ToolCallMiddleware(app)
    assert await Openai(wrapped).ask(stream=stream) == (
        [("read_sensor", {"station": "x", "depth": 3})],
        "",
        "tool_calls",
    )
    async with transport(wrapped) as client:
        assert (await client.get("/api/chat")).json() == {"own": True}
        told = await client.post("/v1/chat/completions", json={"model": "m", "messages": HI, "tools": TOOLS})
        assert "name_variant" in told.headers["x-velollm-tool-calls"]
        off = await client.post(
            "/v1/chat/completions",
            json={"model": "m", "messages": HI, "tools": TOOLS},
            headers={"x-velollm-tool-calls": "off"},
        )
        assert off.json()["choices"][0]["message"]["content"].startswith("<tool_call>")


async def test_the_last_chunk_says_what_was_done() -> None:
    app = VeloLLM(backend=ScriptedBackend(["Now. Let me look. ", FORMATS["hermes"](CALLS)]))
    async with transport(app) as client:
        body = {"model": "tiny", "messages": HI, "tools": TOOLS, "stream": True}
        answer = await client.post("/v1/chat/completions", json=body)
    last = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")][-1]
    assert last["velollm"]["tool_calls"] == {"repaired": 2, "kinds": ["raw_text"]}
