"""The adapter for llama-server, against a scripted one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from backend_contract import BackendContract
from support.engine import ScriptedEngine

from velollm.api.openai import ChatCompletions, Completions
from velollm.backend import open_backend
from velollm.collector import Collector
from velollm.contrib.llamacpp import LlamaServerBackend
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    BackendUnreachable,
    ConfigError,
    ContextLengthExceeded,
    Overloaded,
    RequestError,
    UnsupportedError,
    VeloError,
)
from velollm.messages import (
    ChatAnswer,
    ChatEvent,
    ChatRequest,
    EmbedRequest,
    Message,
    RequestContext,
    Tool,
    ToolCall,
    ToolChoice,
)

pytestmark = pytest.mark.anyio

WEATHER = Tool(
    name="get_weather",
    description="Weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
NUMBER = Tool(
    name="pick",
    parameters={"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}},
)
REQUIRED = ToolChoice(mode="required")
HEAD = {"id": "c", "created": 1, "model": "m"}
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 4},
}
TIMINGS = {"cache_n": 4, "prompt_n": 1, "prompt_ms": 20.0, "predicted_n": 3, "predicted_ms": 60.0}


class Engine(ScriptedEngine):
    """A llama-server that says `words`; `caps` are those of its template."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ["Hel", "lo"]
        self.finish = "stop"
        self.caps: dict[str, Any] | None = {"supports_tools": True}
        self.answers["/slots/0"] = lambda request: httpx.Response(501, json={"error": "no --slot-save-path"})

    @property
    def sent(self) -> Any:
        """The JSON of the last generation."""
        return next(orjson.loads(seen.content) for seen in reversed(self.seen) if "completions" in seen.url.path)

    def props(self, request: httpx.Request) -> httpx.Response:
        settings = {"n_ctx": 8192}
        known = {"default_generation_settings": settings, "total_slots": 4, "modalities": {"vision": True}}
        caps = {} if self.caps is None else {"chat_template_caps": self.caps}
        return httpx.Response(200, json={**known, **caps, "chat_template": "{{ messages }}"})

    def health(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"status": "ok"})

    def models(self, request: httpx.Request) -> httpx.Response:
        meta = {"n_ctx": 8192, "n_ctx_train": 32768, "n_params": 134_515_008, "size": 96_576_768, "ftype": "Q4_1"}
        listed = {"id": "/srv/models/small.gguf", "created": 5, "owned_by": "llamacpp", "meta": meta}
        return httpx.Response(200, json={"object": "list", "data": [listed, {"id": "org/other:Q4"}, {"no": "id"}]})

    def completions(self, request: httpx.Request) -> httpx.Response:
        asked = orjson.loads(request.content)
        chat = "messages" in asked
        if asked.get("stream") and asked.get("tools") and asked.get("logprobs"):
            error = {"code": 400, "message": "logprobs is not supported with tools + stream"}
            return httpx.Response(400, json={"error": error})
        if not asked.get("stream"):
            text = "".join(self.words)
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice = {"index": 0, "finish_reason": self.finish, **said}
            if asked.get("logprobs"):
                tops = [{"token": "Hello", "logprob": -0.5}] * (
                    asked.get("top_logprobs", 20) if chat else asked["logprobs"]
                )
                if tops:
                    choice["logprobs"] = {"content": [{"token": "Hello", "logprob": -0.5, "top_logprobs": tops}]}
            head = {"object": "chat.completion" if chat else "text_completion", **HEAD}
            return httpx.Response(200, json={**head, "choices": [choice], "usage": USAGE, "timings": TIMINGS})
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
        deltas += [{"content": word} for word in self.words]
        chunks = [{"index": 0, "finish_reason": None, "delta": delta} for delta in deltas]
        chunks.append({"index": 0, "finish_reason": self.finish, "delta": {}})
        head = {"object": "chat.completion.chunk", **HEAD}
        frames = [orjson.dumps({**head, "choices": [chunk]}) for chunk in chunks]
        frames.append(orjson.dumps({**head, "choices": [], "usage": USAGE, "timings": TIMINGS}))
        return self.streamed(*(b"data: %b\n\n" % frame for frame in [*frames, b"[DONE]"]))

    def embeddings(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 1}})

    def apply_template(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"prompt": "<prompt>"})

    def tokenize(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"tokens": [1, 2, 3]})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def backend(engine: Engine) -> AsyncIterator[LlamaServerBackend]:
    made = open_backend("llamacpp://engine:8080", api_key="secret", transport=httpx.MockTransport(engine))
    assert isinstance(made, LlamaServerBackend)
    async with made:
        yield made


