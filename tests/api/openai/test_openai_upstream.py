"""Encoding requests for engines, and decoding what they answer."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.api.openai import ChatCompletions, Completions
from velollm.api.openai.upstream import StreamDecoder, decode_answer, encode_chat, request_body, wire_of
from velollm.collector import Collector
from velollm.errors import BackendProtocolError, BackendRefused, ContextLengthExceeded
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    ImagePart,
    Message,
    RequestContext,
    ResponseFormat,
    TextPart,
    Timings,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)

USER = {"role": "user", "content": "Hi"}


def parse(body: bytes) -> ChatRequest:
    return ChatCompletions().parse(orjson.loads(body), body, RequestContext())


def chat(**fields: Any) -> ChatRequest:
    return parse(orjson.dumps({"model": "m", "messages": [USER], **fields}))


# ---- the client's own bytes ------------------------------------------------------------------------------------------


def test_a_request_goes_on_as_it_came() -> None:
    body = b'{ "model" : "m", "x":1, "messages":[{"role":"user","content":"Hi"}] }'
    assert request_body(parse(body)) == body


def test_usage_is_asked_for_in_streams() -> None:
    body = b' { "model" : "m", "stream":true, "messages":[{"role":"user","content":"Hi"}] }'
    sent = request_body(parse(body))
    assert sent.endswith(body[3:])
    assert orjson.loads(sent) == {**orjson.loads(body), "stream_options": {"include_usage": True}}
    for options in ({}, {"include_usage": False}, {"include_usage": True, "more": 1}):
        sent = request_body(chat(stream=True, stream_options=options))
        assert orjson.loads(sent)["stream_options"] == {**options, "include_usage": True}
    assert "stream_options" not in orjson.loads(request_body(chat(stream_options={"include_usage": True})))


def test_a_renamed_model_reaches_the_engine() -> None:
    sent = orjson.loads(request_body(chat(x=[1]).replace(model="real")))
    assert sent == {"model": "real", "messages": [USER], "x": [1]}


def test_empty_tools_are_no_tools() -> None:
    assert orjson.loads(request_body(chat(tools=[], tool_choice="auto"))) == {"model": "m", "messages": [USER]}


# ---- typed requests --------------------------------------------------------------------------------------------------


def test_typed_request() -> None:
    request = ChatRequest(
        model="m", stream=True, temperature=0, top_k=5, repeat_penalty=1.2, stop=["a"], n=2, think="high", seed=3,
        max_tokens=9, logprobs=True, top_logprobs=2, keep_alive="5m", options={"mirostat": 2, "num_ctx": 5},
        messages=[
            Message(role="developer", content="Be brief."),
            Message(role="user", content=[TextPart(text="?"), ImagePart(data="AA", media_type="image/png")]),
        ],
        tools=[Tool(name="f", parameters={"type": "object"})],
        tool_choice=ToolChoice(mode="named", name="f"),
        response_format=ResponseFormat(kind="json_schema", schema={"type": "object"}),
        extra={"stream_options": {"more": 1}, "other": None, "functions": [1]},
    )  # fmt: skip
    assert encode_chat(request) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True, "more": 1},
        "temperature": 0,
        "top_k": 5,
        "repeat_penalty": 1.2,
        "repetition_penalty": 1.2,
        "stop": ["a"],
        "n": 2,
        "seed": 3,
        "max_tokens": 9,
        "mirostat": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "high",
        "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                ],
            },
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        "other": None,
    }


def test_only_what_is_set_is_sent() -> None:
    request = ChatRequest(messages=[Message(role="user", content="Hi")])
    assert encode_chat(request) == {"messages": [USER]}


def test_tool_results_find_their_calls() -> None:
    calls = [ToolCall(id="", name="f", arguments="{}"), ToolCall(id="", name="g", arguments="{}")]
    messages = [
        Message(role="assistant", tool_calls=calls),
        Message(role="tool", name="g", content=[TextPart(text="1"), TextPart(text="2")]),
        Message(role="tool", content="3"),
    ]
    first, second, third = encode_chat(ChatRequest(messages=messages))["messages"]
    assert first["content"] is None
    ids = [call["id"] for call in first["tool_calls"]]
    assert len(set(ids)) == 2
    assert (second["tool_call_id"], third["tool_call_id"]) == (ids[1], ids[0])
    assert second["content"] == "1\n2"


def test_prompts_choose_their_endpoint() -> None:
    assert wire_of(ChatRequest(prompt="a", raw=True)) == "openai.completions"
    assert wire_of(ChatRequest(prompt=[1])) == "openai.completions"
    assert wire_of(ChatRequest(prompt="a", suffix="b")) == "openai.completions"
    templated = ChatRequest(prompt="a", messages=[Message(role="system", content="s")])
    assert wire_of(templated) == "openai.chat"
    assert [turn["role"] for turn in orjson.loads(request_body(templated))["messages"]] == ["system", "user"]
    body = orjson.loads(request_body(ChatRequest(prompt="a", raw=True, logprobs=True, echo=True, max_tokens=2)))
    assert body == {"prompt": "a", "logprobs": 0, "echo": True, "max_tokens": 2}


names = st.text(min_size=1, max_size=6).map(lambda name: "x_" + name)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
unknown = st.dictionaries(names, values, max_size=3)


@given(unknown, unknown, unknown, unknown, unknown)
def test_unknown_fields_survive_the_typed_way(top: Any, turn: Any, part: Any, tool: Any, function: Any) -> None:
    payload = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a", **part}], **turn}],
        "tools": [{"type": "function", "function": {"name": "f", **function}, **tool}],
        **top,
    }
    request = parse(orjson.dumps(payload))
    assert orjson.loads(request_body(request.replace(temperature=1))) == {**payload, "temperature": 1}
    again = encode_chat(parse(orjson.dumps(encode_chat(request))))
    assert again == payload


# ---- streams ---------------------------------------------------------------------------------------------------------


def chunk(*choices: Any, **fields: Any) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "u"}
    return orjson.dumps({**head, "choices": list(choices), **fields})


def piece(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish}


def frame(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def decode(*datas: bytes, wire: str = "openai.chat") -> list[ChatEvent]:
    decoder = StreamDecoder(wire, "b")
    events = [event for data in datas for event in decoder.frame(data, frame(data))]
    decoder.close()
    return events


GOOD = [
    chunk(piece(role="assistant", content="")),
    chunk(piece(content="He")),
    chunk(piece(content="y")),
    chunk(piece("stop")),
    chunk(usage={"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}),
    b"[DONE]",
]


def test_plain_stream_keeps_its_bytes() -> None:
    events = decode(*GOOD)
    assert [event.raw for event in events] == [frame(data) for data in GOOD[:-1]]
    assert [event.text for event in events] == ["", "He", "y", "", ""]
    assert events[3].finish_reason == "stop"
    assert events[4].usage == Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    meta = events[0].meta
    assert meta is not None
    assert (meta.id, meta.model, meta.created) == ("chatcmpl-1", "u", 7)


def test_what_cannot_be_read_is_left_out() -> None:
    garbage = [b"{", b"[]", b"5", b"null", b"\xff\xfe", b'{"x":1}', b'{"choices":5}', b'{"choices":[5]}', b"NaN",
               b'{"choices":[{"delta":{"content":5},"index":0}]}',
               b'{"choices":[{"index":0,"delta":{"content":"\xff"}}]}',
               b"[" * 60_000]  # fmt: skip
    decoder = StreamDecoder("openai.chat", "b")
    mixed = [*GOOD[:2], *garbage, *GOOD[2:], b"after the end"]
    events = [event for data in mixed for event in decoder.frame(data, frame(data))]
    decoder.close()
    assert "".join(event.text for event in events) == "Hey"
    assert decoder.skipped == len(garbage)
    assert all(isinstance(orjson.loads(event.raw[6:]), dict) for event in events if event.raw)


@pytest.mark.parametrize("missing", [5, 3])
def test_a_missing_end_is_an_error(missing: int) -> None:
    with pytest.raises(BackendProtocolError):
        decode(*(data for number, data in enumerate(GOOD) if number != missing))


def test_every_choice_must_finish() -> None:
    with pytest.raises(BackendProtocolError, match="finish reason"):
        decode(*GOOD[:4], chunk(piece(index=1, role="assistant")), b"[DONE]")
    with pytest.raises(BackendProtocolError, match="finish reason"):
        decode(b"[DONE]")


@pytest.mark.parametrize(
    ("data", "event", "kind", "status"),
    [
        (b'{"error":{"message":"boom","code":503}}', "", BackendRefused, 503),
        (b'{"error":"boom"}', "", BackendRefused, 502),
        (b'{"message":"boom"}', "error", BackendRefused, 502),
        (b"boom", "error", BackendRefused, 502),
        (b'{"choices":[],"error":{"message":"boom"}}', "", BackendRefused, 502),
        (b'{"error":{"message":"maximum context length is 5"}}', "", ContextLengthExceeded, 422),
    ],
)
def test_errors_in_band(data: bytes, event: str, kind: type[Exception], status: int) -> None:
    with pytest.raises(kind) as caught:
        StreamDecoder("openai.chat", "b").frame(data, frame(data), event)
    assert caught.value.status == status  # type: ignore[attr-defined]


def test_an_engine_that_breaks_off() -> None:
    with pytest.raises(BackendProtocolError, match="broke off"):
        decode(GOOD[0], chunk(piece("abort")))


@pytest.mark.parametrize(
    ("word", "reason", "kept"),
    [
        ("stop", "stop", True),
        ("length", "length", True),
        ("eos", "stop", False),
        ("function_call", "tool_calls", False),
    ],
)
def test_finish_words(word: str, reason: str, kept: bool) -> None:
    event = decode(GOOD[0], chunk(piece(word)), b"[DONE]")[1]
    assert event.finish_reason == reason
    assert (event.raw is not None) == kept


def test_chunks_that_break_the_schema_are_rendered_anew() -> None:
    odd = [
        chunk({"delta": {"role": "assistant", "content": "a"}, "finish_reason": None}),
        chunk({"index": 0, "delta": {"content": "b"}}),
        chunk(piece(content="c"), usage={"prompt_tokens": 1, "completion_tokens": 1}),
        chunk(piece("stop"), usage={"prompt_tokens": 0, "completion_tokens": 0}),
    ]
    events = decode(*odd, b"[DONE]")
    assert "".join(event.text for event in events) == "abc"
    assert all(event.raw is None for event in events)
    assert [event.usage is not None for event in events] == [False, False, True, False]


def test_a_foreign_frame_is_put_into_plain_form() -> None:
    decoder = StreamDecoder("openai.chat", "b")
    data = GOOD[0].replace(b",", b",\n", 1)
    events = decoder.frame(data, b"id: 5\r\ndata:" + data + b"\r\n\r\n")
    assert events[0].raw is not None
    assert events[0].raw.count(b"\n") == 2
    assert orjson.loads(events[0].raw[6:]) == orjson.loads(GOOD[0])


def call(arguments: Any = None, **fields: Any) -> dict[str, Any]:
    name = fields.pop("name", None)
    return {**fields, "function": {**({"name": name} if name else {}), "arguments": arguments}}


def deltas(*calls: list[dict[str, Any]]) -> tuple[list[ToolCallDelta], bool]:
    events = decode(
        GOOD[0], *(chunk(piece(tool_calls=group)) for group in calls), chunk(piece("tool_calls")), b"[DONE]"
    )
    return [delta for event in events for delta in event.tool_calls], all(event.raw is not None for event in events)


def test_tool_calls_as_they_should_be() -> None:
    assert deltas(
        [call("", index=0, id="a", name="f")], [call("{}", index=0)], [call("{}", index=1, id="b", name="g")]
    ) == (
        [ToolCallDelta(0, "a", "f", ""), ToolCallDelta(0, None, None, "{}"), ToolCallDelta(1, "b", "g", "{}")],
        True,
    )


@pytest.mark.parametrize(
    "calls",
    [
        ([call("{", id="a", name="f")], [call("}")], [call("{}", id="b", name="g")]),
        ([call("{", index=0, id="a", name="f")], [call("}", index=0)], [call("{}", index=0, id="b", name="g")]),
        ([call("{", index=1, id="a", name="f")], [call("}", index=1)], [call("{}", index=2, id="b", name="g")]),
        (
            [call("{", index=0, id="a", name="f")],
            [call("}", index=0, id="a", name="f")],
            [call({}, index=1, id="b", name="g")],
        ),
    ],
)
def test_tool_calls_as_engines_send_them(calls: Any) -> None:
    found, kept = deltas(*calls)
    assert found == [
        ToolCallDelta(0, "a", "f", "{"),
        ToolCallDelta(0, None, None, "}"),
        ToolCallDelta(1, "b", "g", "{}"),
    ]
    assert not kept


def test_reasoning_under_both_names() -> None:
    events = decode(
        GOOD[0], chunk(piece(reasoning_content="a")), chunk(piece(reasoning="b")), chunk(piece("stop")), b"[DONE]"
    )
    assert "".join(event.reasoning for event in events) == "ab"


def test_several_choices_in_one_chunk() -> None:
    both = chunk(piece(role="assistant", content="a"), piece(index=1, role="assistant", content="b"))
    events = decode(both, chunk(piece("stop"), piece("length", 1)), b"[DONE]")
    assert [(event.index, event.raw) for event in events[:2]] == [(0, frame(both)), (1, b"")]


def test_counts_of_llama_server() -> None:
    timings = {"prompt_n": 4, "cache_n": 6, "predicted_n": 5, "prompt_ms": 20.0, "predicted_ms": 50}
    events = decode(*GOOD[:4], chunk(timings=timings), b"[DONE]")
    assert events[-1].usage == Usage(
        prompt_tokens=10, completion_tokens=5, cached_tokens=6, timings=Timings(prefill=0.02, decode=0.05)
    )


def test_completion_stream() -> None:
    datas = [
        orjson.dumps({"id": "cmpl-1", "choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in "ab"
    ]
    end = orjson.dumps({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    events = decode(*datas, end, b"[DONE]", wire="openai.completions")
    assert "".join(event.text for event in events) == "ab"
    assert [event.wire for event in events] == ["openai.completions"] * 3


@given(st.binary(max_size=60) | st.builds(orjson.dumps, values) | st.builds(lambda value: chunk(value), values))
def test_no_frame_breaks_the_decoder(data: bytes) -> None:
    decoder = StreamDecoder("openai.chat", "b")
    for event in decoder.frame(data, frame(data)):
        assert isinstance(event, ChatEvent)


# ---- whole answers ---------------------------------------------------------------------------------------------------


def answer(*choices: Any, **fields: Any) -> bytes:
    kind = "chat.completion" if "message" in choices[0] else "text_completion"
    head = {"id": "chatcmpl-1", "object": kind, "created": 7, "model": "u"}
    return orjson.dumps({**head, "choices": list(choices), **fields})


def test_whole_answer() -> None:
    body = answer(
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hey", "reasoning_content": "hm"},
            "finish_reason": "stop",
        },
        {
            "index": 1,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            "finish_reason": "tool_calls",
        },
        usage={"prompt_tokens": 3, "completion_tokens": 2},
    )
    events = decode_answer(body, "openai.chat", "b")
    assert orjson.loads(events[0].raw or b"") == with_nulls(body)
    assert events[1].raw == b""
    collector = Collector()
    for event in events:
        collector.add(event)
    found = collector.answer()
    assert found.complete
    assert (found.choices[0].text, found.choices[0].reasoning) == ("Hey", "hm")
    assert found.choices[1].tool_calls == [ToolCall(id="c", name="f", arguments="{}")]
    assert found.usage == Usage(prompt_tokens=3, completion_tokens=2)


def with_nulls(body: bytes) -> Any:
    """An answer with all that OpenAI's schema has as "required", if only as null."""
    value = orjson.loads(body)
    for choice in value["choices"]:
        choice.setdefault("logprobs", None)
        choice["message"].setdefault("refusal", None)
        choice["message"].setdefault("content", None)
    return value


