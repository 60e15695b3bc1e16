"""Reading requests of Anthropic's dialect."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velollm.api.anthropic import Messages, parse_count_tokens, render_count_tokens
from velollm.errors import RequestError, UnsupportedError
from velollm.messages import (
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

PNG = "iVBORw0KGgo="
TOOL = {"name": "f", "description": "does", "input_schema": {"type": "object"}}


def parse(payload: dict[str, Any], context: RequestContext | None = None) -> ChatRequest:
    return Messages().parse(payload, orjson.dumps(payload), context or RequestContext())


def ask(**fields: Any) -> ChatRequest:
    return parse({"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}], **fields})


def turns(*messages: tuple[str, Any], **fields: Any) -> list[Message]:
    return ask(messages=[{"role": role, "content": content} for role, content in messages], **fields).messages


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(**fields)
    assert caught.value.param is not None
    assert caught.value.param.partition("[")[0].partition(".")[0] in caught.value.message
    return caught.value


def test_a_plain_request() -> None:
    request = ask(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["x"], stream=True, num_ctx=8192, min_p=0.1)
    assert request.messages == [Message(role="user", content="Hi")]
    assert (request.model, request.max_tokens, request.temperature, request.top_p) == ("m", 10, 0.5, 0.9)
    assert (request.top_k, request.stop, request.stream, request.include_usage) == (40, ["x"], True, True)
    assert request.options == {"num_ctx": 8192}
    assert request.extra == {"min_p": 0.1}
    assert request.n == 1
    assert request.source is not None
    assert request.source.wire == "anthropic.messages"
    assert orjson.loads(request.source.body) == request.source.payload


def test_what_configures_anthropics_service_is_accepted_and_kept_from_other_engines() -> None:
    request = ask(
        service_tier="auto",
        context_management={"edits": []},
        inference_geo="eu",
        speed="fast",
        diagnostics={"previous_message_id": None},
        mcp_servers=[],
        container=None,
        thread=None,
    )
    assert request.extra == {}


def test_user_id_is_the_user_and_a_session_unless_there_is_one() -> None:
    payload = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    payload["metadata"] = {"user_id": "u1"}
    fresh, known = RequestContext(), RequestContext(session="s")
    assert parse(payload, fresh).user == "u1"
    parse(payload, known)
    assert (fresh.session, known.session) == ("u1", "s")


def test_system_prompts() -> None:
    blocks = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=8af3;"},
        {"type": "text", "text": "You are", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "kind."},
    ]
    assert turns(("user", "Hi"), system=blocks)[0] == Message(role="system", content="You are\n\nkind.")
    assert turns(("user", "Hi"), system="x-anthropic-billing-header: a\n\nBe kind.")[0].content == "Be kind."
    assert turns(("user", "Hi"), system=blocks[:1])[0].role == "user"
    assert turns(("user", "Hi"), system="")[0].role == "user"
    assert turns(("user", "a"), ("system", "b"))[1] == Message(role="system", content="b")


def test_images_and_documents() -> None:
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "image", "source": {"type": "url", "url": "https://x.org/a.png"}},
        {"type": "document", "title": "t", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}},
        {"type": "document", "context": "c", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "e"}]}},
        {"type": "document", "source": {"type": "content", "content": "f"}},
        {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "g"}]},
    ]
    assert turns(("user", content))[0].content == [
        TextPart(text="What is it?"),
        ImagePart(data=PNG, media_type="image/png"),
        ImagePart(url="https://x.org/a.png"),
        FilePart(data=PNG, media_type="application/pdf", filename="t"),
        TextPart(text="c"),
        FilePart(text="d", media_type="text/plain"),
        TextPart(text="e"),
        TextPart(text="f"),
        TextPart(text="T\nS\n\ng"),
    ]


def test_one_text_block_is_the_same_as_a_string() -> None:
    assert turns(("user", [{"type": "text", "text": "Hi"}])) == turns(("user", "Hi"))


def test_an_agents_turn() -> None:
    found = turns(
        ("user", "Weather?"),
        (
            "assistant",
            [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "zz"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"city": "Bern"}},
                {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
            ],
        ),
        (
            "user",
            [
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "21"}]},
                {"type": "text", "text": "Well?"},
                {"type": "tool_result", "tool_use_id": "t1", "content": "no such city", "is_error": True},
            ],
        ),
        tools=[TOOL],
    )
    assert found[1] == Message(
        role="assistant",
        content="I look.",
        reasoning="hm",
        tool_calls=[
            ToolCall(id="t1", name="f", arguments='{"city":"Bern"}'),
            ToolCall(id="t2", name="g", arguments="{}"),
        ],
    )
    assert found[2:] == [
        Message(role="tool", content="21", tool_call_id="t2", name="g"),
        Message(role="tool", content="no such city", tool_call_id="t1", name="f", is_error=True),
        Message(role="user", content="Well?"),
    ]


def test_tool_results_may_be_empty_or_hold_images() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    found = turns(
        (
            "user",
            [
                {"type": "tool_result", "tool_use_id": "a"},
                {"type": "tool_result", "tool_use_id": "b", "content": [image]},
            ],
        )
    )
    assert [turn.role for turn in found] == ["tool", "tool"]
    assert found[0].content == ""
    assert found[1].content == [ImagePart(data=PNG, media_type="image/png")]


def test_calls_alone_have_no_content() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    assert turns(("user", "a"), ("assistant", [call]))[1].content is None
    assert turns(("user", "a"), ("assistant", []))[1].content == ""


@pytest.mark.parametrize(
    ("choice", "mode", "parallel"),
    [
        (None, None, None),
        ({"type": "auto"}, ToolChoice(mode="auto"), None),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(mode="auto"), False),
        ({"type": "any", "disable_parallel_tool_use": False}, ToolChoice(mode="required"), True),
        ({"type": "none"}, ToolChoice(mode="none"), None),
        ({"type": "tool", "name": "f"}, ToolChoice(mode="named", name="f"), None),
    ],
)
def test_tool_choice(choice: Any, mode: ToolChoice | None, parallel: bool | None) -> None:
    tool = {**TOOL, "type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}, "x": 1}
    request = ask(tools=[tool], tool_choice=choice)
    assert request.tools == [
        Tool(name="f", description="does", parameters={"type": "object"}, strict=True, extra={"x": 1})
    ]
    assert (request.tool_choice, request.parallel_tool_calls) == (mode, parallel)


@pytest.mark.parametrize(
    ("thinking", "effort", "think"),
    [
        (None, None, False),
        (None, "high", False),
        ({"type": "disabled"}, "high", False),
        ({"type": "enabled", "budget_tokens": 2048}, None, True),
        ({"type": "enabled", "budget_tokens": 2048, "display": "summarized"}, "low", "low"),
        ({"type": "adaptive"}, None, None),
        ({"type": "adaptive", "display": None}, "max", "high"),
    ],
)
def test_thinking(thinking: Any, effort: str | None, think: Any) -> None:
    assert ask(thinking=thinking, output_config={"effort": effort}).think == think


def test_structured_output_in_both_spellings() -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    expected = ResponseFormat(kind="json_schema", schema={"type": "object"}, strict=True)
    assert ask(output_config={"format": wanted}).response_format == expected
    assert ask(output_format=wanted).response_format == expected
    assert ask(output_config={"format": None}).response_format is None


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
def test_threads_are_refused_with_the_code_that_makes_the_sdk_resend_everything(thread: Any) -> None:
    error = refused(thread=thread)
    assert error.status == 400
    assert error.details == {"error_code": "thread_unsupported_request", "unsupported": []}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"temperature": 1.1}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"service_tier": 5}, "service_tier"),
        ({"context_management": []}, "context_management"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"output_config": {"effort": "heroic"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "ff"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_refusals_name_the_field(fields: Any, param: str) -> None:
    error = refused(**fields)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    ("role", "block", "param"),
    [
        ("user", {"type": "audio"}, "type"),
        ("user", {}, "type"),
        ("user", {"type": "text"}, "text"),
        ("user", {"type": "tool_use", "id": "a", "name": "f", "input": {}}, ""),
        ("user", {"type": "thinking", "thinking": "", "signature": ""}, ""),
        ("assistant", {"type": "tool_result", "tool_use_id": "a"}, ""),
        ("assistant", {"type": "tool_use", "id": "a", "name": "f", "input": "{}"}, "input"),
        ("assistant", {"type": "tool_use", "name": "f", "input": {}}, "id"),
        ("assistant", {"type": "thinking"}, "thinking"),
        ("user", {"type": "tool_result", "content": "x"}, "tool_use_id"),
        ("user", {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "tool_use"}]}, "content[0].type"),
        ("user", {"type": "image", "source": {"type": "base64", "media_type": "image/png"}}, "source.data"),
        (
            "user",
            {"type": "image", "source": {"type": "base64", "media_type": "x/y", "data": PNG}},
            "source.media_type",
        ),
        (
            "user",
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "no base64!"}},
            "source.data",
        ),
        ("user", {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}, "source.url"),
        ("user", {"type": "image", "source": {"type": "magic"}}, "source.type"),
        ("user", {"type": "document", "source": {"type": "text"}}, "source.data"),
        ("user", {"type": "search_result", "title": "t", "source": "s"}, "content"),
    ],
)
def test_refused_blocks(role: str, block: Any, param: str) -> None:
    error = refused(messages=[{"role": role, "content": [block]}])
    assert error.param == f"messages[0].content[0].{param}".rstrip(".")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"mcp_servers": [{"type": "url", "url": "https://x.org", "name": "x"}]},
        {"container": "container_1"},
        {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "web_search_tool_result"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "x"}}]}]},
    ],
)
def test_what_only_anthropics_servers_can_do_is_unsupported(fields: Any) -> None:
    assert isinstance(refused(**fields), UnsupportedError)


def test_count_tokens_needs_no_max_tokens() -> None:
    payload = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "system": "S", "tools": [TOOL]}
    request = parse_count_tokens(payload, orjson.dumps(payload), RequestContext())
    assert [turn.text for turn in request.messages] == ["S", "Hi"]
    assert request.tools[0].name == "f"
    assert render_count_tokens(7) == {"input_tokens": 7}


WORDS = st.sampled_from(
    [
        "model", "messages", "max_tokens", "role", "content", "type", "text", "image", "source", "data",
        "media_type", "url", "tool_use", "tool_result", "id", "name", "input", "tool_use_id", "is_error",
        "thinking", "signature", "system", "tools", "input_schema", "tool_choice", "any", "user", "assistant",
        "thread", "base64", "document", "title", "output_config", "format", "schema", "effort", "metadata",
        "user_id", "stop_sequences", "num_ctx", "options",
    ]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | WORDS | st.text()
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(), inner, max_size=5)
)
BLOCK = st.dictionaries(WORDS, ANYTHING, max_size=4) | st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "document", "tool_use", "tool_result", "thinking", "search_result"])},
    optional=dict.fromkeys(("text", "source", "id", "name", "input", "tool_use_id", "content", "title"), ANYTHING),
)
TURN = ANYTHING | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text() | st.lists(BLOCK | ANYTHING)}
)


@settings(max_examples=300)
@given(
    st.dictionaries(WORDS, ANYTHING, max_size=6)
    | st.fixed_dictionaries(
        {"model": st.just("m"), "max_tokens": st.just(5), "messages": st.lists(TURN, max_size=4) | ANYTHING},
        optional=dict.fromkeys(("system", "tools", "tool_choice", "thinking", "output_config", "metadata"), ANYTHING),
    )
)
def test_parsing_raises_nothing_but_request_errors(payload: dict[str, Any]) -> None:
    try:
        outcome: Any = parse(payload)
    except RequestError as error:
        outcome = error
    assert outcome.status == 400 if isinstance(outcome, RequestError) else outcome.messages


def test_deep_inputs_are_refused() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"a": deep}
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": deep}
    with pytest.raises(RequestError, match="nested too deeply"):
        Messages().parse(
            {"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": [call]}]},
            b"",
            RequestContext(),
        )
