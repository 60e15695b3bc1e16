"""Answers in Ollama's shape, whole and line by line."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.api.ollama import Chat, Embed, Generate, LegacyEmbeddings, render_error
from velollm.api.ollama.answer import Clock, rfc3339
from velollm.api.ollama.lines import LineDecoder, decode_answer
from velollm.api.openai import Minter
from velollm.collector import Collector
from velollm.errors import BackendTimeout
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    Embeddings,
    RequestContext,
    ResponseMeta,
    Timings,
    ToolCallDelta,
    Usage,
)

TIMINGS = Timings(load=1.0, prefill=0.25, decode=0.5, total=2.0)
USAGE = Usage(prompt_tokens=7, completion_tokens=3, timings=TIMINGS)
META = ResponseMeta(id="chatcmpl-1", model="real-name", created=1_700_000_000)
HEAD = {"model": "m", "created_at": "2023-11-14T22:13:20.000000Z"}
COUNTS = {
    "total_duration": 2_000_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_duration": 250_000_000,
    "eval_duration": 500_000_000,
    "prompt_eval_count": 7,
    "eval_count": 3,
}


class Ticks:
    """A clock that moves one second at every look."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def clock() -> Clock:
    return Clock(mint=Minter(clock=lambda: 1_700_000_000.0, token=lambda: "0"), monotonic=Ticks())


def chat(**fields: Any) -> tuple[Chat, ChatRequest]:
    endpoint = Chat(clock())
    payload = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return endpoint, endpoint.parse(payload, orjson.dumps(payload), RequestContext())


def generate(**fields: Any) -> tuple[Generate, ChatRequest]:
    endpoint = Generate(clock())
    payload = {"model": "m", "prompt": "Hi", **fields}
    return endpoint, endpoint.parse(payload, orjson.dumps(payload), RequestContext())


def lines(asked: tuple[Any, ChatRequest], events: list[ChatEvent]) -> list[Any]:
    endpoint, request = asked
    renderer = endpoint.stream(request)
    data = b"".join(renderer.event(event) for event in events) + renderer.end()
    assert data.endswith(b"\n")
    return [orjson.loads(line) for line in data.splitlines()]


def whole(asked: tuple[Any, ChatRequest], events: list[ChatEvent]) -> Any:
    endpoint, request = asked
    collector = Collector()
    for event in events:
        collector.add(event)
    return orjson.loads(orjson.dumps(endpoint.render(request, collector.answer())))


def says(text: str) -> dict[str, Any]:
    return {**HEAD, "message": {"role": "assistant", "content": text}, "done": False}


ANSWER = [ChatEvent(text="Hel", meta=META), ChatEvent(text="lo"), ChatEvent(finish_reason="stop", usage=USAGE)]
LAST = {**HEAD, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", **COUNTS}


def test_a_streamed_chat() -> None:
    assert lines(chat(), ANSWER) == [says("Hel"), says("lo"), LAST]


def test_a_whole_chat() -> None:
    assert whole(chat(), ANSWER) == {**LAST, "message": {"role": "assistant", "content": "Hello"}}


def test_generate() -> None:
    first, _, last = lines(generate(), ANSWER)
    assert first == {**HEAD, "response": "Hel", "done": False}
    context = last["context"]
    assert last == {**HEAD, "response": "", "done": True, "done_reason": "stop", **COUNTS, "context": context}
    assert whole(generate(), ANSWER) == {**last, "response": "Hello"}


def test_durations_are_measured_where_the_engine_does_not_say() -> None:
    asked = chat()
    asked[1].context.marks["received"] = 100.0
    bare = [ChatEvent(text="a"), ChatEvent(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))]
    last = lines(asked, bare)[-1]
    assert (last["total_duration"], last["prompt_eval_duration"], last["eval_duration"]) == (
        2_000_000_000,
        1_000_000_000,
        1_000_000_000,
    )
    assert last["load_duration"] == 0
    assert "total_duration" not in lines(chat(), [ChatEvent(finish_reason="stop")])[-1]


