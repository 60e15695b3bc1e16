"""Answers as they are kept: what an engine said comes back, and what another program wrote never does."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cache import answer

from velollm.cache.answers import BadAnswer, keep_answer, replay_answer
from velollm.collector import Collector
from velollm.messages import ChatAnswer, ChatEvent, Choice, ResponseMeta, Timings, ToolCall, Usage

TEXT = st.text(max_size=900)
CALLS = st.lists(st.builds(ToolCall, id=TEXT, name=TEXT, arguments=TEXT), max_size=3)
CHOICES = st.builds(
    Choice, text=TEXT, reasoning=TEXT, tool_calls=CALLS,
    finish_reason=st.sampled_from(["stop", "tool_calls"]),
    stop_sequence=st.none() | TEXT, logprobs=st.none() | st.just({"content": [{"token": "a", "logprob": -0.5}]}),
)  # fmt: skip
COUNTS = st.integers(0, 10**6)
USAGE = st.builds(Usage, prompt_tokens=COUNTS, completion_tokens=COUNTS, reasoning_tokens=st.none() | COUNTS)


def collected(events: list[ChatEvent]) -> ChatAnswer:
    collector = Collector()
    for event in events:
        collector.add(event)
    return collector.answer()


def test_a_very_long_answer_is_cut_into_few_pieces() -> None:
    said = ChatAnswer(choices=[Choice(text="x" * 3_000_000 + " y" * 100_000, finish_reason="stop")])
    events = replay_answer(keep_answer(said), in_pieces=True)
    assert len(events) < 100
    assert "".join(event.text for event in events) == said.choices[0].text


@given(st.lists(CHOICES, min_size=1, max_size=3), st.none() | USAGE, st.text(max_size=9), st.booleans())
def test_an_answer_comes_back(choices: list[Choice], usage: Usage | None, model: str, in_pieces: bool) -> None:
    for number, choice in enumerate(choices):
        choice.index = number
    said = ChatAnswer(choices=choices, usage=usage, meta=ResponseMeta(model=model))
    kept = orjson.loads(orjson.dumps(keep_answer(said)))
    assert collected(replay_answer(kept, in_pieces=in_pieces)) == said


def test_what_belongs_to_one_occasion_is_left_out() -> None:
    meta = ResponseMeta(id="chatcmpl-1", model="m", created=5, extra={"system_fingerprint": "fp"})
    usage = Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=1, timings=Timings(total=3.0))
    said = ChatAnswer(choices=[Choice(text="hi", finish_reason="stop")], usage=usage, meta=meta)
    again = collected(replay_answer(keep_answer(said), in_pieces=False))
    assert again.meta == ResponseMeta(model="m")
    assert again.usage == Usage(prompt_tokens=1, completion_tokens=2)


def test_a_stream_is_cut_at_words() -> None:
    text = "word " * 500
    pieces = [event.text for event in replay_answer(answer(text), in_pieces=True) if event.text]
    assert "".join(pieces) == text
    assert len(pieces) > 3
    assert all(piece.endswith(" ") and len(piece) <= 401 for piece in pieces)
    assert len([e for e in replay_answer(answer(text), in_pieces=False) if e.text]) == 1


def _with(**changes: Any) -> dict[str, Any]:
    made = answer()
    made["choices"][0].update(changes)
    return made


@pytest.mark.parametrize(
    "kept",
    [
        {}, {"choices": []}, {"choices": None}, {"choices": ["x"]}, {"choices": [{}]}, _with(message=None),
        _with(index="0"), _with(index=True), _with(finish_reason="length"), _with(finish_reason=None),
        _with(message={"content": 5}), _with(message={"content": "x", "tool_calls": [5]}), _with(logprobs=5),
        _with(message={"content": "x", "tool_calls": [{"id": 1, "function": {"name": "f", "arguments": "{}"}}]}),
        _with(stop_sequence=5), {**answer(), "usage": {"prompt_tokens": "5"}}, {**answer(), "usage": 5},
        {**answer(), "model": 5},
    ],
)  # fmt: skip
def test_what_is_no_answer_is_not_replayed(kept: Any) -> None:
    with pytest.raises(BadAnswer):
        replay_answer(kept, in_pieces=True)
