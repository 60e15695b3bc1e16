"""Reading chat requests."""

from __future__ import annotations

from contextlib import suppress

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velollm.api.openai import ChatCompletions
from velollm.errors import RequestError
from velollm.messages import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    ReasoningPart,
    RequestContext,
    ResponseFormat,
    TextPart,
    ToolChoice,
)

USER = {"role": "user", "content": "Hi"}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": True},
}


def parse(**fields: object) -> ChatRequest:
    payload = {"model": "m", "messages": [USER], **fields}
    body = orjson.dumps(payload)
    return ChatCompletions().parse(orjson.loads(body), body, RequestContext())


def refused(**fields: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def test_everything_common() -> None:
    request = parse(
        stream=True, stream_options={"include_usage": True}, n=2, temperature=0.5, top_p=1, top_k=40, min_p=0.05,
        seed=7, stop="END", max_tokens=5, max_completion_tokens=9, frequency_penalty=1, presence_penalty=-1,
        repetition_penalty=1.1, logit_bias={"5": -100}, logprobs=True, top_logprobs=3, user="u", keep_alive="5m",
        num_ctx=4096, parallel_tool_calls=False, tools=[WEATHER],
    )  # fmt: skip
    assert request.model == "m"
    assert request.stream
    assert request.include_usage
    assert (request.n, request.temperature, request.top_p, request.top_k, request.min_p) == (2, 0.5, 1, 40, 0.05)
    assert (request.seed, request.stop, request.max_tokens) == (7, ["END"], 9)
    assert (request.frequency_penalty, request.presence_penalty, request.repeat_penalty) == (1, -1, 1.1)
    assert (request.logit_bias, request.logprobs, request.top_logprobs) == ({"5": -100}, True, 3)
    assert (request.user, request.keep_alive, request.options) == ("u", "5m", {"num_ctx": 4096})
    assert request.parallel_tool_calls is False
    assert request.tools[0].name == "weather"
    assert request.tools[0].strict is True
    assert request.extra == {}
    assert request.source is not None
    assert request.source.wire == "openai.chat"


def test_null_is_absent() -> None:
    fields = [
        "stream", "stream_options", "n", "temperature", "top_p", "seed", "stop", "max_tokens", "logit_bias", "logprobs",
        "tools", "tool_choice", "response_format", "reasoning_effort", "reasoning", "user", "functions",
    ]  # fmt: skip
    request = parse(**dict.fromkeys(fields))
    plain = parse()
    request.source = plain.source = None
    request.extra.pop("functions")
    assert request == plain


def test_unknown_fields_survive() -> None:
    request = parse(guided_regex="a+", nested={"a": [1, None]}, metadata={"k": "v"}, store=False)
    assert request.extra == {"guided_regex": "a+", "nested": {"a": [1, None]}, "metadata": {"k": "v"}, "store": False}


def test_model_may_be_left_to_the_backend() -> None:
    body = orjson.dumps({"messages": [USER]})
    assert ChatCompletions().parse(orjson.loads(body), body, RequestContext()).model == ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [None]}, "messages[0]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "robot", "content": ""}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png,x"}]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].name"),
        ({"model": 5}, "model"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"1": None}}, "logit_bias.1"),
        ({"tools": {}}, "tools"),
        ({"tools": [{}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "x", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tool_choice": "sometimes", "tools": [WEATHER]}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"function": {"name": "wether"}}, "tools": [WEATHER]}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "magic"}, "tools": [WEATHER]}, "tool_choice.type"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
            "response_format.json_schema.schema",
        ),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"metadata": []}, "metadata"),
        ({"verbosity": "loud"}, "verbosity"),
        ({"keep_alive": True}, "keep_alive"),
        ({"options": []}, "options"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(fields: dict[str, object], param: str) -> None:
    assert refused(**fields).param == param


def test_suggestions() -> None:
    assert "did you mean 'assistant'" in refused(messages=[{"role": "asistant", "content": ""}]).message
    message = refused(tool_choice={"type": "function", "function": {"name": "wether"}}, tools=[WEATHER]).message
    assert "did you mean 'weather'" in message


def test_parts() -> None:
    parts = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "image_url", "image_url": "https://example.org/a.png"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,BBBB", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}},
        {"type": "refusal", "refusal": "no"},
        {"type": "thinking", "thinking": "hm", "signature": "s"},
    ]
    content = parse(messages=[{"role": "user", "content": parts}]).messages[0].content
    assert content == [
        TextPart(text="a", extra={"cache_control": {"type": "ephemeral"}}),
        ImagePart(data="AAAA", media_type="image/png", detail="low"),
        ImagePart(url="https://example.org/a.png"),
        AudioPart(data="AAAA", format="mp3"),
        FilePart(data="BBBB", media_type="application/pdf", filename="a.pdf"),
        FilePart(extra={"file": {"file_id": "file-1"}}),
        FilePart(extra={"video_url": {"url": "https://example.org/a.mp4"}}),
        TextPart(text="no", extra={"type": "refusal"}),
        ReasoningPart(text="hm", signature="s"),
    ]


