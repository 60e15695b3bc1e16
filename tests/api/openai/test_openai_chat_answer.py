"""Rendering chat answers, whole and streamed, checked with the SDK's own models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from velollm.api.openai import ChatCompletions, Minter
from velollm.errors import BackendProtocolError
from velollm.messages import (
    ChatAnswer,
    ChatEvent,
    ChatRequest,
    Choice,
    RequestContext,
    ResponseMeta,
    ToolCall,
    ToolCallDelta,
    Usage,
)

USAGE = Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=3, reasoning_tokens=2)


def endpoint() -> ChatCompletions:
    numbers = itertools.count(1)
    return ChatCompletions(Minter(clock=lambda: 1000.9, token=lambda: str(next(numbers))))


def ask(**changes: Any) -> ChatRequest:
    return ChatRequest(model="m", **changes)


def lines(wire: bytes) -> list[str]:
    text = wire.decode()
    assert text.endswith("\n\n")
    frames = text[:-2].split("\n\n")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [frame.removeprefix("data: ") for frame in frames]


def stream(request: ChatRequest, events: Iterable[ChatEvent]) -> list[dict[str, Any]]:
    renderer = endpoint().stream(request)
    wire = b"".join(renderer.event(event) for event in events) + renderer.end()
    *chunks, done = lines(wire)
    assert done == "[DONE]"
    parsed = [orjson.loads(chunk) for chunk in chunks]
    for chunk in parsed:
        ChatCompletionChunk.model_validate(chunk)
        for choice in chunk["choices"]:
            assert choice.keys() == {"index", "delta", "logprobs", "finish_reason"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in parsed}) == 1
    return parsed


def test_whole_answer() -> None:
    answer = ChatAnswer(choices=[Choice(text="Hi", finish_reason="stop")], usage=USAGE)
    body = endpoint().render(ask(), answer)
    assert ChatCompletion.model_validate(body).choices[0].message.content == "Hi"
    assert body == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "system_fingerprint": "fp_velollm",
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


def test_whole_answer_with_calls_and_reasoning() -> None:
    calls = [ToolCall(id="", name="f", arguments="{}"), ToolCall(id="x", name="g", arguments="")]
    answer = ChatAnswer(
        choices=[Choice(reasoning="hm", tool_calls=calls, finish_reason="stop")],
        meta=ResponseMeta(id="chatcmpl-up", model="real", created=5),
    )
    body = endpoint().render(ask(context=RequestContext(trailer={"cache": "miss"})), answer)
    ChatCompletion.model_validate(body)
    choice = body["choices"][0]
    assert (body["id"], body["model"], body["created"], body["velollm"]) == (
        "chatcmpl-up",
        "real",
        5,
        {"cache": "miss"},
    )
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "x", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]


def test_clients_of_functions_get_function_calls() -> None:
    request = ask(extra={"functions": [{}]})
    call = ToolCall(id="", name="f", arguments="{}")
    body = endpoint().render(request, ChatAnswer(choices=[Choice(tool_calls=[call], finish_reason="tool_calls")]))
    assert body["choices"][0]["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert body["choices"][0]["finish_reason"] == "function_call"
    deltas = [ToolCallDelta(0, "c", "f"), ToolCallDelta(0, arguments="{}")]
    chunks = stream(
        request, [*(ChatEvent(tool_calls=[delta]) for delta in deltas), ChatEvent(finish_reason="tool_calls")]
    )
    assert [chunk["choices"][0]["delta"].get("function_call") for chunk in chunks[1:3]] == [
        {"name": "f", "arguments": ""},
        {"arguments": "{}"},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_stream_of_text() -> None:
    chunks = stream(ask(), [ChatEvent("He"), ChatEvent("y", finish_reason="stop"), ChatEvent(usage=USAGE)])
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "He"},
        {"content": "y"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_comes_alone_and_last_when_asked_for() -> None:
    events = [ChatEvent("Hey"), ChatEvent(finish_reason="stop", usage=USAGE)]
    *chunks, last = stream(ask(include_usage=True), events)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 12
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)


def test_trailer_rides_on_the_last_chunk() -> None:
    context = RequestContext(trailer={"repaired": 1})
    events = [ChatEvent("Hey"), ChatEvent(finish_reason="stop", usage=USAGE)]
    for include_usage in (True, False):
        *others, last = stream(ask(include_usage=include_usage, context=context), events)
        assert last["velollm"] == {"repaired": 1}
        assert not any("velollm" in chunk for chunk in others)


def test_tool_call_deltas() -> None:
    chunks = stream(
        ask(),
        [
            ChatEvent(reasoning="hm"),
            ChatEvent(tool_calls=[ToolCallDelta(0, None, "f", "{")]),
            ChatEvent(tool_calls=[ToolCallDelta(0, "late", "f", "}"), ToolCallDelta(1, "c2", "g", "{}")]),
            ChatEvent(finish_reason="stop"),
        ],
    )
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:]] == [
        {"reasoning_content": "hm"},
        {
            "tool_calls": [
                {"index": 0, "id": "call_2", "type": "function", "function": {"name": "f", "arguments": "{"}},
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]
        },
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_pieces_of_one_call_come_as_one_delta() -> None:
    """Instructor reads the first delta of a chunk, and no other."""
    pieces = [ToolCallDelta(0, "c1", "f"), ToolCallDelta(0, arguments='{"a":'), ToolCallDelta(0, arguments="1}")]
    chunks = stream(ask(), [ChatEvent(tool_calls=pieces, finish_reason="tool_calls")])
    called = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:]] == [{"tool_calls": [called]}, {}]


def test_choices_start_one_by_one() -> None:
    events = [
        ChatEvent("a"),
        ChatEvent("b", index=1),
        ChatEvent(finish_reason="stop"),
        ChatEvent(finish_reason="length", index=1),
    ]
    chunks = stream(ask(n=2), events)
    seen = [(chunk["choices"][0]["index"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]
    assert seen == [(0, None), (0, None), (1, None), (1, None), (0, "stop"), (1, "length")]


def test_an_empty_answer_still_has_a_role() -> None:
    chunks = stream(ask(), [ChatEvent(finish_reason="stop")])
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant", None]


def test_logprobs() -> None:
    entry = {"token": "H", "logprob": -0.1, "bytes": [72], "top_logprobs": []}
    chunks = stream(ask(), [ChatEvent("H", logprobs={"content": [entry]}), ChatEvent(finish_reason="stop")])
    assert chunks[1]["choices"][0]["logprobs"] == {"content": [entry], "refusal": None}


def raw(**choice: Any) -> bytes:
    body = {"id": "chatcmpl-up", "created": 1, "model": "u", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + orjson.dumps(body) + b"\n\n"


def test_bytes_of_the_same_wire_go_out_as_they_came() -> None:
    frames = [raw(delta={"role": "assistant"}, x=1), raw(delta={"content": "a"}), raw(delta={}, finish_reason="stop")]
    events = [
        ChatEvent(meta=ResponseMeta(id="chatcmpl-up"), wire="openai.chat", raw=frames[0]),
        ChatEvent("a", wire="openai.chat", raw=frames[1]),
        ChatEvent(finish_reason="stop", wire="openai.chat", raw=frames[2]),
        ChatEvent(usage=USAGE, wire="openai.chat", raw=b'data: {"choices":[],"usage":{}}\n\n'),
    ]
    renderer = endpoint().stream(ask())
    wire = b"".join(renderer.event(event) for event in events) + renderer.end()
    assert wire == b"".join(frames) + b"data: [DONE]\n\n"
    renderer = endpoint().stream(ask(include_usage=True, context=RequestContext(trailer={"a": 1})))
    wire = b"".join(renderer.event(event) for event in events) + renderer.end()
    last = b'data: {"choices":[],"usage":{},"velollm":{"a":1}}\n\n'
    frames = [frame.removesuffix(b"}\n\n") + b',"usage":null}\n\n' for frame in frames]  # all but the last have none
    assert wire == b"".join(frames) + last + b"data: [DONE]\n\n"


def test_another_wire_is_rendered_anew() -> None:
    renderer = endpoint().stream(ask())
    wire = renderer.event(ChatEvent("a", wire="ollama.chat", raw=b'{"message":{}}\n'))
    assert b"ollama" not in wire
    assert [orjson.loads(line)["choices"][0]["delta"].get("content") for line in lines(wire)] == ["", "a"]


def test_own_chunks_among_foreign_bytes_share_their_identity() -> None:
    renderer = endpoint().stream(ask())
    meta = ResponseMeta(id="chatcmpl-up", created=1, model="u")
    first = raw(delta={"role": "assistant"}, index=0)
    assert renderer.event(ChatEvent(meta=meta, wire="openai.chat", raw=first)) == first
    chunk = orjson.loads(lines(renderer.event(ChatEvent("b")))[0])
    assert (chunk["id"], chunk["created"], chunk["model"]) == ("chatcmpl-up", 1, "u")
    assert chunk["choices"][0]["delta"] == {"content": "b"}


def test_a_failure_takes_back_the_finish() -> None:
    renderer = endpoint().stream(ask())
    sent = renderer.event(ChatEvent("a")) + renderer.event(ChatEvent(finish_reason="stop"))
    sent += renderer.error(BackendProtocolError("it broke off"))
    frames = [orjson.loads(line) for line in lines(sent)]
    assert [frame["choices"][0]["finish_reason"] for frame in frames[:-1]] == [None, None]
    assert frames[-1] == {
        "error": {"message": "it broke off", "type": "server_error", "param": None, "code": "backend_protocol_error"}
    }


@given(st.lists(st.text(max_size=5), max_size=8))
def test_text_comes_through_exactly(pieces: list[str]) -> None:
    chunks = stream(ask(), [*(ChatEvent(piece) for piece in pieces), ChatEvent(finish_reason="stop")])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "".join(pieces)


@pytest.mark.parametrize("text", ["", "x"])
def test_content_is_null_only_beside_calls(text: str) -> None:
    body = endpoint().render(ask(), ChatAnswer(choices=[Choice(text=text, finish_reason="stop")]))
    assert body["choices"][0]["message"]["content"] == text
