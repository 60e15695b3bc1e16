"""Rendering responses, whole and streamed, and reading them back with the SDK's own models and accumulator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response as SDKResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from velollm.api.openai import Minter
from velollm.api.responses import Responses
from velollm.collector import Collector
from velollm.errors import BackendProtocolError, RequestError, VeloError
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    RequestContext,
    ResponseMeta,
    ToolCallDelta,
    Usage,
)

USAGE = Usage(prompt_tokens=10, completion_tokens=3, cached_tokens=4, reasoning_tokens=2)
EVENT = TypeAdapter[Any](ResponseStreamEvent)
REQUIRED = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "max_output_tokens",
    "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip


def endpoint() -> Responses:
    numbers = itertools.count(1)
    return Responses(Minter(clock=lambda: 1000.9, token=lambda: str(next(numbers))))


def ask(**fields: Any) -> ChatRequest:
    payload = {"model": "m", "input": "Hi", **fields}
    return endpoint().parse(payload, orjson.dumps(payload), RequestContext(request_id="req_7"))


def whole(request: ChatRequest, events: Sequence[ChatEvent]) -> dict[str, Any]:
    collector = Collector()
    for event in events:
        collector.add(event)
    body = orjson.loads(orjson.dumps(endpoint().render(request, collector.answer())))
    SDKResponse.model_validate(body)
    assert body.keys() >= REQUIRED
    return dict(body)


def wire(request: ChatRequest, events: Sequence[ChatEvent]) -> bytes:
    renderer = endpoint().stream(request)
    return b"".join(renderer.event(event) for event in events) + renderer.end()


def frames(data: bytes) -> list[dict[str, Any]]:
    """The data of all events: named, numbered and valid."""
    found = []
    for number, frame in enumerate(data.decode().removesuffix("\n\n").split("\n\n")):
        first, second = frame.split("\n")
        body = orjson.loads(second.removeprefix("data: "))
        assert first == f"event: {body['type']}"
        assert body["sequence_number"] == number
        EVENT.validate_python(body)
        found.append(body)
    return found


def streamed(request: ChatRequest, events: Sequence[ChatEvent]) -> list[dict[str, Any]]:
    """The events, checked: items open and close one after the other and are the output of the last event."""
    found = frames(wire(request, events))
    items: list[Any] = []
    open_id = None
    for body in found[2:-1]:
        kind = body["type"]
        assert body["output_index"] == len(items)
        if kind == "response.output_item.added":
            assert open_id is None
            open_id = body["item"]["id"]
        elif kind == "response.output_item.done":
            assert body["item"]["id"] == open_id
            items.append(body["item"])
            open_id = None
        else:
            assert body["item_id"] == open_id
    assert [body["type"] for body in found[:2]] == ["response.created", "response.in_progress"]
    assert len({body["response"]["id"] for body in (*found[:2], found[-1])}) == 1
    for body in (*found[:2], found[-1]):
        assert body["response"].keys() >= REQUIRED
    assert found[-1]["response"]["output"] == items
    return found


def client(answer: Callable[[ChatRequest], bytes]) -> openai.OpenAI:
    """The real SDK in front of our parser and renderer."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        body = request.read()
        parsed = endpoint().parse(orjson.loads(body), body, RequestContext(request_id="req_7"))
        kind = "text/event-stream" if parsed.stream else "application/json"
        return httpx2.Response(200, headers={"content-type": kind}, content=answer(parsed))

    http = httpx2.Client(transport=httpx2.MockTransport(handle))
    return openai.OpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0)


def says(*events: ChatEvent) -> openai.OpenAI:
    return client(
        lambda request: wire(request, events) if request.stream else orjson.dumps(whole(request, events)),
    )


AGENT = [
    ChatEvent(reasoning="let me ", meta=ResponseMeta(model="m:latest", created=900)),
    ChatEvent(reasoning="see"),
    ChatEvent(text="I "),
    ChatEvent(text="look."),
    ChatEvent(tool_calls=[ToolCallDelta(0, "call_a", "f", '{"city":')]),
    ChatEvent(tool_calls=[ToolCallDelta(1, None, "g", ""), ToolCallDelta(0, arguments='"Bern"}')]),
    ChatEvent(tool_calls=[ToolCallDelta(1, arguments="{}")]),
    ChatEvent(finish_reason="tool_calls", usage=USAGE),
]