def test_an_answer_that_has_everything_keeps_its_bytes() -> None:
    message = {"role": "assistant", "content": "Hey", "refusal": None}
    body = answer({"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}, mark=1)
    assert decode_answer(body, "openai.chat", "b")[0].raw == body


@pytest.mark.parametrize("field", ["id", "object", "created", "model"])
def test_what_lacks_a_field_is_written_anew(field: str) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hey"}, "finish_reason": "stop"}
    body = orjson.loads(answer(choice))
    del body[field]
    assert decode_answer(orjson.dumps(body), "openai.chat", "b")[0].raw is None
    begin = orjson.loads(chunk({"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None}))
    stop = orjson.loads(chunk({"index": 0, "delta": {}, "finish_reason": "stop"}))
    del begin[field], stop[field]
    assert [event.raw for event in decode(orjson.dumps(begin), orjson.dumps(stop), b"[DONE]")] == [None, None]


def test_chunks_have_the_time_of_the_first() -> None:
    """llama-server stamps each with its own."""
    begin = chunk({"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}, created=7)
    later = chunk({"index": 0, "delta": {"content": '"created":9'}, "finish_reason": None}, created=9, timings={"a": 1})
    stop = chunk({"index": 0, "delta": {}, "finish_reason": "stop"}, created=10)
    events = decode(begin, later, stop, b"[DONE]")
    assert [event.raw for event in events] == [
        frame(begin), frame(later.replace(b'"created":9,', b'"created":7,')), frame(stop.replace(b":10,", b":7,")),
    ]  # fmt: skip


def test_a_chunk_of_another_id_is_written_anew() -> None:
    begin = chunk({"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None})
    other = chunk({"index": 0, "delta": {"content": "b"}, "finish_reason": None}, id="chatcmpl-2")
    spaced = chunk({"index": 0, "delta": {}, "finish_reason": "stop"}).replace(b'"created":7', b'"created": 8')
    assert [event.raw for event in decode(begin, other, spaced, b"[DONE]")] == [frame(begin), None, None]


@pytest.mark.parametrize("stream", [True, False])
def test_completions_with_the_log_probabilities_of_chat_are_written_anew(stream: bool) -> None:
    """llama-server's completions have them in that form; OpenAI's clients look for the other."""
    logprobs = {"content": [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}]}
    choice = {"index": 0, "text": "a", "finish_reason": "stop", "logprobs": logprobs}
    body = answer(choice)
    wire = "openai.completions"
    event = decode(body, b"[DONE]", wire=wire)[0] if stream else decode_answer(body, wire, "b")[0]
    assert event.logprobs == logprobs
    assert event.raw is None


def test_whole_completion() -> None:
    body = answer(
        {"index": 0, "text": "abc", "finish_reason": "length", "logprobs": {"tokens": ["abc"], "token_logprobs": [-1]}}
    )
    event = decode_answer(body, "openai.completions", "b")[0]
    assert (event.text, event.finish_reason, event.wire) == ("abc", "length", "openai.completions")
    assert event.logprobs == {"content": [{"token": "abc", "logprob": -1, "bytes": [97, 98, 99], "top_logprobs": []}]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b'{"choices":null}',
        b'{"choices":[]}',
        b'{"choices":[1]}',
        b'{"choices":[{}]}',
        b'{"choices":[{"index":0,"message":{"content":"a"}}]}',
        b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"message":{"content":NaN},"finish_reason":"stop"}]}',
        b'{"choices":[{"index":0,"message":{"content":5},"finish_reason":"stop"}]}',
        b'{"choices":[{"index":0,"message":null,"finish_reason":"stop"}]}',
        b"[" * 60_000,
    ],
)
def test_malformed_answers(body: bytes) -> None:
    with pytest.raises(BackendProtocolError):
        decode_answer(body, "openai.chat", "b")


def test_an_error_with_status_200() -> None:
    with pytest.raises(BackendRefused, match="boom"):
        decode_answer(b'{"error":{"message":"boom"}}', "openai.chat", "b")


def test_completions_go_on_as_they_came() -> None:
    body = b'{"prompt":"a","model":"m"}'
    request = Completions().parse(orjson.loads(body), body, RequestContext())
    assert request_body(request) == body