def test_thinking() -> None:
    events = [ChatEvent(reasoning="hm", meta=META), *ANSWER[1:]]
    assert lines(chat(think=True), events)[0]["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert whole(chat(), events)["message"]["thinking"] == "hm"
    assert whole(generate(), events)["thinking"] == "hm"
    unwanted = chat(think=False)
    assert all("thinking" not in line["message"] for line in lines(unwanted, events))
    assert "thinking" not in whole(unwanted, events)["message"]


CALLS = [
    ChatEvent(text="Well", meta=META),
    ChatEvent(tool_calls=[ToolCallDelta(0, "a", "f", '{"x"')]),
    ChatEvent(tool_calls=[ToolCallDelta(1, None, "g", "")]),
    ChatEvent(tool_calls=[ToolCallDelta(0, arguments=":1}"), ToolCallDelta(1, arguments='{"y": [1]}')]),
    ChatEvent(finish_reason="tool_calls", usage=USAGE),
]
RENDERED = [
    {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
    {"id": "call_0", "function": {"index": 1, "name": "g", "arguments": {"y": [1]}}},
]


def test_tool_calls_come_complete() -> None:
    said = lines(chat(), CALLS)
    assert [line["message"].get("tool_calls") for line in said] == [None, [RENDERED[0]], [RENDERED[1]], None]
    assert said[-1]["done_reason"] == "stop"
    answer = whole(chat(), CALLS)
    assert answer["message"] == {"role": "assistant", "content": "Well", "tool_calls": RENDERED}


def test_a_complete_call_does_not_wait_for_the_end() -> None:
    endpoint, request = chat()
    renderer = endpoint.stream(request)
    assert renderer.event(ChatEvent(tool_calls=[ToolCallDelta(0, "a", "f", "{}")])) == b""
    assert b'"name":"f"' in renderer.event(ChatEvent(text="and"))


def test_arguments_that_are_no_object() -> None:
    for text in ("{broken", "[1]", "5"):
        calls = [ChatEvent(tool_calls=[ToolCallDelta(0, "a", "f", text)]), ChatEvent(finish_reason="stop")]
        for message in (lines(chat(), calls)[0]["message"], whole(chat(), calls)["message"]):
            assert message["tool_calls"][0]["function"]["arguments"] == {"__invalid_json__": text}


@pytest.mark.parametrize(
    ("finish", "word"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("content_filter", "stop")],
)
def test_done_reasons(finish: Any, word: str) -> None:
    events = [ChatEvent(text="a"), ChatEvent(finish_reason=finish)]
    assert lines(chat(), events)[-1]["done_reason"] == word
    assert whole(generate(), events)["done_reason"] == word


@pytest.mark.parametrize(
    ("keep_alive", "word"),
    [
        (None, "load"),
        ("5m", "load"),
        (-1, "load"),
        (0, "unload"),
        ("0", "unload"),
        ("0s", "unload"),
        ("0m0s", "unload"),
    ],
)
def test_loading_and_unloading(keep_alive: Any, word: str) -> None:
    events = [ChatEvent(finish_reason="stop")]
    (line,) = lines(chat(messages=[], keep_alive=keep_alive), events)
    assert (line["done"], line["done_reason"], line["message"]["content"]) == (True, word, "")
    assert whole(generate(prompt="", keep_alive=keep_alive), events)["done_reason"] == word


def test_log_probabilities() -> None:
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    events = [ChatEvent(text="a", logprobs={"content": [entry]}), ChatEvent(finish_reason="stop")]
    assert lines(chat(logprobs=True), events)[0]["logprobs"] == [entry]
    assert whole(chat(logprobs=True), events)["logprobs"] == [entry]


def test_other_choices_have_no_room() -> None:
    events = [ChatEvent(text="a"), ChatEvent(text="b", index=1), ChatEvent(finish_reason="stop")]
    assert [line["message"]["content"] for line in lines(chat(), events)] == ["a", ""]


def test_what_is_known_at_the_end_is_in_the_last_line() -> None:
    asked = chat()
    asked[1].context.trailer["cache"] = "hit"
    assert lines(asked, ANSWER)[-1]["velollm"] == {"cache": "hit"}
    assert whole(asked, ANSWER)["velollm"] == {"cache": "hit"}
    raw = ChatEvent(finish_reason="stop", wire="ollama.chat", raw=b'{"done": true, "own": 1}\n')
    assert lines(asked, [raw]) == [{"done": True, "own": 1, "velollm": {"cache": "hit"}}]


def test_lines_of_the_same_wire_go_out_as_they_came() -> None:
    first = b'{"message": {"content":"a"},  "done": false, "new": 1}\n'
    last = b'{"message": {"content":""},  "done": true, "new": 2}\n'
    events = [
        ChatEvent(text="a", wire="ollama.chat", raw=first),
        ChatEvent(finish_reason="stop", wire="ollama.chat", raw=last),
    ]
    endpoint, request = chat()
    renderer = endpoint.stream(request)
    assert [renderer.event(event) for event in events] == [first, b""], "the end may still fail"
    assert renderer.end() == last
    assert lines(generate(), events)[0]["response"] == "a", "another wire is written anew"


def test_a_failure_ends_the_stream_with_an_error_line() -> None:
    endpoint, request = chat()
    renderer = endpoint.stream(request)
    renderer.event(ChatEvent(text="a"))
    renderer.event(ChatEvent(finish_reason="stop"))
    assert orjson.loads(renderer.error(BackendTimeout("too slow"))) == {"error": "too slow"}
    assert render_error(BackendTimeout("too slow"), "req_1") == {"error": "too slow"}


def test_embeddings() -> None:
    payload = {"model": "m", "input": "a"}
    request = Embed().parse(payload, RequestContext())
    result = Embeddings(vectors=[[0.5, 1.0]], model="real", prompt_tokens=3, timings=TIMINGS)
    assert Embed().render(request, payload, result) == {
        "model": "m",
        "embeddings": [[0.5, 1.0]],
        "total_duration": 2_000_000_000,
        "load_duration": 1_000_000_000,
        "prompt_eval_count": 3,
    }
    assert LegacyEmbeddings().render(request, payload, result) == {"embedding": [0.5, 1.0]}


def test_times() -> None:
    assert rfc3339(1_700_000_000.5) == "2023-11-14T22:13:20.500000Z"
    for absurd in (1e30, float("inf"), float("nan"), -1e30):
        assert rfc3339(absurd) == "1970-01-01T00:00:00.000000Z"


PIECES = st.text(max_size=6)
EVENTS = st.lists(
    st.builds(ChatEvent, text=PIECES)
    | st.builds(ChatEvent, reasoning=PIECES)
    | st.builds(
        lambda index, name, arguments: ChatEvent(tool_calls=[ToolCallDelta(index, f"id{index}", name, arguments)]),
        st.integers(0, 3),
        st.sampled_from(("f", "g")),
        st.sampled_from(("{}", '{"a": "ü"}')),
    ),
    max_size=12,
)


@given(EVENTS, st.sampled_from(("stop", "length", "tool_calls")), st.integers(1, 40))
def test_what_is_rendered_is_read_back(events: list[ChatEvent], finish: Any, size: int) -> None:
    """A stream says the same as the whole answer, and the adapter reads both as what they were made from."""
    once = {(delta.index, index) for index, event in enumerate(events) for delta in event.tool_calls}
    firsts = {index: min(place for i, place in once if i == index) for index, _ in once}
    events = [
        event for place, event in enumerate(events) if all(firsts[d.index] == place for d in event.tool_calls)
    ]  # each call in one piece
    answer = [*events, ChatEvent(finish_reason=finish, usage=USAGE)]
    endpoint, request = chat()
    renderer = endpoint.stream(request)
    data = b"".join(renderer.event(event) for event in answer) + renderer.end()
    decoder = LineDecoder("ollama.chat", "test")
    streamed, told = Collector(), Collector()
    for at in range(0, len(data), size):
        for event in decoder.feed(data[at : at + size]):
            streamed.add(event)
    for event in decoder.end():
        streamed.add(event)
    assert decoder.skipped == 0
    for event in answer:
        told.add(event)
    (wanted,) = told.answer().choices
    read = decode_answer(orjson.dumps(endpoint.render(request, told.answer())), "ollama.chat", "test")
    collected = Collector()
    collected.add(read)
    for (found,) in (streamed.answer().choices, collected.answer().choices):
        assert (found.text, found.reasoning) == (wanted.text, wanted.reasoning)
        assert sorted((call.id, call.name, orjson.loads(call.arguments)) for call in found.tool_calls) == sorted(
            (call.id, call.name, orjson.loads(call.arguments)) for call in wanted.tool_calls
        )
        assert found.finish_reason == (
            "length" if finish == "length" else "tool_calls" if wanted.tool_calls else "stop"
        )
    assert streamed.answer().usage == USAGE


@given(st.binary(max_size=200), st.integers(1, 20))
def test_any_bytes_are_read_or_refused(data: bytes, size: int) -> None:
    from velollm.errors import VeloError

    for wire in ("ollama.chat", "ollama.generate"):
        decoder = LineDecoder(wire, "test")
        try:
            for at in range(0, len(data), size):
                decoder.feed(data[at : at + size])
            decoder.end()
        except VeloError:
            pass
        with pytest.raises(VeloError):
            decode_answer(data, wire, "test")