class TestContract(BackendContract):
    unknown_model = None  # it serves its one model under any name

    @pytest.fixture(autouse=True)
    def _engine(self, engine: Engine) -> None:
        self.engine = engine

    def in_flight(self) -> int:
        return len(self.engine.busy)


class TestContractWithTools(TestContract):
    """The same by the longer way."""

    def request(self, **changes: object) -> ChatRequest:
        return super().request(tools=[WEATHER], **changes)


async def collect(backend: LlamaServerBackend, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in backend.chat(request)]


async def answer(backend: LlamaServerBackend, request: ChatRequest) -> ChatAnswer:
    collector = Collector()
    for event in await collect(backend, request):
        collector.add(event)
    return collector.answer()


def ask(**changes: Any) -> ChatRequest:
    return ChatRequest(**{"model": "m", "messages": [Message(role="user", content="Hi")], **changes})


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("llamacpp://h:1", "http://h:1/v1"),
        ("llamacpp://h", "http://h:8080/v1"),
        ("llamacpp://h:1/api/", "http://h:1/api/v1"),
        ("http://h:1/v1", "http://h:1/v1"),
        ("https://h", "https://h/v1"),
        ("llamacpp://[::1]:9931", "http://[::1]:9931/v1"),
    ],
)
async def test_urls(engine: Engine, url: str, base: str) -> None:
    await LlamaServerBackend(url, transport=httpx.MockTransport(engine)).models()
    assert engine.seen[-1].url == f"{base}/models"
    assert engine.seen[0].url == f"{base.removesuffix('/v1')}/props"


def test_urls_that_are_none() -> None:
    for url in ("h:1", "llamacpp://", "ftp://h", "llamacpp://h:x"):
        with pytest.raises(ConfigError):
            LlamaServerBackend(url)


# ---- what goes straight through --------------------------------------------------------------------------------------


async def test_the_common_case_is_left_alone(backend: LlamaServerBackend, engine: Engine) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"id_slot":2,"cache_prompt":true}'
    events = await collect(backend, ChatCompletions().parse(orjson.loads(body), body, RequestContext()))
    assert [request.content for request in engine.seen] == [body]
    assert engine.seen[0].headers["authorization"] == "Bearer secret"
    assert events[0].wire == "openai.chat"
    usage = events[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (5, 3, 4)
    assert usage.timings is not None
    assert (usage.timings.prefill, usage.timings.decode) == (0.02, 0.06)


async def test_optional_tools_are_left_to_a_template_that_knows_them(
    backend: LlamaServerBackend, engine: Engine
) -> None:
    payload = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
    }
    body = orjson.dumps(payload)
    events = await collect(backend, ChatCompletions().parse(payload, body, RequestContext()))
    assert engine.seen[-1].content == body
    assert events[0].raw is not None
    await collect(backend, ChatCompletions().parse(payload, body, RequestContext()))
    assert len(engine.asked("/props")) == 1


# ---- forced calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("choice", [REQUIRED, ToolChoice(mode="named", name="get_weather")])
async def test_one_tool(backend: LlamaServerBackend, engine: Engine, stream: bool, choice: ToolChoice) -> None:
    engine.words = ["{\n\t\t", '"city"', ' : "Pa', 'ris, \\"', 'F" ', "}"]
    got = await answer(backend, ask(tools=[WEATHER], tool_choice=choice, stream=stream))
    assert engine.sent["json_schema"] == WEATHER.parameters
    assert "tool_choice" not in engine.sent
    assert engine.sent["tools"][0]["function"]["name"] == "get_weather"
    (made,) = got.choices
    assert (made.text, made.finish_reason) == ("", "tool_calls")
    (call,) = made.tool_calls
    assert (call.name, call.arguments) == ("get_weather", '{"city":"Paris, \\"F"}')
    assert call.id.startswith("call_")
    assert got.usage is not None
    assert got.usage.cached_tokens == 4


