"""Rendering messages, whole and streamed, and reading them back with the SDK's own models and accumulators."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import anthropic
import httpx2
import orjson
import pytest
from anthropic.types import Message as SDKMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from velollm.api.anthropic import Messages, render_error
from velollm.api.openai import Minter
from velollm.collector import Collector
from velollm.errors import BackendProtocolError, Overloaded, RequestError, VeloError
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    RequestContext,
    ResponseMeta,
    ToolCallDelta,
    Usage,
)

THINK = {"type": "enabled", "budget_tokens": 1024}
USAGE = Usage(prompt_tokens=10, completion_tokens=3, cached_tokens=4, reasoning_tokens=2)
EVENT = TypeAdapter[Any](RawMessageStreamEvent)


def endpoint() -> Messages:
    numbers = itertools.count(1)
    return Messages(Minter(clock=lambda: 1000.9, token=lambda: str(next(numbers))))


def ask(**fields: Any) -> ChatRequest:
    payload = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return endpoint().parse(payload, orjson.dumps(payload), RequestContext(request_id="req_7"))


def whole(request: ChatRequest, events: Sequence[ChatEvent]) -> dict[str, Any]:
    collector = Collector()
    for event in events:
        collector.add(event)
    body = orjson.loads(orjson.dumps(endpoint().render(request, collector.answer())))
    SDKMessage.model_validate(body)
    return dict(body)


def wire(request: ChatRequest, events: Sequence[ChatEvent]) -> bytes:
    renderer = endpoint().stream(request)
    return b"".join(renderer.event(event) for event in events) + renderer.end()


def frames(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Event names and data; every frame has both, and they agree."""
    found = []
    for frame in data.decode().removesuffix("\n\n").split("\n\n"):
        first, second = frame.split("\n")
        body = orjson.loads(second.removeprefix("data: "))
        assert first == f"event: {body['type']}"
        found.append((body["type"], body))
    return found


def streamed(request: ChatRequest, events: Sequence[ChatEvent]) -> list[dict[str, Any]]:
    """The data of all events, each valid, and their blocks one after the other."""
    found = []
    opened = closed = -1
    for name, body in frames(wire(request, events)):
        EVENT.validate_python(body)
        if name == "content_block_start":
            assert opened == closed
            assert body["index"] == opened + 1
            opened = body["index"]
        elif name == "content_block_delta":
            assert body["index"] == opened == closed + 1
        elif name == "content_block_stop":
            closed = body["index"]
            assert closed == opened
        found.append(body)
    assert opened == closed
    assert [body["type"] for body in found[-2:]] == ["message_delta", "message_stop"]
    return found


