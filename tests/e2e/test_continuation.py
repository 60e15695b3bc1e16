"""Answers that are interrupted at every kind of place, and gone on with: the same text as undisturbed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from tiny_gguf import write_tiny_gguf

from velollm.backend import Backend
from velollm.collector import Collector
from velollm.continuation import Continuation, go_on
from velollm.contrib.llamacpp import EmbeddedBackend
from velollm.contrib.ollama import OllamaBackend
from velollm.contrib.velo import ServedEngine
from velollm.errors import UnsupportedError
from velollm.messages import ChatAnswer, ChatEvent, ChatRequest, Message, ResponseFormat

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

QUESTIONS = [
    "Tell a short tale of a fox in a café.",
    "Write a Python function that adds two numbers.",
    "Repeat exactly: naïve 🦊 für Größe — 日本語のテキスト.",
    "List the days of the week, each on a line of its own.",
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["llama-server tiny", "llama-server smollm2", "velo tiny"])
async def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[EmbeddedBackend]:
    kind, name = request.param.split()
    if name == "tiny":
        model = str(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))
    else:
        model = str(request.getfixturevalue("default_model"))
    made = (ServedEngine if kind == "velo" else EmbeddedBackend)(model, threads=2, parallel=1)
    async with made:
        yield made


def ask(text: str, **changes: Any) -> ChatRequest:
    messages = [Message(role="user", content=text)]
    return ChatRequest(**{"messages": messages, "max_tokens": 40, "temperature": 0, "stream": True, **changes})


async def whole(backend: Backend, request: ChatRequest) -> tuple[ChatAnswer, int]:
    collector, pieces = Collector(), 0
    async for event in backend.chat(request):
        collector.add(event)
        pieces += bool(event.text)
    return collector.answer(), pieces


async def interrupted(backend: Backend, request: ChatRequest, *cuts: int, again: bool = False) -> ChatAnswer:
    """The answer, cut after so many pieces of text, each time."""
    collector, continuation = Collector(), Continuation(request)
    for number, cut in enumerate([*cuts, 0]):
        pieces = 0
        events = backend.chat(request) if number == 0 else go_on(backend, continuation, again=again)
        async with aclosing(events):
            async for event in events:
                seen = continuation.observe(event) if number == 0 else event
                assert seen is not None
                collector.add(seen)
                assert number == 0 or seen.meta is None
                pieces += bool(seen.text)
                if pieces == cut and cut:
                    break
        continuation.cut()
    return collector.answer()


async def test_the_backend_proves_itself(engine: EmbeddedBackend) -> None:
    assert await engine.resumes("")


@pytest.mark.parametrize("question", QUESTIONS)
async def test_wherever_it_is_cut_the_answer_is_the_same(engine: EmbeddedBackend, question: str) -> None:
    expected, pieces = await whole(engine, ask(question))
    assert pieces > 8
    for cut in sorted({1, 2, 3, 5, pieces // 2, pieces - 1, pieces}):
        found = await interrupted(engine, ask(question), cut)
        assert found.choices == expected.choices, cut
        assert found.usage is not None
        assert expected.usage is not None
        assert found.usage.completion_tokens == expected.usage.completion_tokens
        assert found.usage.prompt_tokens == expected.usage.prompt_tokens
        assert bool(found.meta.id) == bool(expected.meta.id)


async def test_an_answer_can_be_cut_several_times(engine: EmbeddedBackend) -> None:
    expected, _ = await whole(engine, ask(QUESTIONS[0]))
    found = await interrupted(engine, ask(QUESTIONS[0]), 3, 4, 5)
    assert found.choices == expected.choices


async def test_stop_strings_still_stop_behind_a_cut(engine: EmbeddedBackend) -> None:
    text, pieces = await whole(engine, ask(QUESTIONS[0]))
    middle = text.choices[0].text[30:36]
    stopped, count = await whole(engine, ask(QUESTIONS[0], stop=[middle]))
    assert stopped.choices[0].finish_reason == "stop"
    assert count < pieces
    for cut in range(1, count):
        found = await interrupted(engine, ask(QUESTIONS[0], stop=[middle]), cut)
        assert found.choices == stopped.choices, cut


async def test_the_clients_own_beginning_stays_in_front(engine: EmbeddedBackend) -> None:
    messages = [Message(role="user", content=QUESTIONS[0]), Message(role="assistant", content="Once upon")]
    request = ask("", messages=messages)
    expected, pieces = await whole(engine, request)
    found = await interrupted(engine, request, pieces // 2)
    assert found.choices == expected.choices


@pytest.mark.parametrize("changes", [{"raw": True}, {}])
async def test_prompts_are_gone_on_with_too(engine: EmbeddedBackend, changes: dict[str, Any]) -> None:
    request = ask("", messages=[], prompt="The capital of France is", **changes)
    expected, pieces = await whole(engine, request)
    found = await interrupted(engine, request, pieces // 2)
    assert found.choices == expected.choices


async def test_what_is_drawn_goes_on_as_well(engine: EmbeddedBackend) -> None:
    found = await interrupted(engine, ask(QUESTIONS[0], temperature=0.8), 6)
    assert found.complete
    assert found.usage is not None
    assert found.usage.completion_tokens <= 40


async def test_an_answer_in_a_format_is_not_gone_on_with(engine: EmbeddedBackend) -> None:
    request = ask(QUESTIONS[0], response_format=ResponseFormat(kind="json_object"))
    with pytest.raises(UnsupportedError, match="format"):
        await interrupted(engine, request, 3)


async def test_ollama_goes_on_behind_its_own_prompt(ollama_url: str) -> None:
    async with OllamaBackend(ollama_url.replace("http", "ollama", 1)) as backend:
        assert await backend.resumes("smollm2")
        request = ask(QUESTIONS[0], model="smollm2", max_tokens=None)
        pieces = []
        async with aclosing(backend.chat(request)) as events:
            async for event in events:
                pieces.append(event.text)
                if len(pieces) == 16:
                    break
        for cut in (1, 6, 15):
            continuation, left, rest = Continuation(request), "".join(pieces[cut:]), ""
            for piece in pieces[:cut]:
                continuation.observe(ChatEvent(piece))
            continuation.cut()
            async with aclosing(go_on(backend, continuation, again=False)) as events:
                async for event in events:
                    rest += event.text
                    if len(rest) >= len(left):
                        break
            assert rest.startswith(left), cut
