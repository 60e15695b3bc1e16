"""The adapter for servers with an OpenAI API, against a scripted one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from backend_contract import BackendContract
from support.engine import ScriptedEngine

from velollm.api.openai import ChatCompletions
from velollm.backend import HttpRequest, Limits, open_backend
from velollm.contrib.openai import OpenAIBackend
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    BackendUnreachable,
    ConfigError,
    ContextLengthExceeded,
    ModelNotFound,
    PathNotFound,
    UnsupportedError,
)
from velollm.messages import ChatEvent, ChatRequest, EmbedRequest, Message, RequestContext, Tool, ToolChoice

pytestmark = pytest.mark.anyio

HEAD = {"id": "chatcmpl-1", "created": 1, "model": "m"}
USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}


class Engine(ScriptedEngine):
    """An OpenAI server that serves the model `model`."""

    @property
    def sent(self) -> Any:
        """The JSON of the last request."""
        return orjson.loads(self.seen[-1].content)

    def models(self, request: httpx.Request) -> httpx.Response:
        listed = {"id": "model", "object": "model", "created": 5, "owned_by": "x", "max_model_len": 4096}
        return httpx.Response(200, json={"object": "list", "data": [listed, {"id": "nomic-embed"}, {"no": "id"}]})

    def completions(self, request: httpx.Request) -> httpx.Response:
        asked = orjson.loads(request.content)
        if asked["model"] != "model":
            missing = {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}
            return httpx.Response(404, json={"error": missing})
        chat = "messages" in asked
        if asked.get("stream"):
            deltas = [
                _choice(chat, "", role="assistant"),
                _choice(chat, "Hel"),
                _choice(chat, "lo"),
                _choice(chat, "", "stop"),
            ]
            head = {"object": "chat.completion.chunk" if chat else "text_completion", **HEAD}
            chunks = [orjson.dumps({**head, "choices": [choice]}) for choice in deltas]
            chunks.append(orjson.dumps({**head, "choices": [], "usage": USAGE}))
            return self.streamed(*(b"data: %b\n\n" % chunk for chunk in [*chunks, b"[DONE]"]))
        said = {"message": {"role": "assistant", "content": "Hello"}} if chat else {"text": "Hello"}
        choice = {"index": 0, "finish_reason": "stop", **said}
        kind = "chat.completion" if chat else "text_completion"
        return httpx.Response(200, json={"object": kind, **HEAD, "choices": [choice], "usage": USAGE})

    def embeddings(self, request: httpx.Request) -> httpx.Response:
        inputs = orjson.loads(request.content)["input"]
        data = [{"index": number, "embedding": [float(number)]} for number in range(len(inputs))]
        return httpx.Response(200, json={"data": data, "model": "e", "usage": {"prompt_tokens": 3}})

    def tokenize(self, request: httpx.Request) -> httpx.Response:
        tokens = [1, 2] if "messages" in orjson.loads(request.content) else [1, 2, 3]
        return httpx.Response(200, json={"tokens": tokens, "count": len(tokens), "max_model_len": 9})

    def detokenize(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"prompt": "abc"})


def _choice(chat: bool, text: str, finish: str | None = None, **delta: str) -> dict[str, Any]:
    said = {"delta": {**delta, "content": text} if text or delta else {}} if chat else {"text": text}
    return {"index": 0, "finish_reason": finish, **said}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def backend(engine: Engine) -> AsyncIterator[OpenAIBackend]:
    url = "openai+http://engine:8000/v1"
    async with OpenAIBackend(url, api_key="secret", transport=httpx.MockTransport(engine)) as backend:
        yield backend


class TestContract(BackendContract):
    @pytest.fixture(autouse=True)
    def _engine(self, engine: Engine) -> None:
        self.engine = engine

    def in_flight(self) -> int:
        return len(self.engine.busy)


class TestCompletionsContract(TestContract):
    def request(self, **changes: object) -> ChatRequest:
        return super().request(messages=[], prompt="Say hello", raw=True, **changes)


async def collect(backend: OpenAIBackend, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in backend.chat(request)]


def ask(**changes: Any) -> ChatRequest:
    return ChatRequest(**{"model": "model", "messages": [Message(role="user", content="Hi")], **changes})


async def test_what_is_sent(backend: OpenAIBackend, engine: Engine) -> None:
    body = b'{"model":"model","messages":[{"role":"user","content":"Hi"}],"guided":1}'
    context = RequestContext(client_headers={"traceparent": "00-1-2-03", "authorization": "Bearer client"})
    request = ChatCompletions().parse(orjson.loads(body), body, context)
    events = await collect(backend, request)
    sent = engine.seen[-1]
    assert sent.url == "http://engine:8000/v1/chat/completions"
    assert sent.content == body
    assert sent.headers["authorization"] == "Bearer secret"
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["traceparent"] == "00-1-2-03"
    assert events[0].wire == "openai.chat"
    assert orjson.loads(events[0].raw or b"")["id"] == "chatcmpl-1"


async def test_usage_is_always_asked_for(backend: OpenAIBackend, engine: Engine) -> None:
    await collect(backend, ask(stream=True))
    assert engine.sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("url", ["openai+http://h:1", "openai+http://h:1/", "openai+http://h:1/v1/", "http://h:1/v1"])
async def test_urls(engine: Engine, url: str) -> None:
    await OpenAIBackend(url, transport=httpx.MockTransport(engine)).models()
    assert engine.seen[-1].url == "http://h:1/v1/models"
    assert "authorization" not in engine.seen[-1].headers


async def test_a_path_of_its_own(engine: Engine) -> None:
    backend = open_backend("openai+https://h/api/v3", transport=httpx.MockTransport(engine))
    await backend.models()
    assert engine.seen[-1].url == "https://h/api/v3/models"
    await (await backend.forward(HttpRequest(method="GET", target="/v1/models?a=b"))).body.aclose()
    assert engine.seen[-1].url == "https://h/api/v3/models?a=b"


def test_urls_that_are_none() -> None:
    for url in ("openai+ftp://h", "openai+http://", "h:1"):
        with pytest.raises(ConfigError):
            OpenAIBackend(url)


async def test_models(backend: OpenAIBackend) -> None:
    first, second = await backend.models()
    assert (first.id, first.created, first.owned_by, first.context_length) == ("model", 5, "x", 4096)
    assert first.capabilities == ["completion", "tools"]
    assert second.capabilities == ["embedding"]


async def test_malformed_list_of_models(backend: OpenAIBackend, engine: Engine) -> None:
    engine.answers["/v1/models"] = lambda request: httpx.Response(200, json=["model"])
    with pytest.raises(BackendProtocolError):
        await backend.models()


async def test_embeddings(backend: OpenAIBackend, engine: Engine) -> None:
    result = await backend.embed(EmbedRequest(model="e", inputs=["a", [1, 2]], dimensions=5))
    assert engine.sent == {"model": "e", "input": ["a", [1, 2]], "encoding_format": "float", "dimensions": 5}
    assert (result.vectors, result.prompt_tokens) == ([[0.0], [1.0]], 3)


async def test_no_input_has_no_vector_and_asks_nothing(backend: OpenAIBackend, engine: Engine) -> None:
    assert (await backend.embed(EmbedRequest(model="e", inputs=[]))).vectors == []
    assert not engine.seen


async def test_tokens(backend: OpenAIBackend, engine: Engine) -> None:
    assert await backend.tokenize("m", "text") == [1, 2, 3]
    assert engine.seen[-1].url == "http://engine:8000/tokenize"
    assert await backend.detokenize("m", [1]) == "abc"
    assert await backend.count_tokens(ask()) == 2
    engine.answers["/tokenize"] = lambda request: httpx.Response(404, json={"error": "no"})
    with pytest.raises(UnsupportedError):
        await backend.tokenize("m", "text")
    engine.answers["/tokenize"] = lambda request: httpx.Response(200, json={"tokens": []})
    with pytest.raises(UnsupportedError):
        await backend.count_tokens(ask())


async def test_forwards_only_its_own_paths(backend: OpenAIBackend, engine: Engine) -> None:
    engine.answers["/v1/rerank"] = lambda request: httpx.Response(201, json={"ok": 1}, headers={"x-a": "b"})
    response = await backend.forward(HttpRequest(method="POST", target="/v1/rerank?x=1", body=b"{}"))
    assert response.status == 201
    assert b"".join([piece async for piece in response.body]) == b'{"ok":1}'
    assert engine.seen[-1].url == "http://engine:8000/v1/rerank?x=1"
    with pytest.raises(PathNotFound):
        await backend.forward(HttpRequest(method="POST", target="/api/chat"))


async def test_refusals_say_what_they_mean(backend: OpenAIBackend, engine: Engine) -> None:
    with pytest.raises(ModelNotFound):
        await collect(backend, ask(model="x"))
    for body in (
        {"error": {"message": "This model's maximum context length is 10 tokens", "code": 400}},
        {"error": {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"}},
    ):
        engine.answers["/v1/chat/completions"] = lambda request, body=body: httpx.Response(400, json=body)
        with pytest.raises(ContextLengthExceeded):
            await collect(backend, ask())
    engine.answers["/v1/chat/completions"] = lambda request: httpx.Response(
        429, json={"error": {"message": "slow down"}}
    )
    with pytest.raises(BackendRefused) as caught:
        await collect(backend, ask())
    assert caught.value.status == 429


async def test_an_answer_in_one_piece_instead_of_a_stream(backend: OpenAIBackend, engine: Engine) -> None:
    said = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    engine.answers["/v1/chat/completions"] = lambda request: httpx.Response(200, json={"choices": [said]})
    events = await collect(backend, ask(stream=True))
    assert [(event.text, event.raw) for event in events] == [("Hello", None)]
    engine.answers["/v1/chat/completions"] = lambda request: httpx.Response(200, json={"error": {"message": "boom"}})
    with pytest.raises(BackendRefused, match="boom"):
        await collect(backend, ask(stream=True))


CHUNK = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[%b]}\n\n'
START = CHUNK % b'{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}'
STOP = CHUNK % b'{"index":0,"delta":{},"finish_reason":"stop"}'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "pieces", [[], [b""], [START], [START, STOP], [START, DONE], [DONE], [b"<html></html>"], [START, STOP[:-20]]]
)
async def test_broken_streams(backend: OpenAIBackend, engine: Engine, pieces: list[bytes]) -> None:
    engine.answers["/v1/chat/completions"] = lambda request: engine.streamed(*pieces)
    with pytest.raises(BackendProtocolError):
        await collect(backend, ask(stream=True))


async def test_streams_cut_anywhere(backend: OpenAIBackend, engine: Engine) -> None:
    whole = b": hello\r\n\r\nid: 1\r\ndata:" + START[6:-2] + b"\r\n\r\n" + b"data: {broken\n\n" + STOP + DONE + START
    for size in (7, 50, len(whole)):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        engine.answers["/v1/chat/completions"] = lambda request, pieces=pieces: engine.streamed(*pieces)
        events = await collect(backend, ask(stream=True))
        assert "".join(event.text for event in events) == "a"
        assert events[0].raw == START


async def test_an_error_in_the_stream(backend: OpenAIBackend, engine: Engine) -> None:
    failure = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
    engine.answers["/v1/chat/completions"] = lambda request: engine.streamed(START, failure, DONE)
    events = backend.chat(ask(stream=True))
    assert (await anext(events)).text == "a"
    with pytest.raises(BackendRefused, match="out of memory"):
        await anext(events)


async def test_nobody_there() -> None:
    backend = OpenAIBackend("openai+http://127.0.0.1:9/v1", limits=Limits(connect=0.5))
    with pytest.raises(BackendUnreachable):
        await collect(backend, ask())
    await backend.aclose()


async def test_a_tool_call_that_is_demanded_is_insisted_on(backend: OpenAIBackend, engine: Engine) -> None:
    """llama-server takes a named tool for `auto`, and with a template that knows no tools any choice."""

    def completions(request: httpx.Request) -> httpx.Response:
        text = '{"city": "Paris"}' if "response_format" in orjson.loads(request.content) else "Hello"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return httpx.Response(200, json={"object": "chat.completion", **HEAD, "choices": [choice], "usage": USAGE})

    engine.answers["/v1/chat/completions"] = completions
    request = ask(tools=[Tool(name="weather")], tool_choice=ToolChoice(mode="required"))
    events = [event async for event in backend.chat(request)]
    assert [delta.name for event in events for delta in event.tool_calls if delta.name] == ["weather"]
    assert engine.sent["response_format"]["json_schema"]["name"] == "call"


@pytest.mark.parametrize("word", ["stop_reason", "matched_stop"])
@pytest.mark.parametrize("stream", [True, False])
async def test_which_stop_string_ended_an_answer(
    backend: OpenAIBackend, engine: Engine, word: str, stream: bool
) -> None:
    """vLLM and SGLang say it, and Anthropic's clients want to know."""
    said = {"delta" if stream else "message": {"role": "assistant", "content": "Hel"}}
    body = {**HEAD, "choices": [{"index": 0, "finish_reason": "stop", **said, word: "lo"}]}
    frames = (b"data: %b\n\n" % orjson.dumps({"object": "chat.completion.chunk", **body}), b"data: [DONE]\n\n")
    engine.answers["/v1/chat/completions"] = lambda request: (
        engine.streamed(*frames) if stream else httpx.Response(200, json={"object": "chat.completion", **body})
    )
    events = [event async for event in backend.chat(ask(stream=stream))]
    assert [event.stop_sequence for event in events if event.finish_reason] == ["lo"]