def client(answer: Callable[[ChatRequest], tuple[int, str, bytes]]) -> anthropic.Anthropic:
    """The real SDK in front of our parser and renderer."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        body = request.read()
        try:
            parsed = endpoint().parse(orjson.loads(body), body, RequestContext(request_id="req_7"))
        except VeloError as error:
            return httpx2.Response(error.status, json=render_error(error, "req_7"))
        status, kind, content = answer(parsed)
        return httpx2.Response(status, headers={"content-type": kind}, content=content)

    transport = httpx2.MockTransport(handle)
    http = httpx2.Client(transport=transport)
    return anthropic.Anthropic(api_key="none", base_url="http://test", http_client=http, max_retries=0)


def says(*events: ChatEvent) -> anthropic.Anthropic:
    def answer(request: ChatRequest) -> tuple[int, str, bytes]:
        if request.stream:
            return 200, "text/event-stream", wire(request, events)
        return 200, "application/json", orjson.dumps(whole(request, events))

    return client(answer)


AGENT = [
    ChatEvent(reasoning="let me ", meta=ResponseMeta(model="m:latest")),
    ChatEvent(reasoning="see"),
    ChatEvent(text="I "),
    ChatEvent(text="look."),
    ChatEvent(tool_calls=[ToolCallDelta(0, "call_a", "f", '{"city":')]),
    ChatEvent(tool_calls=[ToolCallDelta(1, None, "g", ""), ToolCallDelta(0, arguments='"Bern"}')]),
    ChatEvent(tool_calls=[ToolCallDelta(1, arguments="{}")]),
    ChatEvent(finish_reason="tool_calls", usage=USAGE),
]
QUESTION: dict[str, Any] = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}


def test_the_sdk_reads_whole_and_stream_alike() -> None:
    with says(*AGENT) as sdk:
        message = sdk.messages.create(**QUESTION, thinking=THINK)
        with sdk.messages.stream(**QUESTION, thinking=THINK) as stream:
            final = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    for one in (message, final):
        thinking, text, first, second = one.content
        assert (thinking.thinking, text.text) == ("let me see", "I look.")
        assert thinking.signature
        assert (first.id, first.name, first.input) == ("call_a", "f", {"city": "Bern"})
        assert (second.name, second.input) == ("g", {})
        assert second.id.startswith("toolu_")
        assert (one.stop_reason, one.stop_sequence, one.model, one.role) == ("tool_use", None, "m:latest", "assistant")
        assert one.id.startswith("msg_")
        assert (one.usage.input_tokens, one.usage.cache_read_input_tokens, one.usage.output_tokens) == (6, 4, 3)
        assert one.usage.output_tokens_details.thinking_tokens == 2
    assert message.content[0] == final.content[0]


def test_the_sdk_reads_structured_output() -> None:
    class City(BaseModel):
        name: str

    with says(ChatEvent(text='{"name":'), ChatEvent(text='"Bern"}'), ChatEvent(finish_reason="stop")) as sdk:
        assert sdk.messages.parse(**QUESTION, output_format=City).parsed_output == City(name="Bern")
        with sdk.messages.stream(**QUESTION, output_format=City) as stream:
            assert stream.get_final_message().parsed_output == City(name="Bern")


def test_the_event_sequence() -> None:
    events = streamed(
        ask(thinking=THINK), [ChatEvent(reasoning="a"), ChatEvent(text="b"), ChatEvent(finish_reason="stop")]
    )
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["usage"]["input_tokens"] == 0
    assert [events[2]["delta"]["type"], events[3]["delta"]["type"]] == ["thinking_delta", "signature_delta"]
    assert events[5]["content_block"] == {"type": "text", "text": ""}


def test_usage_known_at_the_start_is_said_at_the_start() -> None:
    events = streamed(
        ask(), [ChatEvent(usage=Usage(prompt_tokens=9, cached_tokens=2)), ChatEvent(finish_reason="stop")]
    )
    assert events[0]["message"]["usage"]["input_tokens"] == 7
    assert events[0]["message"]["usage"]["cache_read_input_tokens"] == 2


@pytest.mark.parametrize(
    "fields", [{}, {"thinking": {"type": "disabled"}}, {"thinking": {**THINK, "display": "omitted"}}]
)
def test_thinking_nobody_asked_for_is_not_shown(fields: Any) -> None:
    events = [ChatEvent(reasoning="hm"), ChatEvent(text="a", reasoning="hm"), ChatEvent(finish_reason="stop")]
    assert [block["type"] for block in whole(ask(**fields), events)["content"]] == ["text"]
    assert b"thinking" not in wire(ask(**fields), events)


@pytest.mark.parametrize(
    ("event", "reason", "sequence"),
    [
        (ChatEvent(text="a", finish_reason="stop"), "end_turn", None),
        (ChatEvent(text="a", finish_reason="length"), "max_tokens", None),
        (ChatEvent(text="a", finish_reason="stop", stop_sequence="X"), "stop_sequence", "X"),
        (ChatEvent(text="a", finish_reason="content_filter"), "refusal", None),
        (ChatEvent(tool_calls=[ToolCallDelta(0, "c", "f", "{}")], finish_reason="stop"), "tool_use", None),
        (ChatEvent(tool_calls=[ToolCallDelta(0, "c", "f", "{")], finish_reason="length"), "max_tokens", None),
    ],
)
def test_stop_reasons(event: ChatEvent, reason: str, sequence: str | None) -> None:
    message = whole(ask(), [event])
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert streamed(ask(), [event])[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_an_empty_answer() -> None:
    assert whole(ask(), [ChatEvent(finish_reason="stop")])["content"] == []
    assert [event["type"] for event in streamed(ask(), [])] == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', "nothing", '{"a": 1e999}', '{"a":' * 300 + "1" + "}" * 300])
def test_arguments_that_are_no_object_are_handed_over_as_they_are(arguments: str) -> None:
    event = ChatEvent(tool_calls=[ToolCallDelta(0, "c", "f", arguments)], finish_reason="tool_calls")
    assert whole(ask(), [event])["content"][0]["input"] == {"__invalid_json__": arguments}
    assert streamed(ask(), [event])[2]["delta"]["partial_json"] == arguments


def test_a_call_without_arguments_has_an_empty_input() -> None:
    event = ChatEvent(tool_calls=[ToolCallDelta(0, "c", "f", " ")], finish_reason="tool_calls")
    assert whole(ask(), [event])["content"][0]["input"] == {}


def test_an_engines_own_id_is_kept() -> None:
    events = [ChatEvent(text="a", meta=ResponseMeta(id="msg_own")), ChatEvent(finish_reason="stop")]
    assert whole(ask(), events)["id"] == "msg_own"
    assert streamed(ask(), events)[0]["message"]["id"] == "msg_own"
    assert whole(ask(), [ChatEvent(text="a", meta=ResponseMeta(id="chatcmpl-1"))])["id"].startswith("msg_")


def test_the_trailer() -> None:
    request = ask()
    request.context.trailer["cache"] = "hit"
    events = [ChatEvent(text="a", finish_reason="stop")]
    assert whole(request, events)["velollm"] == {"cache": "hit"}
    assert streamed(request, events)[-2]["velollm"] == {"cache": "hit"}


def test_events_of_the_same_wire_go_out_as_they_came() -> None:
    raw = b'event: content_block_delta\ndata: {"type":"content_block_delta","x":1}\n\n'
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    events = [
        ChatEvent(text="a", wire="anthropic.messages", raw=raw),
        ChatEvent(text="b", wire="anthropic.messages", raw=b""),
        ChatEvent(finish_reason="stop", wire="anthropic.messages", raw=stop),
    ]
    assert wire(ask(), events) == raw + stop
    assert raw not in wire(ask(), [ChatEvent(text="a", wire="openai.chat", raw=raw), ChatEvent(finish_reason="stop")])


def test_a_layer_may_go_on_where_the_upstream_left_off() -> None:
    raw = b"event: ping\ndata: {}\n\n"
    sent = wire(
        ask(), [ChatEvent(text="a", wire="anthropic.messages", raw=raw), ChatEvent(text="b", finish_reason="stop")]
    )
    assert [name for name, _ in frames(sent.removeprefix(raw))] == [
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_sdk_raises_errors_in_mid_stream() -> None:
    def answer(request: ChatRequest) -> tuple[int, str, bytes]:
        renderer = endpoint().stream(request)
        data = renderer.event(ChatEvent(text="a")) + renderer.error(BackendProtocolError("it broke off"))
        return 200, "text/event-stream", data

    with (
        client(answer) as sdk,
        pytest.raises(anthropic.APIStatusError) as caught,
        sdk.messages.stream(**QUESTION) as stream,
    ):
        stream.until_done()
    assert caught.value.body["error"]["type"] == "api_error"
    assert "it broke off" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RequestError("no"), anthropic.BadRequestError),
        (RequestError("no", status=401), anthropic.AuthenticationError),
        (RequestError("no", status=403), anthropic.PermissionDeniedError),
        (RequestError("no", status=404), anthropic.NotFoundError),
        (RequestError("no", status=413), anthropic.RequestTooLargeError),
        (RequestError("no", status=422), anthropic.UnprocessableEntityError),
        (RequestError("no", status=429), anthropic.RateLimitError),
        (Overloaded("no"), anthropic.ServiceUnavailableError),
        (VeloError("no"), anthropic.InternalServerError),
        (VeloError("no", status=504), anthropic.DeadlineExceededError),
    ],
)
def test_the_sdk_knows_our_errors(error: VeloError, kind: type[Exception]) -> None:
    def answer(request: ChatRequest) -> tuple[int, str, bytes]:
        return error.status, "application/json", orjson.dumps(render_error(error, "req_7"))

    with client(answer) as sdk, pytest.raises(kind) as caught:
        sdk.messages.create(**QUESTION)
    assert caught.value.body["request_id"] == "req_7"


def test_the_tool_runner_resends_everything_when_threads_are_refused() -> None:
    asked: list[Any] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        body = orjson.loads(request.read())
        asked.append(body)
        try:
            parsed = endpoint().parse(body, b"", RequestContext())
        except VeloError as error:
            return httpx2.Response(error.status, json=render_error(error, "req_7"))
        last = parsed.messages[-1]
        call = ToolCallDelta(0, "call_a", "add", '{"a": 2, "b": 3}')
        event = ChatEvent(text=f"It is {last.text}.", finish_reason="stop")
        if last.role != "tool":
            event = ChatEvent(tool_calls=[call], finish_reason="tool_calls")
        return httpx2.Response(200, json=whole(parsed, [event]))

    @anthropic.beta_tool
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return str(a + b)

    http = httpx2.Client(transport=httpx2.MockTransport(handle))
    with anthropic.Anthropic(api_key="none", base_url="http://test", http_client=http, max_retries=0) as sdk:
        runner = sdk.beta.messages.tool_runner(**QUESTION, tools=[add])
        final = runner.until_done()
    assert final.content[0].text == "It is 5."
    assert [message["role"] for message in asked[-1]["messages"]] == ["user", "assistant", "user"]
    assert "thread" not in asked[-1]


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
def test_no_piece_is_lost_whatever_the_order(events: list[ChatEvent]) -> None:
    request = ask(thinking=THINK)
    found = streamed(request, [*events, ChatEvent(finish_reason="stop", usage=USAGE)])
    said = {"text": "", "thinking": ""}
    arguments: dict[int, str] = {}
    for body in found:
        if body["type"] == "content_block_delta":
            delta = body["delta"]
            for key in said:
                said[key] += delta.get(key, "")
            arguments[body["index"]] = arguments.get(body["index"], "") + delta.get("partial_json", "")
    assert said["text"] == "".join(event.text for event in events)
    assert said["thinking"] == "".join(event.reasoning for event in events)
    pieces = [call for event in events for call in event.tool_calls]
    expected = ["".join(call.arguments for call in pieces if call.index == index) for index in range(3)]
    assert sorted(filter(None, arguments.values())) == sorted(filter(None, expected))