def test_history_with_tools_and_reasoning() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{not json"}}
    request = parse(
        messages=[
            {"role": "developer", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]
    )
    assistant, result = request.messages[2:]
    assert assistant.content is None
    assert assistant.reasoning == "hm"
    assert assistant.tool_calls[0].arguments == "{not json"
    assert (result.role, result.tool_call_id, result.text) == ("tool", "c1", "sunny")
    assert request.source is not None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
        {"role": "function", "name": "weather", "content": "sunny"},
    ],
)
def test_what_was_interpreted_is_not_passed_on_as_it_came(message: dict[str, object]) -> None:
    request = parse(messages=[USER, message])
    assert request.source is None
    if request.messages[1].tool_calls:
        assert request.messages[1].tool_calls[0].arguments == '{"city":"Oslo"}'


def test_deprecated_functions() -> None:
    request = parse(
        functions=[{"name": "weather", "parameters": {}}],
        function_call={"name": "weather"},
        messages=[
            USER,
            {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
            {"role": "function", "name": "weather", "content": "sunny"},
        ],
    )
    assert request.tools[0].name == "weather"
    assert request.tool_choice == ToolChoice(mode="named", name="weather")
    assert request.messages[1].tool_calls[0].id == request.messages[2].tool_call_id
    assert request.source is None


def test_tool_choices() -> None:
    assert parse(tools=[WEATHER], tool_choice="required").tool_choice == ToolChoice(mode="required")
    assert parse(tools=[]).tools == []
    assert parse(tool_choice="auto").tool_choice == ToolChoice(mode="auto")
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER]}}
    request = parse(tools=[WEATHER, other], tool_choice=allowed)
    assert [tool.name for tool in request.tools] == ["weather"]
    assert request.tool_choice == ToolChoice(mode="required")
    assert request.source is None


def test_response_formats() -> None:
    assert parse(response_format={"type": "text"}).response_format is None
    assert parse(response_format={"type": "json_object"}).response_format == ResponseFormat(kind="json_object")
    schema = {"type": "object"}
    wanted = ResponseFormat(kind="json_schema", schema=schema, name="a", strict=True)
    openai = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    assert parse(response_format=openai).response_format == wanted
    llama = {"type": "json_object", "schema": schema}
    assert parse(response_format=llama).response_format == ResponseFormat(kind="json_schema", schema=schema)
    tags = {"type": "structural_tag", "structures": []}
    assert parse(response_format=tags).extra == {"response_format": tags}


@pytest.mark.parametrize(
    ("fields", "think"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, "low"),
        ({"reasoning": {"enabled": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({}, None),
    ],
)
def test_thinking(fields: dict[str, object], think: object) -> None:
    assert parse(**fields).think == think


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
words = st.sampled_from(
    ["role", "content", "type", "text", "user", "assistant", "tool", "function", "name", "arguments", "image_url",
     "url", "data:;base64,", "tool_calls", "function_call", "json_schema", "schema", "allowed_tools", "tools", "mode",
     "file"]
)  # fmt: skip
near_json = st.recursive(
    json_values | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "model", "messages", "stream", "stream_options", "n", "temperature", "stop", "tools", "tool_choice", "functions",
    "function_call", "response_format", "logprobs", "top_logprobs", "logit_bias", "reasoning", "reasoning_effort",
    "chat_template_kwargs", "options", "keep_alive", "max_tokens", "metadata",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), near_json, max_size=6), st.lists(near_json, max_size=3))
def test_nothing_but_request_errors(payload: dict[str, object], turns: list[object]) -> None:
    payload.setdefault("messages", [USER, *turns])
    with suppress(RequestError):
        assert ChatCompletions().parse(payload, b"{}", RequestContext()).messages


def test_deep_nesting_is_the_clients_fault() -> None:
    deep: object = 1
    for _ in range(400):
        deep = {"a": deep}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": deep}}
    with pytest.raises(RequestError, match="nested too deeply"):
        ChatCompletions().parse({"messages": [{"role": "assistant", "tool_calls": [call]}]}, b"{}", RequestContext())
