"""Prompts that do not fit: counted before, noticed afterwards, refused or told of, never learned from."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.backend import ScriptedBackend

from velollm.backend import Capabilities
from velollm.errors import ContextLengthExceeded
from velollm.messages import ChatEvent, ChatRequest, Message, Usage
from velollm.truncation import Estimates, TruncationLayer, was_cut
from velollm.truncation.estimates import rough_tokens

pytestmark = pytest.mark.anyio


class Engine(ScriptedBackend):
    """Reads `density` tokens a word; cuts to `cut` of its context what does not fit, without a word."""

    def __init__(
        self, *, loaded: int | None = None, cut: float = 1.0, tokenizer: bool = False, density: float = 1.0
    ) -> None:
        super().__init__()
        self.loaded, self.cut, self.density = loaded, cut, density
        self.capabilities = Capabilities(tokenize=tokenizer)
        self.counted = 0

    def size(self, request: ChatRequest) -> int:
        return int(self.density * sum(len(message.text.split()) for message in request.messages))

    async def _events(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        context = request.options.get("num_ctx") or self.loaded or 1 << 30
        size = self.size(request)
        read = size if size <= context else int(context * self.cut) - 2
        yield ChatEvent("Yes")
        yield ChatEvent(finish_reason="stop", usage=Usage(prompt_tokens=read, completion_tokens=1))

    async def count_tokens(self, request: ChatRequest) -> int:
        self.counted += 1
        return self.size(request)

    async def context(self, model: str) -> int | None:
        return self.loaded


def ask(words: int, num_ctx: int | None = None, **changes: Any) -> ChatRequest:
    options = {} if num_ctx is None else {"num_ctx": num_ctx}
    messages = [Message(role="user", content="some " * words)]
    return ChatRequest(model="m", messages=messages, options=options, **changes)


async def answer(engine: Engine, request: ChatRequest, mode: Literal["error", "header"] = "header") -> str | None:
    layer = TruncationLayer(engine, mode)
    async for _ in layer.chat(request):
        pass
    return request.context.headers.get("x-velollm-truncated")


@pytest.mark.parametrize("cut", [1.0, 0.5], ids=["to-the-context", "to-half-of-it"])
@pytest.mark.parametrize("words", [5_000, 50_000])
async def test_a_silent_cut_is_noticed(cut: float, words: int) -> None:
    assert await answer(Engine(cut=cut), ask(words, 4096)) == "prompt"
    assert await answer(Engine(cut=cut, loaded=4096), ask(words)) == "prompt"
    with pytest.raises(ContextLengthExceeded) as caught:
        await answer(Engine(cut=cut), ask(words, 4096), "error")
    assert caught.value.status == 422
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("words", [10, 1000, 2500, 3900])
async def test_what_fits_is_left_alone(words: int) -> None:
    for engine in (Engine(), Engine(cut=0.5), Engine(loaded=4096)):
        assert await answer(engine, ask(words, 4096), "error") is None


async def test_in_a_stream_the_last_event_tells() -> None:
    request = ask(9000, 4096, stream=True)
    assert await answer(Engine(), request) == "prompt"
    assert request.context.trailer == {"truncated": "prompt"}


async def test_where_there_is_a_tokenizer_it_is_counted_before() -> None:
    engine = Engine(loaded=4096, tokenizer=True)
    with pytest.raises(ContextLengthExceeded):
        await answer(engine, ask(9000), "error")
    assert engine.requests == []
    assert await answer(engine, ask(9000)) == "prompt"
    engine.counted = 0
    assert await answer(engine, ask(100)) is None
    assert engine.counted == 0, "short prompts are not worth the question"


async def test_a_tokenizer_that_is_denser_is_learned() -> None:
    """Words of four characters that are half a token each: 6000 of them fit."""
    layer = TruncationLayer(Engine(density=0.5), "error")
    for words in (500, 1000, 1500):
        async for _ in layer.chat(ask(words, 4096)):
            pass
    async for _ in layer.chat(ask(7000, 4096)):
        pass
    with pytest.raises(ContextLengthExceeded):
        async for _ in layer.chat(ask(12_000, 4096)):
            pass


async def test_a_cut_teaches_nothing() -> None:
    layer = TruncationLayer(Engine(cut=0.5))
    for _ in range(20):
        request = ask(6000, 4096)
        async for _event in layer.chat(request):
            pass
        assert request.context.headers["x-velollm-truncated"] == "prompt"


async def test_without_a_known_context_nothing_is_claimed() -> None:
    engine = Engine(density=0.1)
    assert await answer(engine, ask(50_000), "error") is None


def test_other_scripts_have_more_tokens() -> None:
    latin = rough_tokens(ask(100))
    other = rough_tokens(ChatRequest(messages=[Message(role="user", content="日本語文字" * 100)]))
    assert other > 2 * latin
    assert rough_tokens(ChatRequest(prompt=[1, 2, 3])) == 3


@given(st.lists(st.tuples(st.floats(1, 1e6), st.integers(0, 1_000_000)), max_size=50))
def test_estimates_stay_in_bounds(seen: list[tuple[float, int]]) -> None:
    estimates = Estimates()
    for rough, counted in seen:
        estimates.learn("m", rough, counted)
    assert 25 <= estimates.tokens("m", 100) <= 400


@given(st.integers(1, 200_000), st.integers(1, 100_000))
def test_what_was_read_whole_was_not_cut(counted: int, context: int) -> None:
    assert not was_cut(counted, float(counted), context)


async def test_another_kind_of_text_is_not_taken_for_a_cut() -> None:
    """Code has half as many characters a token again: what was learned from it does not condemn prose."""
    layer, engine = TruncationLayer(Engine(density=1.5), "error"), Engine()
    for _ in range(10):
        async for _event in layer.chat(ask(1500, 4096)):
            pass
    layer.inner = engine
    for words in (1000, 2000, 3000, 3500):
        async for _event in layer.chat(ask(words, 4096)):
            pass
