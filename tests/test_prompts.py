"""Several prompts in one request: choices in OpenAI's order, usage of all, one failure, one client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from support.backend import ScriptedBackend

from velollm.api.openai import Completions
from velollm.collector import Collector
from velollm.errors import BackendTimeout, RequestError
from velollm.messages import ChatEvent, ChatRequest, RequestContext, Usage
from velollm.prompts import answer_prompts

pytestmark = pytest.mark.anyio


class Echo(ScriptedBackend):
    """Answers each of `n` choices with the prompt."""

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.requests.append(request)
        for index in range(request.n):
            for piece in (f"<{request.prompt}", ">"):
                await asyncio.sleep(0)
                yield ChatEvent(text=piece, index=index)
            yield ChatEvent(finish_reason="stop", index=index)
        yield ChatEvent(usage=Usage(prompt_tokens=1, completion_tokens=2 * request.n))


async def answer(backend: ScriptedBackend, request: ChatRequest) -> Collector:
    collector = Collector()
    async for event in answer_prompts(backend, request):
        collector.add(event)
    return collector


def parse(**fields: object) -> ChatRequest:
    return Completions().parse({"model": "m", **fields}, b"{}", RequestContext())


async def test_choices_are_in_the_order_of_prompts_and_usage_is_of_all() -> None:
    answered = (await answer(Echo(), parse(prompt=["a", "b", [1, 2]], n=2))).answer()
    assert [choice.text for choice in answered.choices] == ["<a>", "<a>", "<b>", "<b>", "<[1, 2]>", "<[1, 2]>"]
    assert [choice.index for choice in answered.choices] == list(range(6))
    assert answered.complete
    assert answered.usage is not None
    assert answered.usage.completion_tokens == 12


async def test_each_is_asked_as_a_request_of_its_own() -> None:
    backend = Echo()
    await answer(backend, parse(prompt=["a", "b"]))
    assert sorted((asked.prompt, asked.further_prompts, asked.source) for asked in backend.requests) == [
        ("a", (), None),
        ("b", (), None),
    ]


async def test_one_prompt_goes_straight_through() -> None:
    backend = Echo()
    request = parse(prompt=["a"])
    await answer(backend, request)
    assert backend.requests[0] is request


async def test_the_failure_of_one_ends_all() -> None:
    backend = ScriptedBackend(error=BackendTimeout("silent"), fail_after=1)
    with pytest.raises(BackendTimeout):
        await answer(backend, parse(prompt=["a", "b", "c"]))
    assert backend.running == 0


async def test_a_client_that_leaves_ends_all() -> None:
    backend = ScriptedBackend(words=["x"] * 100, pause=0.01)
    events = answer_prompts(backend, parse(prompt=["a", "b", "c"]))
    await anext(events)
    assert backend.running == 3
    await events.aclose()
    await asyncio.sleep(0)
    assert backend.running == 0


@pytest.mark.parametrize(
    ("prompt", "param"),
    [(["a", 3], "prompt[1]"), (["a", []], "prompt[1]"), ([[1], ["x"]], "prompt[1][0]"), (["a"] * 129, "prompt")],
)
def test_what_is_no_prompt_is_named(prompt: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(prompt=prompt)
    assert caught.value.param == param