def test_the_sdk_reads_whole_and_stream_alike() -> None:
    with says(*AGENT) as sdk:
        response = sdk.responses.create(model="m", input="Hi")
        with sdk.responses.stream(model="m", input="Hi") as stream:
            final = stream.get_final_response()
    for one in (response, final):
        thoughts, message, first, second = one.output
        assert (thoughts.type, thoughts.content[0].text, thoughts.summary) == ("reasoning", "let me see", [])
        assert message.content[0].text == one.output_text == "I look."
        assert (first.call_id, first.name, first.arguments) == ("call_a", "f", '{"city":"Bern"}')
        assert (second.name, second.arguments) == ("g", "{}")
        assert second.call_id.startswith("call_")
        assert [item.id.partition("_")[0] for item in one.output] == ["rs", "msg", "fc", "fc"]
        assert {item.status for item in one.output} == {"completed"}
        assert (one.status, one.model, one.created_at, one.error) == ("completed", "m:latest", 900, None)
        assert one.id.startswith("resp_")
        assert (one.usage.input_tokens, one.usage.output_tokens, one.usage.total_tokens) == (10, 3, 13)
        assert one.usage.input_tokens_details.cached_tokens == 4
        assert one.usage.output_tokens_details.reasoning_tokens == 2


def test_the_sdk_reads_structured_output() -> None:
    class City(BaseModel):
        name: str

    with says(ChatEvent(text='{"name":'), ChatEvent(text='"Bern"}'), ChatEvent(finish_reason="stop")) as sdk:
        assert sdk.responses.parse(model="m", input="Hi", text_format=City).output_parsed == City(name="Bern")
        with sdk.responses.stream(model="m", input="Hi", text_format=City) as stream:
            assert stream.get_final_response().output_parsed == City(name="Bern")


def test_the_event_sequence_of_a_text() -> None:
    events = streamed(ask(), [ChatEvent(text="a"), ChatEvent(text="b"), ChatEvent(finish_reason="stop", usage=USAGE)])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.get("logprobs") for event in events[4:7]] == [[], [], []]
    assert events[6]["text"] == "ab"
    assert events[0]["response"]["usage"] is None
    assert events[-1]["response"]["completed_at"] == 1000


