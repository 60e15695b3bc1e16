"""Tool calls that a client demands, of engines that obey, of such that do not, and of such that never will."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from velollm.contrib.obeyed import obeyed
from velollm.errors import BackendProtocolError, BackendRefused, BackendTimeout, VeloError
from velollm.messages import ChatEvent, ChatRequest, Message, Tool, ToolCallDelta, ToolChoice

pytestmark = pytest.mark.anyio

TOOLS = [Tool(name=name, parameters={"type": "object", "properties": {"n": {"type": "integer"}}}) for name in "ab"]
PROSE = [ChatEvent("Let me "), ChatEvent("think."), ChatEvent(finish_reason="stop")]
CALL = [
    ChatEvent("I call."),
    ChatEvent(tool_calls=[ToolCallDelta(0, "c", "a", '{"n":')]),
    ChatEvent(tool_calls=[ToolCallDelta(0, arguments="1}")]),
    ChatEvent(finish_reason="tool_calls"),
]


class Engine:
    """Answers one script after the other; an error in a script is raised."""

    def __init__(self, *scripts: list[ChatEvent | VeloError]) -> None:
        self.scripts = list(scripts)
        self.asked: list[ChatRequest] = []

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.asked.append(request)
        for step in self.scripts.pop(0):
            if isinstance(step, VeloError):
                raise step
            yield step


def ask(name: str | None = "a", n: int = 1) -> ChatRequest:
    choice = ToolChoice(mode="named", name=name) if name else ToolChoice(mode="required")
    return ChatRequest(messages=[Message(role="user", content="Hi")], tools=TOOLS, tool_choice=choice, n=n)


async def events(engine: Engine, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in obeyed(engine.chat, request, "engine")]


def called(found: list[ChatEvent]) -> tuple[str, str]:
    deltas = [delta for event in found for delta in event.tool_calls]
    return "".join(delta.name or "" for delta in deltas), "".join(delta.arguments for delta in deltas)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("name", ["a", None])
async def test_who_obeys_is_asked_once(name: str | None) -> None:
    engine = Engine(list(CALL))
    assert await events(engine, ask(name)) == CALL
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("name", "answer"), [("b", '{"n": 2}'), (None, '{"name": "b", "arguments": {"n": 2}}')], ids=["named", "required"]
)
async def test_who_does_not_is_asked_for_the_json_of_the_call(name: str | None, answer: str) -> None:
    engine = Engine(list(PROSE), [ChatEvent(answer), ChatEvent(finish_reason="stop")])
    found = await events(engine, ask(name))
    assert called(found) == ("b", '{"n":2}')
    assert "".join(event.text for event in found) == ""
    assert found[-1].finish_reason == "tool_calls"
    again = engine.asked[1]
    assert again.tools == []
    assert again.response_format is not None
    assert again.response_format.kind == "json_schema"
    assert "You can call" in again.messages[0].text


async def test_another_tool_than_the_named_one_is_not_obedience() -> None:
    engine = Engine(list(CALL), [ChatEvent('{"n":3}'), ChatEvent(finish_reason="stop")])
    assert called(await events(engine, ask("b"))) == ("b", '{"n":3}')


@pytest.mark.parametrize(
    "second",
    [
        [BackendRefused("no such response_format", status=400)],
        [ChatEvent("Still prose."), ChatEvent(finish_reason="stop")],
        [ChatEvent(" "), ChatEvent(finish_reason="length")],
        [ChatEvent(reasoning="hm"), BackendProtocolError("broke off")],
    ],
)
async def test_who_never_will_has_said_what_it_said_first(second: list[ChatEvent | VeloError]) -> None:
    assert await events(Engine(list(PROSE), second), ask()) == PROSE


async def test_an_answer_that_was_cut_short_is_not_asked_for_again() -> None:
    cut = [ChatEvent("I thi"), ChatEvent(finish_reason="length")]
    assert await events(Engine(list(cut)), ask()) == cut


async def test_a_call_in_the_text_is_left_to_the_tool_call_layer() -> None:
    told = [ChatEvent('<tool_call>{"name": "a", '), ChatEvent('"arguments": {"n": 1}}</tool_call>')]
    told.append(ChatEvent(finish_reason="stop"))
    assert await events(Engine(list(told)), ask("a")) == told
    other = [ChatEvent('{"n": 4}'), ChatEvent(finish_reason="stop")]
    assert called(await events(Engine(list(told), other), ask("b"))) == ("b", '{"n":4}')


async def test_several_answers_are_left_alone() -> None:
    assert await events(Engine(list(PROSE)), ask(n=2)) == PROSE


async def test_failures_are_passed_on() -> None:
    with pytest.raises(BackendTimeout):
        await events(Engine([BackendTimeout("silent")]), ask())
    with pytest.raises(BackendTimeout):
        await events(Engine(list(PROSE), [BackendTimeout("silent")]), ask())
    begun = [ChatEvent('{"n": '), BackendProtocolError("broke off")]
    with pytest.raises(BackendProtocolError):
        await events(Engine(list(PROSE), begun), ask())
