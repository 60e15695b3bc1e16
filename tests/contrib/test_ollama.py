"""The adapter for Ollama, against a scripted one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson
import pytest
from backend_contract import BackendContract
from support.engine import ScriptedEngine

from velollm.api.ollama import Chat, Generate
from velollm.backend import HttpRequest, open_backend
from velollm.collector import Collector
from velollm.contrib.ollama import OllamaBackend
from velollm.contrib.ollama.contexts import HELD_SECONDS, Contexts
from velollm.contrib.ollama.facts import full_name, loaded_context, read_facts
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    ConfigError,
    ContextLengthExceeded,
    ModelNotFound,
    Overloaded,
    PathNotFound,
    RequestError,
    UnsupportedError,
    VeloError,
)
from velollm.messages import (
    ChatAnswer,
    ChatEvent,
    ChatRequest,
    EmbedRequest,
    ImagePart,
    Message,
    RequestContext,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)

pytestmark = pytest.mark.anyio

END = {
    "done_reason": "stop",
    "total_duration": 5_000_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 7,
    "prompt_eval_duration": 1_000_000_000,
    "eval_count": 2,
    "eval_duration": 2_000_000_000,
}
WEATHER = Tool(name="get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
SEARCH = Tool(name="search", parameters={"type": "object", "properties": {"query": {"type": "string"}}})


class Engine(ScriptedEngine):
    """An Ollama with the models `model` and `gpt`, which think, call and see, and `plain`; it answers `says`."""

    def __init__(self) -> None:
        super().__init__()
        self.says: list[dict[str, Any]] = [{"content": "Hel"}, {"content": "lo"}]
        self.loaded: list[dict[str, Any]] = []
        self.family = "qwen3"

    def lines(self, *lines: dict[str, Any] | bytes) -> httpx.Response:
        pieces = [line if isinstance(line, bytes) else orjson.dumps(line) + b"\n" for line in lines]
        return self.streamed(*pieces, kind="application/x-ndjson")

    def _generated(self, request: httpx.Request, wrap: Callable[[dict[str, Any]], dict[str, Any]]) -> httpx.Response:
        asked = orjson.loads(request.content)
        if asked["model"] not in ("model", "plain", "gpt"):
            return httpx.Response(404, json={"error": f"model '{asked['model']}' not found"})
        head = {"model": asked["model"], "created_at": "2026-01-01T00:00:00.123456789Z"}
        if asked.get("stream") is False:
            text = "".join(piece.get("content", "") for piece in self.says)
            return httpx.Response(200, json={**head, **wrap({"content": text}), "done": True, **END})
        lines = [{**head, **wrap(piece), "done": False} for piece in self.says]
        return self.lines(*lines, {**head, **wrap({"content": ""}), "done": True, **END})

    def chat(self, request: httpx.Request) -> httpx.Response:
        return self._generated(request, lambda piece: {"message": {"role": "assistant", **piece}})

    def generate(self, request: httpx.Request) -> httpx.Response:
        return self._generated(request, lambda piece: {"response": piece.get("content", "")})

    def tags(self, request: httpx.Request) -> httpx.Response:
        details = {"family": "qwen3", "parameter_size": "8B", "quantization_level": "Q4_K_M", "new": 1}
        modified = "2026-01-02T03:04:05.123456789+01:00"
        models = [
            {"name": "model:latest", "modified_at": modified, "size": 5, "digest": "abc", "details": details},
            {"name": "plain:latest", "digest": "def"},
            {"no": "name"},
        ]
        return httpx.Response(200, json={"models": models})

    def show(self, request: httpx.Request) -> httpx.Response:
        model = orjson.loads(request.content)["model"]
        if model not in ("model", "plain", "gpt"):
            return httpx.Response(404, json={"error": f"model '{model}' not found"})
        able = ["completion"] if model == "plain" else ["completion", "tools", "thinking", "vision"]
        info = {"general.architecture": "qwen3", "qwen3.context_length": 40960}
        family = "gptoss" if model == "gpt" else self.family
        return httpx.Response(200, json={"capabilities": able, "details": {"family": family}, "model_info": info})

    def ps(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"models": self.loaded})

    def version(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"version": "0.17.4"})

    def embed(self, request: httpx.Request) -> httpx.Response:
        inputs = orjson.loads(request.content)["input"]
        vectors = [[3.0, 4.0, float(number)] for number in range(len(inputs))]
        counts = {"total_duration": 10**9, "load_duration": 10**8, "prompt_eval_count": 4}
        return httpx.Response(200, json={"model": "model", "embeddings": vectors, **counts})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def backend(engine: Engine) -> AsyncIterator[OllamaBackend]:
    transport = httpx.MockTransport(engine)
    async with OllamaBackend("ollama://engine", api_key="secret", transport=transport) as backend:
        yield backend


class TestContract(BackendContract):
    @pytest.fixture(autouse=True)
    def _engine(self, engine: Engine) -> None:
        self.engine = engine

    def in_flight(self) -> int:
        return len(self.engine.busy)


class TestGenerateContract(TestContract):
    def request(self, **changes: object) -> ChatRequest:
        return super().request(messages=[], prompt="Say hello", raw=True, **changes)


class TestNativeContract(TestContract):
    """What comes from a client of Ollama goes on as it came."""

    def request(self, **changes: object) -> ChatRequest:
        payload = {"model": self.model, "messages": [{"role": "user", "content": "Say hello."}], **changes}
        return Chat().parse(payload, orjson.dumps(payload), RequestContext())


async def collect(backend: OllamaBackend, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in backend.chat(request)]


async def answer(backend: OllamaBackend, request: ChatRequest) -> ChatAnswer:
    collector = Collector()
    for event in await collect(backend, request):
        collector.add(event)
    return collector.answer()


def ask(**changes: Any) -> ChatRequest:
    return ChatRequest(**{"model": "model", "messages": [Message(role="user", content="Hi")], **changes})


def native(payload: dict[str, Any], endpoint: Any = None) -> ChatRequest:
    payload = {"model": "model", **payload}
    request: ChatRequest = (endpoint or Chat()).parse(payload, orjson.dumps(payload), RequestContext())
    return request


# ---- what is sent ----------------------------------------------------------------------------------------------------


async def test_what_every_v1_gap_becomes(backend: OllamaBackend, engine: Engine) -> None:
    request = ask(
        max_tokens=5, top_k=-1, min_p=0.1, stop=["x"], keep_alive="300", seed=3, options={"mirostat": 1},
        parallel_tool_calls=True, user="u",
    )  # fmt: skip
    await collect(backend, request)
    assert engine.asked("/api/chat") == [
        {
            "model": "model",
            "stream": True,
            "think": False,
            "messages": [{"role": "user", "content": "Hi"}],
            "options": {"mirostat": 1, "num_predict": 5, "top_k": 0, "min_p": 0.1, "seed": 3, "stop": ["x"]},
            "keep_alive": 300,
        }
    ]
    assert engine.seen[-1].headers["authorization"] == "Bearer secret"


async def test_a_client_of_ollama_is_passed_on_byte_for_byte(backend: OllamaBackend, engine: Engine) -> None:
    body = b'{"model": "model", "messages": [{"role":"user","content":"Hi"}], "options": null, "new_field": [1]}'
    request = Chat().parse(orjson.loads(body), body, RequestContext(client_headers={"traceparent": "00-1"}))
    events = await collect(backend, request)
    assert engine.seen[-1].content == body
    assert engine.seen[-1].headers["traceparent"] == "00-1"
    assert [event.wire for event in events] == ["ollama.chat"] * 3
    assert orjson.loads(events[0].raw or b"")["created_at"] == "2026-01-01T00:00:00.123456789Z"
    renamed = request.replace(model="plain")
    await collect(backend, renamed)
    assert engine.asked("/api/chat")[-1] == {**orjson.loads(body), "model": "plain"}


async def test_an_answer_in_one_piece_is_passed_back_as_it_came(backend: OllamaBackend, engine: Engine) -> None:
    (event,) = await collect(backend, native({"messages": [{"role": "user", "content": "Hi"}], "stream": False}))
    assert event.text == "Hello"
    assert orjson.loads(event.raw or b"")["total_duration"] == 5_000_000_000
    assert event.usage is not None
    assert event.usage.timings is not None
    assert (event.usage.timings.load, event.usage.timings.decode) == (1.0, 2.0)


async def test_generate(backend: OllamaBackend, engine: Engine) -> None:
    payload = {"prompt": "Hi", "system": "S", "template": "T", "context": [1], "images": ["aGk="]}
    await collect(backend, native(payload, Generate()))
    assert engine.asked("/api/generate") == [{"model": "model", **payload}]
    await collect(backend, ask(messages=[Message(role="system", content="S")], prompt="Hi", suffix="after"))
    sent = engine.asked("/api/generate")[-1]
    assert (sent["prompt"], sent["system"], sent["suffix"]) == ("Hi", "S", "after")
    assert "raw" not in sent
    echoed = await answer(backend, ask(messages=[], prompt="Once", raw=True, echo=True))
    assert echoed.choices[0].text == "OnceHello"
    with pytest.raises(UnsupportedError, match="token ids"):
        await collect(backend, ask(messages=[], prompt=[1, 2], raw=True))


async def test_messages_are_put_into_ollamas_shape(backend: OllamaBackend, engine: Engine) -> None:
    calls = [ToolCall(id="c1", name="f", arguments='{"a": 1}'), ToolCall(id="c2", name="f", arguments="{broken")]
    image = ImagePart(data="aGk=", media_type="image/png")
    messages = [
        Message(role="developer", content="Be brief"),
        Message(role="user", content=[TextPart(text="one"), image, TextPart(text="two")]),
        Message(role="assistant", content=None, tool_calls=calls, reasoning="hm"),
        Message(role="tool", content="5", tool_call_id="c1", name="f"),
    ]
    await collect(backend, ask(messages=messages))
    assert engine.asked("/api/chat")[0]["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "one\ntwo", "images": ["aGk="]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [
                {"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}},
                {"id": "c2", "function": {"name": "f", "arguments": {"__invalid_json__": "{broken"}}},
            ],
        },
        {"role": "tool", "content": "5", "tool_name": "f", "tool_call_id": "c1"},
    ]


async def test_images_are_never_fetched(backend: OllamaBackend, engine: Engine) -> None:
    remote = [ImagePart(url="http://169.254.169.254/x.png")]
    with pytest.raises(UnsupportedError, match="not fetched") as caught:
        await collect(backend, ask(messages=[Message(role="user", content=remote)]))
    assert caught.value.param == "messages[0].content[0]"
    assert engine.seen == []


@pytest.mark.parametrize("door", [Chat(), Generate()])
async def test_images_are_refused_for_a_model_that_would_not_see_them(
    backend: OllamaBackend, engine: Engine, door: Chat | Generate
) -> None:
    """An Ollama leaves them out without a word."""
    image = "iVBORw0KGgo="
    said = {"messages": [{"role": "user", "content": "x", "images": [image]}], "prompt": "x", "images": [image]}
    payload = {key: value for key, value in said.items() if (key == "messages") is (door.wire == "ollama.chat")}
    for model, sees in (("plain", False), ("model", True)):
        body = orjson.dumps({**payload, "model": model})
        request = door.parse(orjson.loads(body), body, RequestContext())
        if sees:
            assert await collect(backend, request)
            continue
        with pytest.raises(UnsupportedError, match="sees no images"):
            await collect(backend, request)
        assert engine.asked("/api/chat") == engine.asked("/api/generate") == []


async def test_logit_bias_is_refused_rather_than_ignored(backend: OllamaBackend) -> None:
    with pytest.raises(UnsupportedError):
        await collect(backend, ask(logit_bias={"1": 5}))


async def test_shapes(backend: OllamaBackend, engine: Engine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await collect(backend, ask(response_format=ResponseFormat(kind="json_schema", schema=schema)))
    await collect(backend, ask(response_format=ResponseFormat(kind="json_schema", schema={})))
    await collect(backend, ask(response_format=ResponseFormat(kind="json_object")))
    assert [sent["format"] for sent in engine.asked("/api/chat")] == [schema, "json", "json"]


async def test_go_reads_names_whatever_their_case(backend: OllamaBackend, engine: Engine) -> None:
    await collect(backend, ask(extra={"Model": "plain", "MESSAGES": [], "store": True}))
    assert engine.asked("/api/chat")[0].keys() == {"model", "stream", "think", "messages", "store"}


# ---- thinking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "think", "sent"),
    [
        ("model", None, False),
        ("model", False, False),
        ("model", True, True),
        ("model", "high", True),
        ("plain", True, False),
        ("plain", "low", False),
        ("gpt", "minimal", "low"),
        ("gpt", "xhigh", "high"),
        ("gpt", True, True),
    ],
)
async def test_thinking_only_when_asked(
    backend: OllamaBackend, engine: Engine, model: str, think: bool | str | None, sent: bool | str
) -> None:
    await collect(backend, ask(model=model, think=think))
    assert engine.asked("/api/chat")[0]["think"] == sent
    if not think:
        assert engine.asked("/api/show") == []


async def test_thoughts_come_back(backend: OllamaBackend, engine: Engine) -> None:
    engine.says = [{"content": "", "thinking": "hm "}, {"content": "", "thinking": "ok"}, {"content": "Yes"}]
    found = (await answer(backend, ask(think=True))).choices[0]
    assert (found.reasoning, found.text) == ("hm ok", "Yes")


# ---- tools -----------------------------------------------------------------------------------------------------------


def called(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}, **more}]}


async def test_tools_of_a_model_that_knows_them(backend: OllamaBackend, engine: Engine) -> None:
    engine.says = [called("get_weather", {"city": "Paris"}, id="a"), called("search", {"query": "x"})]
    found = (await answer(backend, ask(tools=[WEATHER, SEARCH]))).choices[0]
    assert found.finish_reason == "tool_calls"
    assert [(call.id, call.name, call.arguments) for call in found.tool_calls] == [
        ("a", "get_weather", '{"city":"Paris"}'),
        ("", "search", '{"query":"x"}'),
    ]
    assert [tool["function"]["name"] for tool in engine.asked("/api/chat")[0]["tools"]] == ["get_weather", "search"]


async def test_one_call_at_a_time(backend: OllamaBackend, engine: Engine) -> None:
    engine.says = [called("get_weather", {"city": "Paris"}), called("search", {"query": "x"})]
    found = (await answer(backend, ask(tools=[WEATHER, SEARCH], parallel_tool_calls=False))).choices[0]
    assert [call.name for call in found.tool_calls] == ["get_weather"]


async def test_tools_of_a_model_that_knows_none_are_told_in_words(backend: OllamaBackend, engine: Engine) -> None:
    await collect(backend, ask(model="plain", tools=[WEATHER]))
    history = [
        Message(role="assistant", tool_calls=[ToolCall(id="c", name="f", arguments="{}")]),
        Message(role="tool", content="5", tool_call_id="c"),
    ]
    await collect(backend, ask(model="plain", messages=history))
    first, second = engine.asked("/api/chat")
    assert "tools" not in first
    assert "get_weather" in first["messages"][0]["content"]
    assert [turn["role"] for turn in second["messages"]] == ["assistant", "user"]


async def test_no_tools_when_the_choice_is_none(backend: OllamaBackend, engine: Engine) -> None:
    await collect(backend, ask(tools=[WEATHER], tool_choice=ToolChoice(mode="none")))
    await collect(
        backend,
        native(
            {
                "messages": [{"role": "user", "content": "Hi"}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": "none",
            }
        ),
    )
    assert all("tools" not in sent for sent in engine.asked("/api/chat"))


@pytest.mark.parametrize("choice", [ToolChoice(mode="required"), ToolChoice(mode="named", name="get_weather")])
async def test_a_forced_call_of_one_tool(backend: OllamaBackend, engine: Engine, choice: ToolChoice) -> None:
    engine.says = [{"content": '{ "ci'}, {"content": 'ty": "Par'}, {"content": 'is"}'}]
    tools = [WEATHER] if choice.mode == "required" else [SEARCH, WEATHER]
    events = await collect(backend, ask(tools=tools, tool_choice=choice, stream=True))
    collector = Collector()
    for event in events:
        collector.add(event)
    found = collector.answer().choices[0]
    assert (found.text, found.finish_reason) == ("", "tool_calls")
    assert [(call.name, call.arguments) for call in found.tool_calls] == [("get_weather", '{"city":"Paris"}')]
    assert found.tool_calls[0].id.startswith("call_")
    assert sum(bool(event.tool_calls) for event in events) > 2, "arguments stream"
    sent = engine.asked("/api/chat")[0]
    assert sent["format"] == WEATHER.parameters
    assert "tools" not in sent
    assert all(event.raw is None for event in events)


async def test_a_forced_call_of_any_tool(backend: OllamaBackend, engine: Engine) -> None:
    engine.says = [{"content": '{"name": "sea'}, {"content": 'rch", "arguments": {"query": "x"}}'}]
    request = ask(tools=[WEATHER, SEARCH], tool_choice=ToolChoice(mode="required"))
    call = (await answer(backend, request)).choices[0].tool_calls[0]
    assert (call.name, call.arguments) == ("search", '{"query":"x"}')
    engine.says = [{"content": "I would rather not"}]
    with pytest.raises(BackendProtocolError, match="tool call"):
        await answer(backend, request)


async def test_several_choices(backend: OllamaBackend, engine: Engine) -> None:
    found = await answer(backend, ask(n=3, seed=7))
    assert [(choice.index, choice.text) for choice in found.choices] == [(0, "Hello"), (1, "Hello"), (2, "Hello")]
    assert found.complete
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (7, 6)
    assert [sent["options"]["seed"] for sent in engine.asked("/api/chat")] == [7, 8, 9]


# ---- context sizes ---------------------------------------------------------------------------------------------------


async def test_context_sizes_that_differ_do_not_reload(backend: OllamaBackend, engine: Engine) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    await collect(backend, native({"messages": messages, "options": {"num_ctx": 10687, "seed": 1}}))
    engine.loaded = [{"name": "model:latest", "context_length": 16384}]
    await collect(backend, ask(options={"num_ctx": 12000}))
    await collect(backend, ask(options={"num_ctx": 2048}))
    assert [sent["options"]["num_ctx"] for sent in engine.asked("/api/chat")] == [16384, 16384, 16384]
    assert engine.asked("/api/chat")[0]["options"]["seed"] == 1
    await backend.embed(EmbedRequest(model="model", inputs=["a"], options={"num_ctx": 100}))
    assert engine.asked("/api/embed")[0]["options"] == {"num_ctx": 16384}


def test_contexts() -> None:
    contexts = Contexts()
    assert contexts.unasked("m", 0.0) is None
    assert contexts.asked("m", 5000, 1.0, loaded=None, limit=None) == 8192
    assert contexts.unasked("m", 2.0) is None, "Ollama's default is not known, and may be larger"
    assert contexts.asked("m", 5000, 3.0, loaded=4096, limit=None) == 8192
    assert contexts.unasked("m", 4.0) == 8192, "now it is known"
    assert contexts.asked("m", 100, 5.0, loaded=8192, limit=None) == 8192
    later = 6.0 + HELD_SECONDS
    assert contexts.unasked("m", later) is None
    assert contexts.asked("m", 100, later, loaded=4096, limit=None) == 4096
    assert contexts.asked("other", 30_000, 0.0, loaded=None, limit=32_000) == 32_000
    for more in (33_000, 34_500, 36_000):  # a client whose prompt grows: Ollama would load the model each time
        assert contexts.asked("other", more, 0.0, loaded=32_000, limit=32_000) == 32_000
    assert contexts.asked("tiny", 1, 0.0, loaded=None, limit=None) == 1


def test_a_default_that_came_first_is_known() -> None:
    contexts = Contexts()
    assert contexts.unasked("m", 0.0) is None
    assert contexts.asked("m", 4097, 1.0, loaded=4096, limit=8192) == 8192
    assert contexts.unasked("m", 2.0) == 8192, "it is not loaded anew for less"


def test_a_larger_default_is_left_alone() -> None:
    contexts = Contexts()
    contexts.asked("m", 4096, 0.0, loaded=None, limit=None)
    contexts.unasked("m", 1.0)
    assert contexts.asked("m", 4096, 2.0, loaded=32768, limit=None) == 32768
    assert contexts.unasked("m", 3.0) is None


# ---- what comes back -------------------------------------------------------------------------------------------------

TOKEN = {"model": "model", "message": {"role": "assistant", "content": "a"}, "done": False}
DONE = {"model": "model", "message": {"role": "assistant", "content": ""}, "done": True, **END}


@pytest.mark.parametrize(
    "lines", [[], [TOKEN], [b"<html>\n"], [TOKEN, orjson.dumps(DONE)[:-20]], [b"[]\n", b"5\n"], [{"done": True}]]
)
async def test_broken_streams(backend: OllamaBackend, engine: Engine, lines: list[Any]) -> None:
    engine.answers["/api/chat"] = lambda request: engine.lines(*lines)
    with pytest.raises(BackendProtocolError):
        await collect(backend, ask())


@pytest.mark.parametrize("wrong", ["m", 5, None, [], {"content": 5}, {"content": None, "tool_calls": 5}])
async def test_malformed_lines_are_left_out(backend: OllamaBackend, engine: Engine, wrong: Any) -> None:
    odd = {**TOKEN, "message": wrong}
    engine.answers["/api/chat"] = lambda request: engine.lines(odd, TOKEN, odd, TOKEN, DONE)
    assert (await answer(backend, ask())).choices[0].text == "aa"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", orjson.dumps(TOKEN), b'{"message": 5, "done": true}'])
async def test_broken_answers_in_one_piece(backend: OllamaBackend, engine: Engine, body: bytes) -> None:
    engine.answers["/api/chat"] = lambda request: httpx.Response(200, content=body)
    with pytest.raises(BackendProtocolError):
        await collect(backend, native({"messages": [{"role": "user", "content": "x"}], "stream": False}))


async def test_streams_cut_anywhere(backend: OllamaBackend, engine: Engine) -> None:
    whole = b"\n".join([orjson.dumps(TOKEN), b"", b"{broken", orjson.dumps(TOKEN) + b"\r", orjson.dumps(DONE)])
    for size in (7, 50, len(whole)):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        engine.answers["/api/chat"] = lambda request, pieces=pieces: engine.lines(*pieces)
        events = await collect(backend, ask())
        assert "".join(event.text for event in events) == "aa"
        assert events[-1].finish_reason == "stop"
        assert events[0].raw == orjson.dumps(TOKEN) + b"\n"


async def test_what_comes_after_the_end_is_not_read(backend: OllamaBackend, engine: Engine) -> None:
    engine.answers["/api/chat"] = lambda request: engine.lines(TOKEN, DONE, TOKEN)
    assert len(await collect(backend, ask())) == 2


async def test_an_error_in_the_stream(backend: OllamaBackend, engine: Engine) -> None:
    engine.answers["/api/chat"] = lambda request: engine.lines(TOKEN, {"error": "an error was encountered"}, DONE)
    events = backend.chat(ask())
    assert (await anext(events)).text == "a"
    with pytest.raises(BackendRefused, match="an error was encountered"):
        await anext(events)


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (404, "model 'x' not found", ModelNotFound),
        (404, 'model "x" not found, try pulling it first', ModelNotFound),
        (400, "registry.ollama.ai/library/x:latest does not support tools", UnsupportedError),
        (400, 'think value "high" is not supported for this model', UnsupportedError),
        (400, "the input length exceeds the context length", ContextLengthExceeded),
        (503, "server busy, please try again. maximum pending requests exceeded", Overloaded),
        (500, "model requires more system memory (9 GiB) than is available (1 GiB)", BackendRefused),
        (400, "invalid options: temperature", BackendRefused),
    ],
)
async def test_refusals_say_what_they_mean(
    backend: OllamaBackend, engine: Engine, status: int, words: str, kind: type[VeloError]
) -> None:
    engine.answers["/api/chat"] = lambda request: httpx.Response(status, json={"error": words})
    with pytest.raises(kind) as caught:
        await collect(backend, ask())
    assert words in caught.value.message
    if kind is BackendRefused:
        assert caught.value.status == status


async def test_logprobs(backend: OllamaBackend, engine: Engine) -> None:
    entry = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}]}
    engine.answers["/api/chat"] = lambda request: engine.lines({**TOKEN, "logprobs": [entry]}, DONE)
    found = (await answer(backend, ask(logprobs=True, top_logprobs=1))).choices[0].logprobs
    assert found == {"content": [{**entry, "bytes": [97]}]}
    assert engine.asked("/api/chat")[0]["top_logprobs"] == 1


async def test_a_load_is_passed_on(backend: OllamaBackend, engine: Engine) -> None:
    loaded = {"model": "model", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"}
    engine.answers["/api/chat"] = lambda request: httpx.Response(200, json=loaded)
    (event,) = await collect(backend, native({"messages": [], "keep_alive": "10m"}))
    assert event.finish_reason == "stop"
    assert orjson.loads(event.raw or b"") == loaded


# ---- the rest of the protocol ----------------------------------------------------------------------------------------


async def test_models(backend: OllamaBackend, engine: Engine) -> None:
    model, plain = await backend.models()
    assert (model.id, model.size, model.digest, model.family) == ("model:latest", 5, "abc", "qwen3")
    assert (model.created, model.parameter_size, model.quantization) == (1767319445, "8B", "Q4_K_M")
    assert model.extra["ollama"]["details"]["new"] == 1
    assert (plain.id, plain.created) == ("plain:latest", 0)
    await backend.facts("model")
    assert (await backend.models())[0].context_length == 40960
    engine.answers["/api/tags"] = lambda request: httpx.Response(200, json={"models": None})
    assert await backend.models() == []
    engine.answers["/api/tags"] = lambda request: httpx.Response(200, json=["model"])
    with pytest.raises(BackendProtocolError):
        await backend.models()


async def test_a_request_without_a_model_asks_nothing_of_the_engine(backend: OllamaBackend, engine: Engine) -> None:
    for wrong in (collect(backend, ask(model="")), backend.embed(EmbedRequest(model="", inputs=["a"]))):
        with pytest.raises(RequestError, match="model is required") as caught:
            await wrong
        assert (caught.value.status, caught.value.param) == (400, "model")
    assert engine.asked("/api/chat") == engine.asked("/api/embed") == []


async def test_embeddings(backend: OllamaBackend, engine: Engine) -> None:
    result = await backend.embed(EmbedRequest(model="model", inputs=["a", "b"], truncate=False, keep_alive=60))
    assert engine.asked("/api/embed") == [{"model": "model", "input": ["a", "b"], "truncate": False, "keep_alive": 60}]
    assert (result.vectors[1], result.prompt_tokens) == ([3.0, 4.0, 1.0], 4)
    cut = await backend.embed(EmbedRequest(model="model", inputs=["a"], dimensions=2))
    assert cut.vectors == [[0.6, 0.8]]
    with pytest.raises(UnsupportedError):
        await backend.embed(EmbedRequest(model="model", inputs=[[1, 2]]))
    for bad in ({"embeddings": [[1.0]]}, {"embeddings": [["x"], [1]]}, {}, {"embeddings": [[], []]}):
        engine.answers["/api/embed"] = lambda request, bad=bad: httpx.Response(200, json=bad)
        with pytest.raises(BackendProtocolError):
            await backend.embed(EmbedRequest(model="model", inputs=["a", "b"]))


async def test_counting_tokens_reads_the_prompt(backend: OllamaBackend, engine: Engine) -> None:
    forced = ask(tools=[WEATHER], tool_choice=ToolChoice(mode="required"), n=2, max_tokens=500)
    assert await backend.count_tokens(forced) == 7
    sent = engine.asked("/api/chat")
    assert len(sent) == 1
    assert sent[0]["options"]["num_predict"] == 1
    assert sent[0]["tools"]
    with pytest.raises(UnsupportedError):
        await backend.tokenize("model", "text")


async def test_other_paths_are_passed_on(backend: OllamaBackend, engine: Engine) -> None:
    await backend.facts("model")
    await backend.facts("model")
    assert len(engine.asked("/api/show")) == 1
    engine.answers["/api/create"] = lambda request: engine.lines({"status": "reading"}, {"status": "success"})
    response = await backend.forward(HttpRequest(method="POST", target="/api/create?x=1", body=b"{}"))
    assert b"".join([piece async for piece in response.body]).endswith(b'{"status":"success"}\n')
    assert engine.seen[-1].url == "http://engine:11434/api/create?x=1"
    await backend.facts("model")
    assert len(engine.asked("/api/show")) == 2, "a model may have become another one"
    with pytest.raises(PathNotFound):
        await backend.forward(HttpRequest(method="GET", target="/metrics"))


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("ollama://h", "http://h:11434/api/version"),
        ("ollama://h:1/", "http://h:1/api/version"),
        ("ollama://", "http://localhost:11434/api/version"),
        ("ollama+https://h/llm/", "https://h/llm/api/version"),
        ("ollama+https://h/v1", "https://h/api/version"),
        ("ollama://[::1]:5", "http://[::1]:5/api/version"),
    ],
)
async def test_urls(engine: Engine, url: str, asked: str) -> None:
    await open_backend(url, transport=httpx.MockTransport(engine)).ready()
    assert engine.seen[-1].url == asked


def test_urls_that_are_none() -> None:
    for url in ("ollama://h:x", "ollama://h:99999", "ftp://h", "h"):
        with pytest.raises(ConfigError):
            OllamaBackend(url)


def test_facts_of_older_versions() -> None:
    assert read_facts({"template": "{{ .Tools }} {{ .Suffix }}"}).capabilities == ("completion", "tools", "insert")
    assert not read_facts({"template": "{{ .Tools }}"}).blind
    assert read_facts({"template": 5, "details": 5, "model_info": []}).capabilities == ("completion",)
    assert (full_name("a"), full_name("h:5/a"), full_name("a:b")) == ("a:latest", "h:5/a:latest", "a:b")
    assert loaded_context({"models": [{"name": "a:latest"}, 5]}, "a") is None
    assert loaded_context([], "a") is None