def test_thoughts_go_where_the_client_reads_them() -> None:
    said = [ChatEvent(reasoning="hm"), ChatEvent(text="a", finish_reason="stop")]
    plain = [event["type"].removeprefix("response.") for event in streamed(ask(), said)]
    assert "reasoning_text.delta" in plain
    assert not any("summary" in kind for kind in plain)
    request = ask(reasoning={"summary": "auto"})
    kinds = [event["type"].removeprefix("response.") for event in streamed(request, said)[2:8]]
    assert kinds == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert whole(request, said)["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert [item["type"] for item in whole(ask(reasoning={"effort": "none"}), said)["output"]] == ["message"]
    assert b"reasoning_text" not in wire(ask(reasoning={"effort": "none"}), said)


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_is_incomplete(finish: Any, reason: str) -> None:
    calls = [ToolCallDelta(0, "a", "f", "{}"), ToolCallDelta(1, "b", "g", "{")]
    events = [ChatEvent(text="a"), ChatEvent(tool_calls=calls), ChatEvent(finish_reason=finish, usage=USAGE)]
    last = streamed(ask(), events)[-1]
    assert last["type"] == "response.incomplete"
    for response in (whole(ask(), events), last["response"]):
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": reason}
        assert response["error"] is None
        assert [item["status"] for item in response["output"]] == ["completed", "completed", "incomplete"]


def test_the_request_is_echoed() -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    tool = {"type": "function", "name": "f", "description": "does", "parameters": {"type": "object"}, "strict": True}
    request = ask(
        instructions="Be kind.",
        tools=[tool],
        tool_choice={"type": "function", "name": "f"},
        text={"format": schema, "verbosity": "low"},
        metadata={"a": "b"},
        temperature=0,
        top_p=0.5,
        max_output_tokens=5,
        parallel_tool_calls=False,
        truncation="auto",
        reasoning={"effort": "low"},
        prompt_cache_key="k",
        store=True,
        user="u",
    )
    response = whole(request, [ChatEvent(text="a", finish_reason="stop")])
    expected = {
        "instructions": "Be kind.",
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": schema, "verbosity": "low"},
        "metadata": {"a": "b"},
        "temperature": 0,
        "top_p": 0.5,
        "max_output_tokens": 5,
        "parallel_tool_calls": False,
        "truncation": "auto",
        "reasoning": {"effort": "low", "summary": None},
        "prompt_cache_key": "k",
        "store": False,
        "user": "u",
    }
    assert {key: response[key] for key in expected} == expected


def test_an_empty_answer_has_an_empty_message() -> None:
    assert whole(ask(), [ChatEvent(finish_reason="stop")])["output"][0]["content"][0]["text"] == ""
    assert streamed(ask(), [])[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_logprobs() -> None:
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -2.0}]}
    events = [
        ChatEvent(text="a", logprobs={"content": [entry]}),
        ChatEvent(text="c", logprobs={"content": [{"token": "c", "logprob": None}]}),
        ChatEvent(finish_reason="stop"),
    ]
    expected = [
        {**entry, "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}]},
        {"token": "c", "logprob": -9999.0, "bytes": [99], "top_logprobs": []},
    ]
    assert whole(ask(), events)["output"][0]["content"][0]["logprobs"] == expected
    found = streamed(ask(), events)
    assert [event["logprobs"] for event in found if event["type"] == "response.output_text.delta"] == [
        expected[:1],
        expected[1:],
    ]
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected


def test_the_trailer() -> None:
    request = ask()
    request.context.trailer["cache"] = "hit"
    events = [ChatEvent(text="a", finish_reason="stop")]
    assert whole(request, events)["velollm"] == {"cache": "hit"}
    assert streamed(request, events)[-1]["response"]["velollm"] == {"cache": "hit"}


def test_events_of_the_same_wire_go_out_as_they_came() -> None:
    raw = b'event: response.output_text.delta\ndata: {"x":1}\n\n'
    events = [
        ChatEvent(text="a", wire="openai.responses", raw=raw),
        ChatEvent(finish_reason="stop", wire="openai.responses", raw=b""),
    ]
    assert wire(ask(), events) == raw
    assert raw not in wire(ask(), [ChatEvent(text="a", wire="openai.chat", raw=raw)])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackendProtocolError("it broke off"), "server_error"),
        (RequestError("it broke off", status=429), "rate_limit_exceeded"),
        (RequestError("it broke off"), "invalid_prompt"),
    ],
)
def test_failures_in_mid_stream(error: VeloError, code: str) -> None:
    def answer(request: ChatRequest) -> bytes:
        renderer = endpoint().stream(request)
        return renderer.event(ChatEvent(text="a")) + renderer.error(error)

    found = frames(answer(ask()))
    failed, last = found[-2:]
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": code, "message": "it broke off"}
    assert [item["status"] for item in failed["response"]["output"]] == ["incomplete"]
    assert (last["type"], last["code"], last["message"], last["param"]) == ("error", error.code, "it broke off", None)
    with client(answer) as sdk, pytest.raises(openai.APIError, match="it broke off"):
        list(sdk.responses.create(model="m", input="Hi", stream=True))


def test_a_failure_before_anything_was_said() -> None:
    found = frames(endpoint().stream(ask()).error(VeloError("no")))
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        "response.failed",
        "error",
    ]


TEXT = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=8)
EVENTS = st.lists(
    st.builds(ChatEvent, text=TEXT)
    | st.builds(ChatEvent, reasoning=TEXT)
    | st.builds(
        lambda index, text: ChatEvent(tool_calls=[ToolCallDelta(index, None, f"f{index}", text)]),
        st.integers(0, 2),
        TEXT,
    ),
    max_size=12,
)


@given(EVENTS)
def test_deltas_add_up_to_the_items(events: list[ChatEvent]) -> None:
    found = streamed(ask(), [*events, ChatEvent(finish_reason="stop", usage=USAGE)])
    said: dict[int, str] = {}
    for body in found:
        if body["type"].endswith(".delta"):
            said[body["output_index"]] = said.get(body["output_index"], "") + body["delta"]
    for index, item in enumerate(found[-1]["response"]["output"]):
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert text == said.get(index, "")
    kinds = {"message": "text", "reasoning": "reasoning"}
    for kind, field in kinds.items():
        whole_text = "".join(getattr(event, field) for event in events)
        items = [item for item in found[-1]["response"]["output"] if item["type"] == kind]
        assert "".join(item["content"][0]["text"] for item in items) == whole_text