async def test_arguments_stream(backend: LlamaServerBackend, engine: Engine) -> None:
    engine.words = ['{"city":', '"Paris"', "}"]
    events = await collect(backend, ask(tools=[WEATHER], tool_choice=REQUIRED, stream=True))
    deltas = [delta for event in events for delta in event.tool_calls]
    assert [delta.name for delta in deltas] == ["get_weather", None, None, None]
    assert [delta.arguments for delta in deltas] == ["", '{"city":', '"Paris"', "}"]
    assert all(event.raw is None for event in events)


@pytest.mark.parametrize("stream", [True, False])
async def test_one_of_several(backend: LlamaServerBackend, engine: Engine, stream: bool) -> None:
    engine.words = list('{ "name": "pick",\n "arguments": {"n": [1, {"a": "}"}]} }\n')
    got = await answer(backend, ask(tools=[WEATHER, NUMBER], tool_choice=REQUIRED, stream=stream))
    schema = engine.sent["json_schema"]
    assert [call["properties"]["name"]["const"] for call in schema["anyOf"]] == ["get_weather", "pick"]
    assert schema["anyOf"][1]["properties"]["arguments"] == {"$ref": "#/$defs/tool1"}
    assert schema["$defs"]["tool1"]["properties"]["n"] == {"$ref": "#/$defs/tool1/$defs/n"}
    (call,) = got.choices[0].tool_calls
    assert (call.name, call.arguments) == ("pick", '{"n":[1,{"a":"}"}]}')


async def test_a_named_one_of_several(backend: LlamaServerBackend, engine: Engine) -> None:
    engine.words = ['{"n":1}']
    got = await answer(backend, ask(tools=[WEATHER, NUMBER], tool_choice=ToolChoice(mode="named", name="pick")))
    assert engine.sent["json_schema"] == NUMBER.parameters
    assert got.choices[0].tool_calls[0].name == "pick"
    with pytest.raises(RequestError, match="'none'"):
        await answer(backend, ask(tools=[WEATHER], tool_choice=ToolChoice(mode="named", name="none")))


async def test_a_call_cut_short(backend: LlamaServerBackend, engine: Engine) -> None:
    engine.finish = "length"
    engine.words = ['{"city": "Par']
    got = await answer(backend, ask(tools=[WEATHER], tool_choice=REQUIRED))
    assert got.choices[0].finish_reason == "length"
    assert got.choices[0].tool_calls[0].arguments == '{"city":"Par'
    for words in ([], ['{"na']):
        engine.words = words
        got = await answer(backend, ask(tools=[WEATHER, NUMBER], tool_choice=REQUIRED))
        assert (got.choices[0].finish_reason, got.choices[0].tool_calls) == ("length", [])


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([WEATHER], ["I cannot"]),
        ([WEATHER], []),
        ([WEATHER, NUMBER], ["I cannot"]),
        ([WEATHER, NUMBER], []),
        ([WEATHER, NUMBER], ["{" + " " * 5000]),
    ],
)
async def test_prose_in_place_of_a_call(
    backend: LlamaServerBackend, engine: Engine, tools: list[Tool], words: list[str]
) -> None:
    engine.words = words
    with pytest.raises(BackendProtocolError, match="something else"):
        await answer(backend, ask(tools=tools, tool_choice=REQUIRED, stream=True))


async def test_several_choices(backend: LlamaServerBackend, engine: Engine) -> None:
    choices = [
        {
            "index": number,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": f'{{"city":"{number}"}}'},
        }
        for number in range(2)
    ]
    engine.answers["/v1/chat/completions"] = lambda request: httpx.Response(200, json={"choices": choices})
    got = await answer(backend, ask(tools=[WEATHER], tool_choice=REQUIRED, n=2))
    assert [choice.tool_calls[0].arguments for choice in got.choices] == ['{"city":"0"}', '{"city":"1"}']
    assert len({choice.tool_calls[0].id for choice in got.choices}) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_more_choices_than_slots(backend: LlamaServerBackend, engine: Engine, stream: bool) -> None:
    def some(request: httpx.Request) -> httpx.Response:
        asked = orjson.loads(request.content)
        message = {"role": "assistant", "content": str(asked["seed"])}
        made = [{"index": at, "finish_reason": "stop", "message": message} for at in range(asked.get("n", 1))]
        return httpx.Response(200, json={"object": "chat.completion", **HEAD, "choices": made, "usage": USAGE})

    engine.answers["/v1/chat/completions"] = some
    got = await answer(backend, ask(n=10, seed=7, stream=stream))
    assert [choice.index for choice in got.choices] == list(range(10))
    assert [choice.text for choice in got.choices] == ["7"] * 4 + ["11"] * 4 + ["15"] * 2
    assert [asked.get("n", 1) for asked in engine.asked("/v1/chat/completions")] == [4, 4, 2]
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (5, 9)
    events = await collect(backend, ask(n=4, seed=7))
    assert events[0].raw is not None


