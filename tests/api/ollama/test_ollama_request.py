"""What Ollama's clients send, read into typed requests."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.api.ollama import Chat, Embed, Generate, LegacyEmbeddings
from velollm.errors import RequestError
from velollm.messages import ImagePart, RequestContext, ResponseFormat, TextPart

TURN = {"role": "user", "content": "Hi"}
PNG = "iVBORw0KGgo="
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> Any:
    return parse(Chat(), {"model": "m", "messages": [TURN], **fields})


def generate(**fields: Any) -> Any:
    return parse(Generate(), {"model": "m", "prompt": "Hi", **fields})


def parse(endpoint: Any, payload: dict[str, Any]) -> Any:
    return endpoint.parse(payload, orjson.dumps(payload), RequestContext())


def test_a_chat() -> None:
    request = chat()
    assert (request.model, request.stream, request.include_usage) == ("m", True, True)
    assert [(message.role, message.content) for message in request.messages] == [("user", "Hi")]
    assert request.think is None
    assert request.source.wire == "ollama.chat"
    assert chat(stream=False).stream is False
    assert chat(stream=None).stream is True


def test_options_go_into_typed_fields() -> None:
    options = {
        "num_predict": 5, "temperature": 0, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "seed": -1, "stop": ["x"],
        "frequency_penalty": 1, "presence_penalty": 0.5, "repeat_penalty": 1.1, "num_ctx": 4096.0, "new": {"a": 1},
        "mirostat": None,
    }  # fmt: skip
    request = chat(options=options)
    assert (request.max_tokens, request.temperature, request.top_k, request.top_p) == (5, 0, 40, 0.9)
    assert (request.min_p, request.seed, request.stop) == (0.05, -1, ["x"])
    assert (request.frequency_penalty, request.presence_penalty, request.repeat_penalty) == (1, 0.5, 1.1)
    assert request.options == {"num_ctx": 4096.0, "new": {"a": 1}}


@pytest.mark.parametrize("limit", [-1, -2, 0, None])
def test_no_limit(limit: int | None) -> None:
    assert chat(options={"num_predict": limit}).max_tokens is None


def test_what_gos_client_sends() -> None:
    odd = {"name": "", "options": None, "system": "", "template": "", "suffix": "", "format": "", "keep_alive": None}
    request = generate(**odd)
    assert (request.prompt, request.suffix, request.messages) == ("Hi", None, [])
    assert request.extra == {"name": ""}
    assert chat(options=None, format=None, tools=None).tools == []
    assert chat(tools=[]).tools == []


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("5m", "5m"),
        ("1h30m0s", "1h30m0s"),
        ("-1s", "-1s"),
        ("1.5h", "1.5h"),
        ("24h", "24h"),
        (300, 300),
        (-1, -1),
        (0.5, 0.5),
        ("-1", -1),
        ("300", 300),
        ("", None),
    ],
)
def test_keep_alive(sent: Any, read: Any) -> None:
    assert chat(keep_alive=sent).keep_alive == read


def test_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert chat(format="json").response_format == ResponseFormat(kind="json_object")
    assert chat(format=schema).response_format == ResponseFormat(kind="json_schema", schema=schema)


@pytest.mark.parametrize("think", [True, False, "low", "medium", "high", "max", None])
def test_think(think: Any) -> None:
    assert chat(think=think).think == think


def test_images() -> None:
    (message,) = chat(messages=[{**TURN, "images": [PNG, f"data:image/webp;base64,{PNG}"]}]).messages
    assert message.content == [
        TextPart(text="Hi"),
        ImagePart(data=PNG, media_type="image/png"),
        ImagePart(data=PNG, media_type="image/webp"),
    ]
    (alone,) = chat(messages=[{"role": "user", "images": [PNG]}]).messages
    assert isinstance(alone.content[0], ImagePart)
    request = generate(images=[PNG], system="S")
    assert request.prompt is None
    assert [message.role for message in request.messages] == ["system", "user"]


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"name": name, "arguments": arguments}}


def test_results_without_ids_answer_calls_by_name_and_by_order() -> None:
    calls = [call("f", {"a": 1}), call("g", '{"b": 2}'), call("f", None)]
    results = [
        {"role": "tool", "content": "of g", "tool_name": "g"},
        {"role": "tool", "content": "of the first f", "name": "f"},
        {"role": "tool", "content": "of the second f"},
        {"role": "tool", "content": "of nothing"},
    ]
    request = chat(messages=[TURN, {"role": "assistant", "content": "", "tool_calls": calls}, *results])
    asked = request.messages[1]
    assert asked.content is None
    assert [(c.id, c.name, c.arguments) for c in asked.tool_calls] == [
        ("call_1_0", "f", '{"a":1}'),
        ("call_1_1", "g", '{"b": 2}'),
        ("call_1_2", "f", "{}"),
    ]
    assert [(r.tool_call_id, r.name) for r in request.messages[2:]] == [
        ("call_1_1", "g"),
        ("call_1_0", "f"),
        ("call_1_2", "f"),
        (None, None),
    ]


def test_ids_are_kept_where_there_are_some() -> None:
    calls = [call("f", {}, id="a"), call("f", {}, id="b")]
    results = [{"role": "tool", "content": "x", "tool_call_id": "b"}, {"role": "tool", "tool_call_id": "z"}]
    request = chat(messages=[{"role": "Assistant", "thinking": "hm", "tool_calls": calls}, *results])
    assert [message.tool_call_id for message in request.messages] == [None, "b", "z"]
    assert request.messages[1].name == "f"
    assert request.messages[0].reasoning == "hm"


def test_tools() -> None:
    request = chat(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert [tool.name for tool in request.tools] == ["get_weather"]
    assert request.tool_choice.mode == "required"
    assert request.parallel_tool_calls is False


def test_generate() -> None:
    request = generate(system="S", raw=True, suffix="end", template="T", context=[1, 2], options={"seed": 1})
    assert (request.prompt, request.suffix, request.raw, request.seed) == ("Hi", "end", True, 1)
    assert [message.content for message in request.messages] == ["S"]
    assert request.extra == {"template": "T", "context": [1, 2]}
    assert request.source.wire == "ollama.generate"


def test_requests_that_only_load() -> None:
    for request in (chat(messages=[]), chat(messages=None), generate(prompt=""), generate(prompt=None, system="S")):
        assert request.asks_nothing
    assert not chat().asks_nothing
    assert not generate(raw=True).asks_nothing
    assert not generate(images=[PNG]).asks_nothing


def test_unknown_fields_are_kept() -> None:
    assert chat(new=[1], truncate=False).extra == {"new": [1], "truncate": False}
    (message,) = chat(messages=[{**TURN, "new": 1}]).messages
    assert message.extra == {"new": 1}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"Model": "other"}, "Model"),
        ({"STREAM": False}, "STREAM"),
        ({"\u017ftream": False}, "\u017ftream"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{**TURN, "images": ["https://x/y.png"]}]}, "messages[0].images[0]"),
        ({"messages": [{**TURN, "images": ["%%%"]}]}, "messages[0].images[0]"),
        ({"messages": [{**TURN, "images": [""]}]}, "messages[0].images[0]"),
        ({"messages": [{**TURN, "images": [5]}]}, "messages[0].images[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [call("f", [1])]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"stream": "yes"}, "stream"),
        ({"format": "yaml"}, "format"),
        ({"format": []}, "format"),
        ({"think": "very"}, "think"),
        ({"think": 5}, "think"),
        ({"keep_alive": "5 minutes"}, "keep_alive"),
        ({"keep_alive": "5m" * 200}, "keep_alive"),
        ({"keep_alive": True}, "keep_alive"),
        ({"options": []}, "options"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"num_predict": 1.5}}, "options.num_predict"),
        ({"options": {"num_ctx": "4k"}}, "options.num_ctx"),
        ({"options": {"stop": [5]}}, "options.stop[0]"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_bad_chats(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize("fields", [{"prompt": 5}, {"system": []}, {"raw": "x"}, {"context": ["a"]}, {"images": "x"}])
def test_bad_generations(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        generate(**fields)
    assert caught.value.param is not None
    assert caught.value.param.startswith(next(iter(fields)))


def test_embeddings() -> None:
    request = Embed().parse(
        {"model": "m", "input": ["a", "b"], "truncate": False, "dimensions": 64, "keep_alive": "5m", "options": None},
        RequestContext(),
    )
    assert (request.inputs, request.truncate, request.dimensions) == (["a", "b"], False, 64)
    assert Embed().parse({"model": "m", "input": "a", "dimensions": 0}, RequestContext()).dimensions is None
    assert Embed().parse({"model": "m", "input": []}, RequestContext()).inputs == []
    assert LegacyEmbeddings().parse({"model": "m", "prompt": "a"}, RequestContext()).inputs == ["a"]
    for nothing in ({}, {"input": None}, {"input": ""}, {"prompt": ""}):  # loads the model, as with Ollama
        assert Embed().parse({"model": "m", **nothing}, RequestContext()).inputs == []
        assert LegacyEmbeddings().parse({"model": "m", **nothing}, RequestContext()).inputs == []
    for bad in ({"input": "a"}, {"model": "m", "input": [[1]]}, {"model": "m", "input": 5}):
        with pytest.raises(RequestError):
            Embed().parse(bad, RequestContext())


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "model", "messages", "stream", "format", "options", "keep_alive", "think", "tools", "tool_choice", "prompt",
    "system", "suffix", "raw", "images", "context", "template", "input", "dimensions", "truncate", "logprobs",
)  # fmt: skip
TURNS = st.lists(
    st.dictionaries(
        st.sampled_from(("role", "content", "images", "tool_calls", "thinking", "tool_name", "tool_call_id")),
        JUNK | st.sampled_from(("user", "tool", "assistant")),
        max_size=4,
    ),
    max_size=3,
)


@given(st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=8), TURNS)
def test_anything_is_read_or_refused(payload: dict[str, Any], turns: list[Any]) -> None:
    for endpoint in (Chat(), Generate()):
        for body in (payload, {"model": "m", **payload}, {"model": "m", "messages": turns}):
            with suppress(RequestError):
                request = parse(endpoint, body)
                assert isinstance(request.asks_nothing, bool)
                assert all(message.role in ("system", "user", "assistant", "tool") for message in request.messages)
    for embed in (Embed(), LegacyEmbeddings()):
        with suppress(RequestError):
            embed.parse({"model": "m", **payload}, RequestContext())
