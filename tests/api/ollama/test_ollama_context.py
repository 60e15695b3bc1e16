"""Conversations that a client of `/api/generate` carries along as numbers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from velollm.api.ollama import Generate
from velollm.api.ollama.context import recall, remember
from velollm.collector import Collector
from velollm.errors import RequestError
from velollm.messages import ChatEvent, ChatRequest, RequestContext, Usage


def generate(**fields: Any) -> ChatRequest:
    payload = {"model": "m", "prompt": "Hi", **fields}
    return Generate().parse(payload, orjson.dumps(payload), RequestContext())


def whole(request: ChatRequest, *texts: str) -> dict[str, Any]:
    collector = Collector()
    for event in [*map(ChatEvent, texts), ChatEvent(finish_reason="stop", usage=Usage())]:
        collector.add(event)
    return Generate().render(request, collector.answer())


def last_line(request: ChatRequest, *events: ChatEvent) -> dict[str, Any]:
    renderer = Generate().stream(request)
    lines = b"".join([*map(renderer.event, events), renderer.end()]).splitlines()
    found: dict[str, Any] = orjson.loads(lines[-1])
    return found


def turns(request: ChatRequest) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in request.messages]


def test_a_conversation_goes_on() -> None:
    first = whole(generate(system="Be brief."), "Hel", "lo ☺")
    assert all(type(number) is int and number >= 0 for number in first["context"])
    second = generate(prompt="And?", context=first["context"])
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello ☺"), ("user", "And?")]
    assert turns(second) == said
    assert (second.prompt, second.extra, second.source) == (None, {}, None)
    streamed = last_line(second, ChatEvent("So"), ChatEvent("."), ChatEvent(finish_reason="stop"))
    third = generate(prompt="Now?", context=streamed["context"], system="Be long.")
    assert turns(third) == [("system", "Be long."), *said[1:], ("assistant", "So."), ("user", "Now?")]


def test_an_engines_own_context_is_the_engines() -> None:
    request = generate(context=[1, 2, 3])
    assert request.extra == {"context": [1, 2, 3]}
    assert request.source is not None
    assert "context" not in whole(request, "x")
    raw = b'{"response":"","done":true,"done_reason":"stop","context":[1,2,3,4]}\n'
    asked = generate()
    event = ChatEvent(finish_reason="stop", wire="ollama.generate", raw=raw)
    assert last_line(asked, event)["context"] == [1, 2, 3, 4]


@pytest.mark.parametrize("fields", [{"raw": True}, {"prompt": ""}, {"suffix": "end"}])
def test_what_is_no_turn_leaves_no_context(fields: dict[str, Any]) -> None:
    assert "context" not in whole(generate(**fields), "x")


@pytest.mark.parametrize("tail", [[], [256], [0], [*b"{}"], [*b'[["user"]]'], [*b'[["tool","x"]]'], [*b'[["user",1]]']])
def test_a_damaged_context(tail: list[int]) -> None:
    mark = (remember(generate(), "") or [])[:2]
    with pytest.raises(RequestError, match="damaged"):
        generate(context=[*mark, *tail])
    assert recall([*mark[:1], *tail]) is None


def test_an_empty_prompt_only_loads_the_model_whatever_the_context() -> None:
    assert generate(prompt="", context=remember(generate(), "x")).asks_nothing
