"""Reasoning apart from answers, whatever the pieces; templates; what crosses between processes."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("jinja2", reason="the extra llamacpp is not installed")
pytest.importorskip("numpy", reason="the extra llamacpp is not installed")

from velollm.contrib.velo.answer import Reasoning
from velollm.contrib.velo.frames import (
    pack_answer,
    pack_call,
    read_answer,
    read_call,
    read_error,
    read_event,
    read_frame,
    write_error,
    write_event,
)
from velollm.contrib.velo.template import ChatTemplate
from velollm.errors import BackendError, ConfigError, ContextLengthExceeded, RequestError
from velollm.messages import ChatEvent, ChatRequest, Message, ResponseMeta, Timings, ToolCallDelta, Usage


def told(text: str, cuts: list[int], *, begun: bool = False) -> tuple[str, str]:
    reasoning = Reasoning(begun=begun)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [reasoning.feed(text[a:b]) for a, b in pairwise(places)] + [reasoning.finish()]
    return "".join(thought for thought, _ in parts), "".join(said for _, said in parts)


CUTS = st.lists(st.integers(0, 200), max_size=20)


@pytest.mark.parametrize(
    ("text", "begun", "expected"),
    [
        ("<think>\nHm. 2 < 3\n</think>\n\nYes.", False, ("Hm. 2 < 3", "Yes.")),
        ("Hm.\n</think>\nYes.", True, ("Hm.", "Yes.")),
        ("Hm, and so on", True, ("Hm, and so on", "")),
        ("\n <think></think>No.", False, ("", "No.")),
        ("Use <think> tags.</think>", False, ("", "Use <think> tags.</think>")),
        ("<thi", False, ("", "<thi")),
        ("<think>a</thin b</think>c<think>d", False, ("a</thin b", "c<think>d")),
        ("", False, ("", "")),
    ],
)
@given(cuts=CUTS)
def test_reasoning_is_told_apart(text: str, begun: bool, expected: tuple[str, str], cuts: list[int]) -> None:
    assert told(text, cuts, begun=begun) == expected


@given(st.text("ab <>/think\n", max_size=40), CUTS, st.booleans())
def test_pieces_make_no_difference(text: str, cuts: list[int], begun: bool) -> None:
    assert told(text, cuts, begun=begun) == told(text, [], begun=begun)


TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
]


def test_without_a_template_it_is_chatml() -> None:
    prompt = ChatTemplate(None).render(TALK)
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_without_a_system_role() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    assert ChatTemplate(source, bos="<s>").render(TALK) == "<s><user>Be brief.\n\nHi!"
    with pytest.raises(RequestError, match="no system"):
        ChatTemplate(source).render(TALK[:1])


def test_templates_see_arguments_as_objects_and_json_as_it_is() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Köln <&>"}'}}
    source = "{% set f = messages[0].tool_calls[0].function %}{{ f.arguments.city }}{{ f.arguments | tojson }}"
    given = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert ChatTemplate(source).render(given) == 'Köln <&>{"city": "Köln <&>"}'


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
    ],
)
def test_hostile_and_broken_templates_are_the_requests_error(source: str) -> None:
    with pytest.raises(RequestError):
        ChatTemplate(source).render(TALK)


def test_a_template_that_is_none() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ChatTemplate("{% for %}")


def unframed(data: bytes) -> bytes:
    async def read() -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        frame = await read_frame(reader)
        assert frame is not None
        return frame

    return asyncio.run(read())


def test_values_come_out_as_they_went_in() -> None:
    event = ChatEvent(
        text="a",
        reasoning="b",
        tool_calls=[ToolCallDelta(0, "id", "name", "{}"), ToolCallDelta(0, arguments="x")],
        finish_reason="stop",
        usage=Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=0, timings=Timings(prefill=0.5)),
        index=3,
        meta=ResponseMeta(model="m", created=5),
        logprobs={"content": [{"token": "a"}]},
        stop_sequence="end",
    )
    for one in (event, ChatEvent(), ChatEvent(text="x", usage=Usage())):
        number, kind, value = read_answer(unframed(pack_answer(7, "event", write_event(one))))
        assert (number, kind, read_event(value)) == (7, "event", one)
    request = ChatRequest(messages=[Message(role="user", content="Hi")], n=2)
    assert read_call(unframed(pack_call(9, "chat", request))) == (9, "chat", (request,))


def test_errors_keep_their_kind() -> None:
    error = ContextLengthExceeded("too long", param="messages")
    again = read_error(write_error(error))
    assert type(again) is ContextLengthExceeded
    assert (again.message, again.param, again.status) == ("too long", "messages", 422)
    late = BackendError("down", status=503, retry_after=2, code="x")
    again = read_error(write_error(late))
    assert (type(again), again.status, again.retry_after, again.code) == (BackendError, 503, 2, "x")
    assert type(read_error({**write_error(late), "kind": "dict"})) is BackendError


def test_a_frame_that_never_ends_is_the_end() -> None:
    async def read(data: bytes) -> bytes | None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await read_frame(reader)

    assert asyncio.run(read(b"\xff\xff\xff\xff")) is None
    assert asyncio.run(read(b"\x08\0\0\0abc")) is None
    assert asyncio.run(read(b"")) is None