async def test_calls_that_the_engine_makes_itself(backend: LlamaServerBackend, engine: Engine) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    engine.answers["/v1/chat/completions"] = lambda request: httpx.Response(200, json={"choices": [choice]})
    got = await answer(backend, ask(tools=[WEATHER], tool_choice=REQUIRED))
    assert got.choices[0].tool_calls == [ToolCall(id="x", name="get_weather", arguments="{}")]


@pytest.mark.parametrize("parameters", [None, {}, {"properties": {}}])
async def test_parameters_that_say_little(
    backend: LlamaServerBackend, engine: Engine, parameters: dict[str, Any] | None
) -> None:
    engine.words = ["{}"]
    await answer(backend, ask(tools=[Tool(name="f", parameters=parameters)], tool_choice=REQUIRED))
    assert engine.sent["json_schema"] == {"type": "object", **(parameters or {})}


async def test_parameters_nested_too_deeply(backend: LlamaServerBackend) -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="too deeply"):
        await answer(backend, ask(tools=[WEATHER, Tool(name="f", parameters=deep)], tool_choice=REQUIRED))


# ---- templates without tools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("caps", [{"supports_tools": False}, None])
async def test_tools_in_words(backend: LlamaServerBackend, engine: Engine, caps: dict[str, Any] | None) -> None:
    engine.caps = caps  # without, its template speaks for itself: it does not mention tools
    call = ToolCall(id="1", name="get_weather", arguments='{"city":"Paris"}')
    history = [
        Message(role="system", content="Be kind."),
        Message(role="user", content="Weather?"),
        Message(role="assistant", content="Wait.", tool_calls=[call]),
        Message(role="tool", tool_call_id="1", content="sunny"),
    ]
    await answer(backend, ask(messages=history, tools=[WEATHER]))
    sent = engine.sent
    assert not {"tools", "tool_choice"} & sent.keys()
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "user"]
    system, _, told, result = (message["content"] for message in sent["messages"])
    assert system.startswith("Be kind.\n\n")
    assert '"name":"get_weather"' in system
    assert "<tool_call>" in system
    assert told == 'Wait.\n<tool_call>\n{"name":"get_weather","arguments":{"city":"Paris"}}\n</tool_call>'
    assert result == "<tool_response>\nsunny\n</tool_response>"


async def test_forced_calls_in_words(backend: LlamaServerBackend, engine: Engine) -> None:
    engine.caps = {"supports_tools": False}
    engine.words = ['{"n": 3}']
    named = ToolChoice(mode="named", name="pick")
    await answer(backend, ask(tools=[WEATHER, NUMBER], tool_choice=named))
    assert engine.sent["json_schema"] == NUMBER.parameters
    (system, _) = engine.sent["messages"]
    assert "pick" in system["content"]
    assert "get_weather" not in system["content"]
    engine.words = ['{"name": "pick", "arguments": {"n": 3}}']
    got = await answer(backend, ask(tools=[WEATHER, NUMBER], tool_choice=REQUIRED))
    assert "get_weather" in engine.sent["messages"][0]["content"]
    assert got.choices[0].tool_calls[0].arguments == '{"n":3}'


async def test_tools_that_must_not_be_used(backend: LlamaServerBackend, engine: Engine) -> None:
    engine.caps = {"supports_tools": False}
    await answer(backend, ask(tools=[WEATHER], tool_choice=ToolChoice(mode="none")))
    assert [message["role"] for message in engine.sent["messages"]] == ["user"]


async def test_history_alone(backend: LlamaServerBackend, engine: Engine) -> None:
    engine.caps = {"supports_tools": False}
    call = ToolCall(id="1", name="f", arguments="not json")
    await answer(
        backend, ask(messages=[Message(role="assistant", tool_calls=[call]), Message(role="user", content="x")])
    )
    assert engine.sent["messages"][0]["content"] == '<tool_call>\n{"name":"f","arguments":"not json"}\n</tool_call>'


