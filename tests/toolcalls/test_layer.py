"""The layer: events of an engine in, events with sound calls out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import attrs
import orjson
import pytest

from velollm.backend import Backend
from velollm.collector import Collector
from velollm.errors import BackendRefused, BackendUnreachable, RequestError
from velollm.messages import (
    ChatAnswer,
    ChatEvent,
    ChatRequest,
    FinishReason,
    Message,
    RequestContext,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from velollm.toolcalls.layer import HEADER, ToolCallLayer
from velollm.toolcalls.mending import ChoiceMender

pytestmark = pytest.mark.anyio

TOOLS = [
    Tool(
        name="set_valve",
        parameters={
            "type": "object",
            "properties": {"id": {"type": "string"}, "percent": {"type": "integer", "minimum": 0, "maximum": 100}},
            "required": ["id", "percent"],
        },
    ),
    Tool(name="status", parameters={"type": "object", "properties": {}}),
]
GOOD = '<tool_call>\n{"name": "set_valve", "arguments": {"id": "V3", "percent": 40}}\n</tool_call>'
BROKEN = "<tool_call>\n{'name': 'setValve', 'arguments': {'id': 'V3', 'percent': '40',}}\n</tool_call>"
CALL = ("set_valve", {"id": "V3", "percent": 40})


class Engine(Backend):
    """Answers each request with the next script: events, or an error to raise among them."""

    name = "engine"

    def __init__(self, *scripts: Sequence[ChatEvent | Exception]) -> None:
        self.scripts = list(scripts)
        self.requests: list[ChatRequest] = []

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.requests.append(request)
        for event in self.scripts[min(len(self.requests), len(self.scripts)) - 1]:
            if isinstance(event, Exception):
                raise event
            yield attrs.evolve(event)


def text(*pieces: str, reason: FinishReason = "stop") -> list[ChatEvent | Exception]:
    return [*(ChatEvent(piece, wire="w", raw=piece.encode()) for piece in pieces), ending(reason)]


def ending(reason: FinishReason = "stop") -> ChatEvent:
    return ChatEvent(finish_reason=reason, usage=Usage(prompt_tokens=7, completion_tokens=3), wire="w", raw=b"end")


def call(*pieces: str, index: int = 0, name: str = "set_valve", call_id: str | None = "c1") -> list[ChatEvent]:
    deltas = [ToolCallDelta(index, call_id, name), *(ToolCallDelta(index, arguments=piece) for piece in pieces)]
    return [ChatEvent(tool_calls=[delta], wire="w", raw=b"call") for delta in deltas]


def ask(**changes: Any) -> ChatRequest:
    fields: dict[str, Any] = {"messages": [Message(role="user", content="Half open, please")], "tools": TOOLS}
    return ChatRequest(**{**fields, "stream": True, **changes})


async def events_of(backend: Backend, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in backend.chat(request)]


async def answer_of(backend: Backend, request: ChatRequest) -> ChatAnswer:
    collector = Collector()
    for event in await events_of(backend, request):
        collector.add(event)
    return collector.answer()


def calls_of(answer: ChatAnswer, choice: int = 0) -> list[tuple[str, Any]]:
    return [(made.name, orjson.loads(made.arguments)) for made in answer.choices[choice].tool_calls]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("cut", [1, 3, 1000])
@pytest.mark.parametrize("raw", [GOOD, BROKEN])
async def test_raw_text_becomes_a_call(raw: str, cut: int, stream: bool) -> None:
    pieces = [raw[at : at + cut] for at in range(0, len(raw), cut)]
    request = ask(stream=stream)
    answer = await answer_of(ToolCallLayer(Engine(text("I will.\n", *pieces))), request)
    assert calls_of(answer) == [CALL]
    assert answer.choices[0].text.strip() == "I will."
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage == Usage(prompt_tokens=7, completion_tokens=3)


async def test_the_client_learns_what_was_done() -> None:
    whole = ask(stream=False)
    await answer_of(ToolCallLayer(Engine(text(BROKEN))), whole)
    told = whole.context.headers[HEADER]
    assert told.startswith("repaired=")
    assert "name_variant" in told
    assert "raw_text" in told
    streamed = ask()
    await answer_of(ToolCallLayer(Engine(text("Let me set it. ", BROKEN))), streamed)
    assert streamed.context.trailer["tool_calls"]["repaired"] >= 3
    assert "type_coerced" in streamed.context.trailer["tool_calls"]["kinds"]


async def test_events_without_a_call_keep_their_bytes() -> None:
    script = text("Nothing", " to", " call, {really}, `code` <b>", ".")
    assert await events_of(ToolCallLayer(Engine(script)), ask()) == script
    request = ask(stream=False)
    assert await events_of(ToolCallLayer(Engine(script)), request) == script
    assert HEADER not in request.context.headers


async def test_sound_calls_leave_as_they_came() -> None:
    script = [
        ChatEvent("Now:", wire="w", raw=b"text"),
        *call('{"id": "V3", ', '"percent": 40}'),
        *call("{}", index=1, name="status", call_id="c2"),
        ending("tool_calls"),
    ]
    for stream in (True, False):
        assert await events_of(ToolCallLayer(Engine(script)), ask(stream=stream)) == script


async def test_a_sound_call_leaves_when_the_next_one_begins() -> None:
    left: list[int] = []
    script = [*call('{"id": "V3", "percent": 40}'), *call("{}", index=1, name="status"), BackendUnreachable("gone")]
    with pytest.raises(BackendUnreachable):
        async for event in ToolCallLayer(Engine(script)).chat(ask()):
            left += [delta.index for delta in event.tool_calls]
    assert left == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ('{"id": "V3", "percent": "40"}', "type_coerced"),
        ('{"percent": 40, "id": "V3"', "missing_bracket"),
        ("{'id': 'V3', 'percent': 40}", "string"),
        ('"{\\"id\\": \\"V3\\", \\"percent\\": 40}"', "double_encoded"),
        ('{"ID": "V3", "Percent": 40}', "key_renamed"),
    ],
)
async def test_structured_calls_are_mended(arguments: str, kind: str) -> None:
    request = ask()
    answer = await answer_of(ToolCallLayer(Engine([*call(arguments), ending("tool_calls")])), request)
    assert calls_of(answer) == [CALL]
    assert answer.choices[0].tool_calls[0].id == "c1"
    assert answer.choices[0].finish_reason == "tool_calls"
    assert kind in request.context.trailer["tool_calls"]["kinds"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"id": "V3", "percent": 140}', "tool_calls"),
        ('{"id": "V3"}', "tool_calls"),
        ('{"id": "V3", "percent": 4', "length"),
        ('{"id": "V3", "percent": 40', "length"),
    ],
)
async def test_what_cannot_be_mended_is_no_call_but_stays_readable(arguments: str, reason: FinishReason) -> None:
    request = ask()
    answer = await answer_of(ToolCallLayer(Engine([*call(arguments), ending(reason)])), request)
    choice = answer.choices[0]
    assert choice.tool_calls == []
    assert orjson.loads(choice.text) == {"name": "set_valve", "arguments": arguments}
    assert choice.finish_reason == ("length" if reason == "length" else "stop")
    assert request.context.trailer["tool_calls"]["refused"] == 1


async def test_a_valid_sibling_survives_and_is_numbered_anew() -> None:
    script = [*call('{"id": 1}'), *call("{}", index=1, name="status", call_id="c2"), ending("tool_calls")]
    events = await events_of(ToolCallLayer(Engine(script)), ask())
    deltas = [delta for event in events for delta in event.tool_calls]
    assert [(delta.index, delta.id, delta.name) for delta in deltas] == [(0, "c2", "status")]


async def test_strict_lets_sound_calls_pass_and_mends_nothing() -> None:
    strict = ToolCallLayer(Engine(text(GOOD), text(BROKEN)), mode="strict")
    assert calls_of(await answer_of(strict, ask())) == [CALL]
    broken = await answer_of(strict, ask())
    assert calls_of(broken) == []
    assert broken.choices[0].text == BROKEN


@pytest.mark.parametrize("asked", ["off", "strict", "Repair"])
async def test_a_request_may_choose_the_mode(asked: str) -> None:
    request = ask(context=RequestContext(client_headers={HEADER: asked}))
    answer = await answer_of(ToolCallLayer(Engine(text(BROKEN))), request)
    assert bool(calls_of(answer)) == (asked == "Repair")


async def test_an_unknown_mode_is_refused() -> None:
    request = ask(context=RequestContext(client_headers={HEADER: "please"}))
    with pytest.raises(RequestError, match="repair, strict, off"):
        await answer_of(ToolCallLayer(Engine(text(GOOD))), request)


async def test_without_tools_there_are_no_calls_and_no_work() -> None:
    script = text(GOOD)
    engine = Engine(script)
    request = ask(tools=[])
    assert await events_of(ToolCallLayer(engine), request) == script
    assert engine.requests == [request]


async def test_tool_choice_none_is_obeyed() -> None:
    choice = ToolChoice(mode="none")
    assert calls_of(await answer_of(ToolCallLayer(Engine(text(GOOD))), ask(tool_choice=choice))) == []
    structured = [*call('{"id": "V3", "percent": 40}'), ending("tool_calls")]
    answer = await answer_of(ToolCallLayer(Engine(structured)), ask(tool_choice=choice))
    assert calls_of(answer) == []
    assert answer.choices[0].finish_reason == "stop"
    assert "V3" in answer.choices[0].text


async def test_a_named_tool_is_the_only_one() -> None:
    choice = ToolChoice(mode="named", name="status")
    assert calls_of(await answer_of(ToolCallLayer(Engine(text(GOOD))), ask(tool_choice=choice))) == []


@pytest.mark.parametrize("said", ['{"id": "V3", "percent": 40}', '```json\n{"id": "V3", "percent": "40"}\n```'])
async def test_bare_arguments_of_the_forced_tool_are_a_call(said: str) -> None:
    choice = ToolChoice(mode="named", name="set_valve")
    assert calls_of(await answer_of(ToolCallLayer(Engine(text(said))), ask(tool_choice=choice))) == [CALL]
    assert calls_of(await answer_of(ToolCallLayer(Engine(text(said))), ask())) == []


async def test_one_call_at_a_time_where_the_client_says_so() -> None:
    request = ask(parallel_tool_calls=False)
    two = GOOD + "\n" + GOOD.replace("V3", "V4")
    assert calls_of(await answer_of(ToolCallLayer(Engine(text(two))), request)) == [CALL]
    script = [
        *call('{"id": "V3", "percent": 40}'),
        *call('{"id": "V4", "percent": 40}', index=1, call_id="c2"),
        *call("{}", index=2, name="status", call_id="c3"),
        ending("tool_calls"),
    ]
    assert calls_of(await answer_of(ToolCallLayer(Engine(script)), request)) == [CALL]


@pytest.mark.parametrize("dedupe", [True, False])
async def test_repeated_calls(dedupe: bool) -> None:
    layer = ToolCallLayer(Engine(text(GOOD + "\n" + GOOD)), dedupe=dedupe)
    assert calls_of(await answer_of(layer, ask())) == [CALL] * (1 if dedupe else 2)
    script = [
        *call('{"id": "V3", "percent": 40}'),
        *call('{"id":"V3","percent":40}', index=1, call_id="c2"),
        *call("{}", index=2, name="status"),
        ending("tool_calls"),
    ]
    layer = ToolCallLayer(Engine(script), dedupe=dedupe)
    assert calls_of(await answer_of(layer, ask())) == [CALL] * (1 if dedupe else 2) + [("status", {})]


async def test_a_call_at_the_end_of_separate_reasoning_runs_only_if_nothing_follows() -> None:
    thought = [ChatEvent(reasoning="I need the valve.\n" + GOOD)]
    assert calls_of(await answer_of(ToolCallLayer(Engine([*thought, ending()])), ask())) == [CALL]
    said = [*thought, ChatEvent("It is open."), ending()]
    assert calls_of(await answer_of(ToolCallLayer(Engine(said)), ask())) == []


async def test_choices_are_mended_apart() -> None:
    script = [
        ChatEvent(GOOD[:20], index=0, wire="w", raw=b"both"),
        ChatEvent("No call", index=1, wire="w", raw=b""),
        ChatEvent(GOOD[20:], index=0, wire="w", raw=b"x"),
        ChatEvent(finish_reason="stop", index=0, wire="w", raw=b"both"),
        ChatEvent(finish_reason="stop", index=1, wire="w", raw=b""),
    ]
    for stream in (True, False):
        events = await events_of(ToolCallLayer(Engine(script)), ask(n=2, stream=stream))
        assert all(event.raw is None for event in events)
        collector = Collector()
        for event in events:
            collector.add(event)
        answer = collector.answer()
        assert calls_of(answer) == [CALL]
        assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [
            ("", "tool_calls"),
            ("No call", "stop"),
        ]


# ---- asking again


async def test_a_model_is_asked_again_with_what_was_wrong() -> None:
    engine = Engine(text('<tool_call>{"name": "set_valve", "arguments": {"id": "V3"}}</tool_call>'), text(GOOD))
    seen: Counter[tuple[str, str]] = Counter()
    layer = ToolCallLayer(engine, reask=1, observer=lambda outcome, kind, count: seen.update({(outcome, kind): count}))
    request = ask()
    answer = await answer_of(layer, request)
    assert calls_of(answer) == [CALL]
    assert answer.choices[0].text == ""
    assert answer.usage == Usage(prompt_tokens=14, completion_tokens=6)
    assert "'percent' is required" in engine.requests[1].messages[-1].text
    assert engine.requests[1].messages[-2].role == "assistant"
    assert seen["reasked", "invalid_arguments"] == 1
    assert "reasked" in request.context.trailer["tool_calls"]["kinds"]


async def test_without_reask_a_model_is_asked_once() -> None:
    engine = Engine(text('<tool_call>{"name": "set_valve", "arguments": {"id": "V3"}}</tool_call>'), text(GOOD))
    assert calls_of(await answer_of(ToolCallLayer(engine), ask())) == []
    assert len(engine.requests) == 1


async def test_a_plain_answer_is_not_asked_again_unless_a_call_was_required() -> None:
    engine = Engine(text("No."), text(GOOD))
    assert (await answer_of(ToolCallLayer(engine, reask=2), ask())).choices[0].text == "No."
    engine = Engine(text("No."), text(GOOD))
    answer = await answer_of(ToolCallLayer(engine, reask=2), ask(tool_choice=ToolChoice(mode="required")))
    assert calls_of(answer) == [CALL]


async def test_when_asking_again_fails_the_first_answer_stands() -> None:
    wrong = '<tool_call>{"name": "set_valve", "arguments": {"id": "V3"}}</tool_call>'
    answer = await answer_of(ToolCallLayer(Engine(text(wrong), [BackendUnreachable("gone")]), reask=1), ask())
    assert answer.choices[0].text == wrong
    answer = await answer_of(ToolCallLayer(Engine(text(wrong)), reask=3), ask())
    assert answer.choices[0].text == wrong


# ---- engines whose own parser fails


@pytest.mark.parametrize("stream", [True, False])
async def test_what_ollama_could_not_parse_is_read_from_its_error(stream: bool) -> None:
    raw = '{"name": "set_valve", "arguments": {"id": "V3", "percent": 40,}}'
    error = BackendRefused(f"error parsing tool call: raw='{raw}', err=invalid character '}}'", status=500)
    request = ask(stream=stream)
    answer = await answer_of(ToolCallLayer(Engine([error])), request)
    assert calls_of(answer) == [CALL]
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_where_the_error_does_not_tell_the_tools_are_told_in_words() -> None:
    engine = Engine([BackendRefused("Failed to parse input at pos 31: <tool_call", status=500)], text(GOOD))
    assert calls_of(await answer_of(ToolCallLayer(engine), ask())) == [CALL]
    assert engine.requests[1].tools == []
    assert "set_valve" in engine.requests[1].messages[0].text


async def test_other_errors_pass() -> None:
    with pytest.raises(BackendRefused, match="no such thing"):
        await answer_of(ToolCallLayer(Engine([BackendRefused("no such thing", status=500)])), ask())
    engine = Engine([ChatEvent("Half a sentence"), BackendRefused("Failed to parse input at pos 31: x", status=500)])
    with pytest.raises(BackendRefused):
        await answer_of(ToolCallLayer(engine), ask())


# ---- what clients send


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([TOOLS[0], TOOLS[0]], "used twice"),
        ([Tool(name="x", parameters={"type": "string"})], "must be 'object'"),
        ([Tool(name="x", parameters={"type": "object", "properties": {"a": {"$ref": "#/$defs/no"}}})], "not resolve"),
        ([Tool(name="x", parameters={"type": "object", "properties": [1]})], "properties must be an object"),
        ([Tool(name="x" * 300)], "300 characters"),
    ],
)
async def test_impossible_tools_are_refused(tools: list[Tool], words: str) -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match=words) as caught:
            await answer_of(ToolCallLayer(Engine(text("x"))), ask(tools=tools))
        assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", {}),
        ("null", {}),
        ("{'id': 'V3',}", {"id": "V3"}),
        ('"{\\"id\\": \\"V3\\"}"', {"id": "V3"}),
        ('[{"id": "V3"}]', {"id": "V3"}),
        ("open it", {"input": "open it"}),
        ('{"id": NaN}', {"input": '{"id": NaN}'}),
    ],
)
async def test_malformed_history_is_mended(written: str, meant: Any) -> None:
    engine = Engine(text("ok"))
    history = [
        Message(role="user", content="Go"),
        Message(role="assistant", tool_calls=[ToolCall(id="c7", name="set_valve", arguments=written)]),
        Message(role="tool", content="done"),
    ]
    await answer_of(ToolCallLayer(engine), ask(messages=history, tools=[]))
    sent = engine.requests[0].messages
    assert orjson.loads(sent[1].tool_calls[0].arguments) == meant
    assert sent[2].tool_call_id == "c7"
    assert history[1].tool_calls[0].arguments == written


async def test_sound_history_is_left_alone() -> None:
    engine = Engine(text("ok"))
    calls = [ToolCall(id="a", name="status", arguments="{}"), ToolCall(id="b", name="status", arguments='{"x": 1.0}')]
    results = [Message(role="tool", content="1", tool_call_id="b"), Message(role="tool", content="2", tool_call_id="a")]
    request = ask(messages=[Message(role="assistant", tool_calls=calls), *results])
    await answer_of(ToolCallLayer(engine), request)
    assert engine.requests == [request]


# ---- when mending itself fails


async def test_a_fault_of_its_own_lets_the_answer_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ChoiceMender, "settle", fail)
    seen: Counter[str] = Counter()
    layer = ToolCallLayer(
        Engine(text("Look: ", GOOD)), observer=lambda outcome, _, count: seen.update({outcome: count})
    )
    answer = await answer_of(layer, ask())
    assert answer.choices[0].text == "Look: " + GOOD
    assert answer.choices[0].finish_reason == "stop"
    assert seen["failed"] == 1
    script = [*call('{"id": "V3", "percent": "40"}'), ending("tool_calls")]
    assert await events_of(ToolCallLayer(Engine(script)), ask()) == script
