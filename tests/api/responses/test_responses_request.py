"""Reading requests of the Responses API."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velollm.api.responses import Responses
from velollm.errors import RequestError, UnsupportedError
from velollm.messages import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    RequestContext,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)

TOOL = {"type": "function", "name": "f", "description": "does", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"}


def parse(payload: dict[str, Any], context: RequestContext | None = None) -> ChatRequest:
    return Responses().parse(payload, orjson.dumps(payload), context or RequestContext())


def ask(**fields: Any) -> ChatRequest:
    return parse({"model": "m", "input": "Hi", **fields})


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(**fields)
    assert caught.value.status == 400
    assert caught.value.param is not None
    assert caught.value.param.partition("[")[0].partition(".")[0] in caught.value.message
    return caught.value


def test_a_plain_request() -> None:
    request = ask(
        instructions="Be kind.",
        max_output_tokens=20,
        temperature=1.5,
        top_p=0.5,
        parallel_tool_calls=False,
        user="u",
        seed=7,
        stream=True,
        num_ctx=4096,
        beam_width=3,
    )
    assert request.messages == [Message(role="system", content="Be kind."), Message(role="user", content="Hi")]
    assert (request.model, request.max_tokens, request.temperature, request.top_p) == ("m", 20, 1.5, 0.5)
    assert (request.parallel_tool_calls, request.user, request.seed, request.stream) == (False, "u", 7, True)
    assert request.options == {"num_ctx": 4096}
    assert request.extra == {"beam_width": 3}
    assert request.think is None
    assert request.source is not None
    assert request.source.wire == "openai.responses"


def test_what_configures_openais_service_is_accepted_and_kept_from_other_engines() -> None:
    request = ask(
        store=True,
        service_tier="flex",
        safety_identifier="s",
        truncation="auto",
        metadata={"a": "b"},
        include=["reasoning.encrypted_content"],
        stream_options={"include_obfuscation": False},
        background=False,
        conversation=None,
        previous_response_id=None,
        prompt_cache_key=None,
        max_tool_calls=3,
        moderation=None,
        context_management=None,
    )
    assert request.extra == {}


def test_the_cache_key_is_a_session_unless_there_is_one() -> None:
    fresh, known = RequestContext(), RequestContext(session="s")
    for context in (fresh, known):
        parse({"model": "m", "input": "Hi", "prompt_cache_key": "k"}, context)
    assert (fresh.session, known.session) == ("k", "s")


def test_an_agents_turn_is_one_turn_again() -> None:
    request = ask(
        input=[
            {"role": "developer", "content": "D"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
            },
            CALL,
            {**CALL, "call_id": "c2", "name": "g"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "21"}]},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "aha"}]},
            {**CALL, "call_id": "c3"},
        ]
    )
    calls = [ToolCall(id="c1", name="f", arguments="{}"), ToolCall(id="c2", name="g", arguments="{}")]
    assert request.messages == [
        Message(role="developer", content="D"),
        Message(role="user", content="Weather?"),
        Message(role="assistant", content="I look.", reasoning="hm", tool_calls=calls),
        Message(role="tool", content="21", tool_call_id="c2", name="g"),
        Message(role="tool", content="sunny", tool_call_id="c1", name="f"),
        Message(role="assistant", reasoning="aha", tool_calls=[ToolCall(id="c3", name="f", arguments="{}")]),
    ]


def test_parts() -> None:
    content = [
        {"type": "input_text", "text": "a"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
        {"type": "input_image", "image_url": "https://x.org/a.png", "detail": "auto", "file_id": None},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
        {"type": "input_file", "file_data": "AAAA"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        {"type": "refusal", "refusal": "no"},
    ]
    assert ask(input=[{"role": "user", "content": content}]).messages[0].content == [
        TextPart(text="a"),
        ImagePart(data="AAAA", media_type="image/png", detail="low"),
        ImagePart(url="https://x.org/a.png", detail="auto"),
        FilePart(data="AAAA", media_type="application/pdf", filename="a.pdf"),
        FilePart(data="AAAA"),
        AudioPart(data="AAAA", format="mp3"),
        TextPart(text="no"),
    ]
    assert ask(input=[{"role": "user", "content": []}]).messages[0].content == ""


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        ("auto", ToolChoice(mode="auto")),
        ("none", ToolChoice(mode="none")),
        ("required", ToolChoice(mode="required")),
        ({"type": "function", "name": "f"}, ToolChoice(mode="named", name="f")),
    ],
)
def test_tools_and_their_choice(choice: Any, expected: ToolChoice | None) -> None:
    request = ask(tools=[TOOL], tool_choice=choice)
    assert request.tools == [Tool(name="f", description="does", parameters={"type": "object"}, strict=True)]
    assert request.tool_choice == expected


def test_allowed_tools_leave_out_the_others() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    request = ask(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert [tool.name for tool in request.tools] == ["g"]
    assert request.tool_choice == ToolChoice(mode="required")


def test_structured_output() -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    assert ask(text={"format": schema, "verbosity": "low"}).response_format == ResponseFormat(
        kind="json_schema", name="a", schema={"type": "object"}, strict=True
    )
    assert ask(text={"format": {"type": "json_object"}}).response_format == ResponseFormat(kind="json_object")
    assert ask(text={"format": {"type": "text"}}).response_format is None
    assert ask(text={}).response_format is None


@pytest.mark.parametrize(("effort", "think"), [(None, None), ("none", False), ("minimal", "minimal"), ("high", "high")])
def test_reasoning(effort: str | None, think: Any) -> None:
    assert ask(reasoning={"effort": effort, "summary": "auto"}).think == think


def test_logprobs() -> None:
    asked = ask(include=["message.output_text.logprobs"], top_logprobs=2)
    assert (asked.logprobs, asked.top_logprobs) == (True, 2)
    assert ask().logprobs is False


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"id": "msg_1"}]}, "input[0]"),
    ],
)
def test_what_needs_a_memory_is_refused(fields: Any, word: str) -> None:
    error = refused(**fields)
    assert error.param == word
    assert "stored" in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "custom", "name": "x"}]},
        {"tools": [TOOL], "tool_choice": {"type": "web_search_preview"}},
        {"input": [{"type": "web_search_call", "id": "ws_1"}]},
        {"input": [{"type": "computer_call_output"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x.org"}]}]},
    ],
)
def test_what_only_openais_servers_can_do_is_unsupported(fields: Any) -> None:
    assert isinstance(refused(**fields), UnsupportedError)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": ["Hi"]}, "input[0]"),
        ({"input": [{"content": "Hi"}]}, "input[0].role"),
        ({"input": [{"role": "wizard", "content": "Hi"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_smell"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [{"type": "magic"}]}, "input[0].type"),
        ({"input": [{**CALL, "call_id": None}]}, "input[0].call_id"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": "x"}]}, "input[0].summary"),
        ({"instructions": []}, "instructions"),
        ({"model": 5}, "model"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"truncation": "maybe"}, "truncation"),
        ({"store": "no"}, "store"),
        ({"include": "x"}, "include"),
        ({"reasoning": {"effort": "heroic"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"verbosity": "much"}}, "text.verbosity"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "ff"}}, "tool_choice.name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [{"name": "x"}]}},
            "tool_choice.tools[0].name",
        ),
    ],
)
def test_refusals_name_the_field(fields: Any, param: str) -> None:
    assert refused(**fields).param == param


WORDS = st.sampled_from(
    [
        "model", "input", "instructions", "type", "role", "content", "text", "user", "assistant", "message", "name",
        "function_call", "function_call_output", "reasoning", "summary", "call_id", "arguments", "output", "tools",
        "tool_choice", "format", "effort", "metadata", "include", "function", "parameters", "input_text", "image_url",
        "input_image", "num_ctx", "options", "id", "allowed_tools", "required", "max_output_tokens",
    ]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | WORDS | st.text()
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(), inner, max_size=5)
)
ITEM = ANYTHING | st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "item_reference"])},
    optional=dict.fromkeys(("role", "content", "call_id", "name", "arguments", "output", "summary", "id"), ANYTHING),
)


@settings(max_examples=300)
@given(
    st.dictionaries(WORDS, ANYTHING, max_size=6)
    | st.fixed_dictionaries(
        {"input": st.lists(ITEM, max_size=4) | ANYTHING},
        optional=dict.fromkeys(("tools", "tool_choice", "text", "reasoning", "metadata", "include"), ANYTHING),
    )
)
def test_parsing_raises_nothing_but_request_errors(payload: dict[str, Any]) -> None:
    try:
        outcome: Any = parse(payload)
    except RequestError as error:
        outcome = error
    assert outcome.status == 400 if isinstance(outcome, RequestError) else outcome.source.payload is payload