async def test_a_server_without_properties(backend: LlamaServerBackend, engine: Engine) -> None:
    engine.answers["/props"] = lambda request: httpx.Response(404, json={"error": {"message": "not found"}})
    await answer(backend, ask(tools=[WEATHER]))
    assert engine.sent["tools"]


# ---- the other gaps --------------------------------------------------------------------------------------------------


async def test_log_probabilities_beside_tools(backend: LlamaServerBackend, engine: Engine) -> None:
    events = await collect(backend, ask(tools=[WEATHER], logprobs=True, stream=True))
    assert "stream" not in engine.sent
    (event,) = events
    assert (event.text, event.raw, event.wire) == ("Hello", None, None)
    assert event.logprobs == {"content": [{"token": "Hello", "logprob": -0.5, "top_logprobs": []}]}
    await collect(backend, ask(logprobs=True, stream=True))
    assert engine.sent["stream"] is True


@pytest.mark.parametrize("asked", [None, 0])
async def test_log_probabilities_alone(backend: LlamaServerBackend, engine: Engine, asked: int | None) -> None:
    """With 0 alternatives llama-server sends none at all, and unasked it sends 20."""
    (event,) = await collect(backend, ask(logprobs=True, top_logprobs=asked))
    assert event.logprobs == {"content": [{"token": "Hello", "logprob": -0.5, "top_logprobs": []}]}
    assert (event.raw, engine.sent["top_logprobs"]) == (None, 1)
    payload = {"model": "m", "messages": [{"role": "user", "content": "x"}], "logprobs": False, "top_logprobs": 0}
    request = ChatCompletions().parse(payload, orjson.dumps(payload), RequestContext())
    await collect(backend, request)
    assert "top_logprobs" not in engine.sent


async def test_log_probabilities_of_completions_come_in_another_shape(
    backend: LlamaServerBackend, engine: Engine
) -> None:
    payload = {"model": "m", "prompt": "Hi", "logprobs": 1}
    request = Completions().parse(payload, orjson.dumps(payload), RequestContext())
    (event,) = await collect(backend, request)
    assert event.raw is None
    top = {"token": "Hello", "logprob": -0.5}
    assert event.logprobs == {"content": [{**top, "top_logprobs": [top]}]}


@pytest.mark.parametrize("field", ["suffix", "echo"])
async def test_what_it_would_ignore(backend: LlamaServerBackend, engine: Engine, field: str) -> None:
    value: Any = {"suffix": "x", "echo": True}[field]
    with pytest.raises(UnsupportedError) as caught:
        await collect(backend, ChatRequest(prompt="Hi", raw=True, **{field: value}))
    assert caught.value.param == field
    assert engine.seen == []


@pytest.mark.parametrize(
    ("status", "message", "kind", "code"),
    [
        (400, "request (9031 tokens) exceeds the available context size (8192 tokens), try increasing it",
         ContextLengthExceeded, "context_length_exceeded"),
        (500, "Context size has been exceeded.", Overloaded, "queue_full"),
        (500, "input (3001 tokens) is too large to process. increase the physical batch size", ContextLengthExceeded,
         "context_length_exceeded"),
        (503, "Loading model", Overloaded, "model_loading"),
        (501, "This server does not support embeddings. Start it with `--embeddings`", UnsupportedError, "unsupported"),
        (500, "image input is not supported - hint: provide the mmproj", UnsupportedError, "unsupported"),
        (500, "boom", BackendRefused, "backend_error"),
    ],
)  # fmt: skip
async def test_what_its_errors_mean(
    backend: LlamaServerBackend, engine: Engine, status: int, message: str, kind: type[VeloError], code: str
) -> None:
    error = {"error": {"code": status, "message": message, "type": "server_error"}}
    engine.answers["/v1/chat/completions"] = lambda request: httpx.Response(status, json=error)
    for request in (ask(), ask(tools=[WEATHER])):
        with pytest.raises(VeloError) as caught:
            await collect(backend, request)
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert (caught.value.retry_after is not None) == (kind is Overloaded)


