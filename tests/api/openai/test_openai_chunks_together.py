"""Chunks that come at once: whatever the cuts, the same texts and the same bytes, in fewer events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.api.openai import ChatCompletions
from velollm.api.openai.upstream import StreamDecoder
from velollm.api.sse import SSEDecoder
from velollm.collector import Collector
from velollm.errors import BackendRefused
from velollm.messages import ChatEvent, RequestContext

WIRES = ("openai.chat", "openai.completions")
KINDS = {"openai.chat": "chat.completion.chunk", "openai.completions": "text_completion"}
TEXTS = st.text(max_size=6) | st.sampled_from(["c1", "m", '"', "\\n", "\n", "é", "\u2028", "}\n\n", "probe of a text"])


def chunk(wire: str, text: str, *, finish: str | None = None, created: int = 7) -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"delta": {"content": text}} if wire == "openai.chat" else {"text": text}
    fields = {"id": "c1", "object": KINDS[wire], "created": created, "model": "m", "choices": [choice]}
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def stream(wire: str, texts: Sequence[str], created: Sequence[int] = ()) -> bytes:
    times = [*created, *[7] * len(texts)]
    frames = [chunk(wire, text, created=time) for text, time in zip(texts, times, strict=False)]
    return b"".join([chunk(wire, ""), *frames, chunk(wire, "", finish="stop"), b"data: [DONE]\n\n"])


def decode(wire: str, pieces: Sequence[bytes]) -> list[ChatEvent]:
    decoder, frames = StreamDecoder(wire, "b"), SSEDecoder()
    events = [event for piece in pieces for event in decoder.read(frames.feed(piece))]
    events += list(decoder.read(frames.end()))
    decoder.close()
    return events


def one_by_one(wire: str, data: bytes) -> list[ChatEvent]:
    decoder = StreamDecoder(wire, "b")
    return [event for frame in SSEDecoder().feed(data) for event in decoder.frame(frame.data, frame.raw)]


def text_of(events: Sequence[ChatEvent]) -> str:
    return "".join(event.text for event in events)


@given(st.sampled_from(WIRES), st.lists(TEXTS, max_size=12), st.lists(st.sampled_from([7, 8]), max_size=12), st.data())
def test_same_whatever_the_cuts(wire: str, texts: list[str], created: list[int], data: st.DataObject) -> None:
    body = stream(wire, texts, created)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    events, expected = decode(wire, pieces), one_by_one(wire, body)
    assert text_of(events) == "".join(texts) == text_of(expected)
    assert b"".join(event.raw or b"" for event in events) == b"".join(event.raw or b"" for event in expected)
    assert sum(event.pieces for event in events) == len(expected) == len(texts) + 2


@pytest.mark.parametrize("wire", WIRES)
def test_what_comes_at_once_is_one_event(wire: str) -> None:
    first, *rest = decode(wire, [chunk(wire, ""), b"".join(chunk(wire, text) for text in "abcde"), stream(wire, [])])
    assert first.text == ""
    # the first of them says what the others look like
    assert [(event.text, event.pieces) for event in rest[:2]] == [("a", 1), ("bcde", 4)]
    assert rest[1].raw == b"".join(chunk(wire, text) for text in "bcde")


def test_a_text_that_stands_elsewhere_as_well() -> None:
    odd = [chunk("openai.chat", text) for text in ("m", "c1", "index", "content", "stop")]
    plain = [chunk("openai.chat", "x"), chunk("openai.chat", "m")]
    body = b"".join([chunk("openai.chat", ""), *odd, *plain, chunk("openai.chat", "", finish="stop")])
    assert text_of(decode("openai.chat", [body, b"data: [DONE]\n\n"])) == "mc1indexcontentstopxm"


def test_a_text_in_escapes_and_the_same_letters_elsewhere() -> None:
    head = b'data: {"id":"c1","object":"chat.completion.chunk","created":7,"model":"m","x":"a","choices":[{"index":0,'
    frames = [head + b'"delta":{"content":"\\u0061"},"finish_reason":null}]}\n\n']
    frames.append(frames[0].replace(b'"x":"a"', b'"x":"b"'))
    body = b"".join([chunk("openai.chat", ""), *frames, chunk("openai.chat", "", finish="stop"), b"data: [DONE]\n\n"])
    assert text_of(decode("openai.chat", [body])) == "aa"


def test_what_is_no_text_ends_the_row() -> None:
    finish, usage = chunk("openai.chat", "", finish="stop"), orjson.dumps({"prompt_tokens": 1, "completion_tokens": 2})
    last = b'data: {"id":"c1","object":"chat.completion.chunk","created":7,"model":"m","choices":[],"usage":%b}\n\n'
    texts = b"".join(chunk("openai.chat", text) for text in "abc")
    events = decode("openai.chat", [chunk("openai.chat", ""), texts + finish + last % usage + b"data: [DONE]\n\n"])
    assert [event.text for event in events] == ["", "a", "bc", "", ""]
    assert events[3].finish_reason == "stop"
    assert events[4].usage is not None


def test_what_came_before_an_error_is_not_lost() -> None:
    decoder, frames = StreamDecoder("openai.chat", "b"), SSEDecoder()
    texts = b"".join(chunk("openai.chat", text) for text in "abc")
    events: list[ChatEvent] = []
    with pytest.raises(BackendRefused, match="out of memory"):
        events.extend(decoder.read(frames.feed(texts + b'data: {"error":{"message":"out of memory"}}\n\n')))
    assert text_of(events) == "abc"


@pytest.mark.parametrize("include_usage", [True, False])
def test_rendered_as_if_they_had_come_alone(include_usage: bool) -> None:
    body = stream("openai.chat", ["a", "b", "c", "d"])
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    asked["stream_options"] = {"include_usage": include_usage}

    def rendered(events: Sequence[ChatEvent]) -> bytes:
        request = ChatCompletions().parse(asked, orjson.dumps(asked), RequestContext())
        renderer = ChatCompletions().stream(request)
        return b"".join(map(renderer.event, events)) + renderer.end()

    together = rendered(decode("openai.chat", [body]))
    assert together == rendered(one_by_one("openai.chat", body))
    assert together.count(b'"usage":null') == (5 if include_usage else 0)


def test_collected_as_one_answer() -> None:
    collector = Collector()
    for event in decode("openai.chat", [stream("openai.chat", ["a", "b", "c"])]):
        collector.add(event)
    answer = collector.answer()
    assert answer.complete
    assert answer.choices[0].text == "abc"


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("ends", ["\n\n", "\r\n\r\n", "\r\r", "\r\n\n", "\n\r\n"])
@pytest.mark.parametrize("prefix", ["data: ", "data:", "id:1\ndata: ", ":\ndata:"])
def test_whatever_the_ends_of_lines_every_frame_is_sent_on_in_its_plainest_form(
    wire: str, ends: str, prefix: str
) -> None:
    body = stream(wire, ["a", "b", "c"]).decode()
    body = "".join(prefix + frame.removeprefix("data: ") + ends for frame in body.split("\n\n") if frame)
    events = decode(wire, [body.encode()])
    assert text_of(events) == "abc"
    sent = b"".join(event.raw or b"" for event in events)
    assert b"\r" not in sent
    assert all(frame.startswith(b"data: {") and b"\n" not in frame for frame in sent.split(b"\n\n") if frame)


@pytest.mark.parametrize("wire", WIRES)
def test_nothing_is_said_behind_the_end(wire: str) -> None:
    events = decode(wire, [stream(wire, ["a", "b"]) + chunk(wire, "c") + chunk(wire, "d")])
    assert text_of(events) == "ab"
