"""Blocks come out one after the other, whatever the order in which engines send their pieces."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from velollm.api.blocks import BlockQueue
from velollm.messages import ChatEvent, ToolCallDelta


def run(events: list[ChatEvent], **options: Any) -> list[tuple[str, str, str]]:
    """Kind, name and text of the blocks; checks on the way that only one is open at a time."""
    queue = BlockQueue(**options)
    blocks: list[tuple[str, str, str]] = []
    open_block = None
    for event in [*events, None]:
        if event is not None:
            queue.add(event)
        for step, block, text in queue.steps(last=event is None):
            if step == "open":
                assert open_block is None
                assert block.index == len(blocks)
                open_block, pieces = block, ""
            elif step == "piece":
                assert block is open_block
                assert text
                pieces += text
            else:
                assert block is open_block
                assert block.text == pieces
                blocks.append((block.kind, block.name, pieces))
                open_block = None
    assert open_block is None
    return blocks


def call(index: int, arguments: str = "", name: str | None = None) -> ChatEvent:
    return ChatEvent(tool_calls=[ToolCallDelta(index, f"id{index}" if name else None, name, arguments)])


def test_a_second_call_waits_until_the_first_is_complete() -> None:
    events = [call(0, '{"a"', "f"), call(1, "{}", "g"), call(0, ":1"), ChatEvent(text="said"), call(0, "}")]
    assert run(events) == [("tool", "f", '{"a":1}'), ("tool", "g", "{}"), ("text", "", "said")]


def test_complete_calls_are_not_held_back() -> None:
    queue = BlockQueue()
    queue.add(call(0, '{"a":1}', "f"))
    assert [step for step, _, _ in queue.steps()] == ["open", "piece"]
    queue.add(call(1, '{"b', "g"))
    assert [(step, block.name) for step, block, _ in queue.steps()] == [("close", "f"), ("open", "g"), ("piece", "g")]


def test_a_call_without_arguments_or_with_broken_ones_is_closed_at_the_end() -> None:
    assert run([call(0, "", "f"), call(1, "{", "g")]) == [("tool", "f", ""), ("tool", "g", "{")]


def test_a_call_opens_only_with_its_name() -> None:
    queue = BlockQueue()
    queue.add(call(0, '{"a":'))
    assert list(queue.steps()) == []
    queue.add(call(0, "1}", "f"))
    assert [(step, text) for step, _, text in queue.steps()] == [("open", ""), ("piece", '{"a":1}')]


def test_reasoning_is_dropped_on_demand() -> None:
    events = [ChatEvent(reasoning="hm"), ChatEvent(text="a", reasoning="hm"), ChatEvent(text="b")]
    assert run(events, reasoning=False) == [("text", "", "ab")]
    assert [kind for kind, _, _ in run(events)] == ["reasoning", "text"]


def test_just_text_is_only_one_more_piece_of_an_open_text() -> None:
    queue = BlockQueue()
    event = ChatEvent(text="a")
    assert queue.just_text(event) is None
    queue.add(event)
    list(queue.steps())
    assert queue.just_text(event) is not None
    assert queue.just_text(ChatEvent(text="a", reasoning="b")) is None
    assert queue.just_text(ChatEvent(text="a", logprobs={"content": []})) is None
    assert not queue.empty
    assert queue.alone


ARGUMENTS = st.dictionaries(st.text(max_size=4), st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8), max_size=3)


@given(st.lists(ARGUMENTS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_every_interleaving_keeps_every_call_whole(calls: list[dict[str, Any]], random: Any) -> None:
    texts = [orjson.dumps(arguments).decode() for arguments in calls]
    pieces = []
    for index, text in enumerate(texts):
        cuts = sorted(random.randint(0, len(text)) for _ in range(3))
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        pieces.append([call(index, part, f"f{index}" if not number else None) for number, part in enumerate(parts)])
    events = []
    while waiting := [row for row in pieces if row]:
        events.append(random.choice(waiting).pop(0))
    found = sorted(run(events), key=lambda block: block[1])
    assert found == [("tool", f"f{index}", text) for index, text in enumerate(texts)]