async def test_ready(backend: LlamaServerBackend, engine: Engine) -> None:
    await backend.ready()
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    engine.answers["/health"] = lambda request: httpx.Response(503, json=loading)
    with pytest.raises(BackendUnreachable, match="loading"):
        await backend.ready()
    engine.answers["/props"] = engine.answers["/health"]
    with pytest.raises(Overloaded):
        await collect(backend, ask(tools=[WEATHER]))


async def test_models(backend: LlamaServerBackend, engine: Engine) -> None:
    first, second = await backend.models()
    assert (first.id, first.size, first.parameter_size, first.quantization) == (
        "small.gguf",
        96_576_768,
        "135M",
        "Q4_1",
    )
    assert first.context_length == 8192
    assert first.capabilities == ["completion", "tools", "vision"]
    assert second.id == "org/other:Q4"
    engine.answers["/v1/models"] = lambda request: httpx.Response(200, json={"data": None})
    with pytest.raises(BackendProtocolError):
        await backend.models()


async def test_properties(backend: LlamaServerBackend, engine: Engine) -> None:
    known = await backend.properties()
    assert (known.context, known.slots, known.template_tools, known.vision, known.audio) == (8192, 4, True, True, False)
    fresh = LlamaServerBackend("llamacpp://h:1", transport=httpx.MockTransport(engine))
    engine.answers["/props"] = lambda request: httpx.Response(200, json=["odd"])
    assert (await fresh.properties()).template_tools


async def test_counting(backend: LlamaServerBackend, engine: Engine) -> None:
    assert await backend.count_tokens(ask(tools=[WEATHER])) == 3
    (template,) = engine.asked("/apply-template")
    assert template["tools"]
    assert engine.asked("/tokenize")[-1]["content"] == "<prompt>"
    assert await backend.count_tokens(ChatRequest(prompt="text", raw=True)) == 3
    assert engine.asked("/tokenize")[-1]["content"] == "text"
    assert await backend.count_tokens(ChatRequest(prompt=[1, 2], raw=True)) == 2
    engine.answers["/apply-template"] = lambda request: httpx.Response(404, json={})
    with pytest.raises(UnsupportedError):
        await backend.count_tokens(ask())
    engine.answers["/apply-template"] = lambda request: httpx.Response(200, json={})
    with pytest.raises(BackendProtocolError):
        await backend.count_tokens(ask())


async def test_embeddings(backend: LlamaServerBackend) -> None:
    assert (await backend.embed(EmbedRequest(inputs=["a"]))).vectors == [[0.5]]


async def test_a_given_beginning_is_not_repeated(backend: LlamaServerBackend, engine: Engine) -> None:
    """llama-server repeats it in whole answers, and leaves it out of streams."""
    turns = [Message(role="user", content="Hi"), Message(role="assistant", content="Good ")]
    engine.words = ["Good ", "day"]
    assert (await answer(backend, ask(messages=turns))).choices[0].text == "day"
    engine.words = ["day"]
    assert (await answer(backend, ask(messages=turns))).choices[0].text == "day"
    assert (await answer(backend, ask(messages=turns, stream=True))).choices[0].text == "day"
    engine.words = ["Good ", "day"]
    assert (await answer(backend, ask())).choices[0].text == "Good day"


async def test_vectors_have_the_dimensions_that_were_asked_for(backend: LlamaServerBackend, engine: Engine) -> None:
    engine.answers["/v1/embeddings"] = lambda request: httpx.Response(
        200, json={"data": [{"index": 0, "embedding": [3.0, 4.0, 12.0]}]}
    )
    assert (await backend.embed(EmbedRequest(model="m", inputs=["a"], dimensions=2))).vectors == [[0.6, 0.8]]
    assert (await backend.embed(EmbedRequest(model="m", inputs=["a"], dimensions=3))).vectors == [[3.0, 4.0, 12.0]]


async def test_refusals_in_the_history_are_text(backend: LlamaServerBackend, engine: Engine) -> None:
    """llama-server answers 400 to parts of that type."""
    said = [{"type": "refusal", "refusal": "No."}, {"type": "text", "text": "Sorry."}]
    messages = [{"role": "assistant", "content": said}, {"role": "user", "content": "Why?"}]
    payload = {"model": "m", "messages": messages, "stream": True}
    await collect(backend, ChatCompletions().parse(payload, orjson.dumps(payload), RequestContext()))
    assert engine.sent["messages"][0]["content"] == [
        {"type": "text", "text": "No."},
        {"type": "text", "text": "Sorry."},
    ]
