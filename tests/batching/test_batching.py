"""Embeddings that arrive together: few calls, everybody's own vectors and usage, and one bad input harms nobody."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.backend import ScriptedBackend

from velollm.batching import BatchingLayer, batch_key, share_tokens
from velollm.errors import BackendProtocolError, BackendRefused, ContextLengthExceeded, ModelNotFound, VeloError
from velollm.messages import Embeddings, EmbedRequest, RequestContext

pytestmark = pytest.mark.anyio


class Engine(ScriptedBackend):
    """A vector is the length of its text; `bad` texts are refused with `refusal`."""

    def __init__(self, *, seconds: float = 0.01, refusal: VeloError | None = None) -> None:
        super().__init__()
        self.seconds = seconds
        self.refusal = refusal
        self.calls: list[list[str | list[int]]] = []
        self.open = 0

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self.calls.append(list(request.inputs))
        self.open += 1
        try:
            await asyncio.sleep(self.seconds)
            if "bad" in request.inputs and self.refusal is not None:
                raise self.refusal
            request.context.headers["x-velollm-backend"] = "engine"
            vectors = [[float(len(text))] for text in request.inputs]
            return Embeddings(vectors=vectors, model=request.model, prompt_tokens=sum(map(len, request.inputs)))
        finally:
            self.open -= 1


def ask(*inputs: str, model: str = "m", **changes: object) -> EmbedRequest:
    return EmbedRequest(**{"model": model, "inputs": list(inputs), **changes})


async def test_sixty_four_at_once_are_a_few_calls() -> None:
    engine = Engine()
    layer = BatchingLayer(engine)
    requests = [ask("x" * (number + 1)) for number in range(64)]
    found = await asyncio.gather(*(layer.embed(request) for request in requests))
    assert [answer.vectors for answer in found] == [[[float(number + 1)]] for number in range(64)]
    assert [answer.prompt_tokens for answer in found] == [number + 1 for number in range(64)]
    assert len(engine.calls) <= 8
    assert all(request.context.headers["x-velollm-backend"] == "engine" for request in requests)
    assert layer._groups == {}


async def test_those_that_drip_in_are_gathered_too() -> None:
    engine = Engine(seconds=0.05)
    layer = BatchingLayer(engine)

    async def later(number: int) -> Embeddings:
        await asyncio.sleep(number * 0.001)
        return await layer.embed(ask("x" * number))

    found = await asyncio.gather(*(later(number) for number in range(1, 65)))
    assert [answer.vectors[0][0] for answer in found] == list(map(float, range(1, 65)))
    assert len(engine.calls) <= 8


async def test_one_alone_does_not_wait() -> None:
    engine = Engine(seconds=0)
    layer = BatchingLayer(engine, window=60)
    async with asyncio.timeout(1):
        for _ in range(3):
            await layer.embed(ask("a"))


async def test_several_inputs_stay_together_and_calls_are_bounded() -> None:
    engine = Engine()
    layer = BatchingLayer(engine, most=10)
    found = await asyncio.gather(*(layer.embed(ask("a", "bb", "ccc")) for _ in range(20)))
    assert all(answer.vectors == [[1.0], [2.0], [3.0]] for answer in found)
    assert all(len(call) <= 10 for call in engine.calls)
    large = ask(*["x"] * 40)
    assert len((await layer.embed(large)).vectors) == 40
    assert engine.calls[-1] == ["x"] * 40


@pytest.mark.parametrize(
    "refusal",
    [BackendRefused("too long", status=400), ContextLengthExceeded("too long"), BackendRefused("x", status=422)],
)
async def test_one_bad_input_harms_nobody(refusal: VeloError) -> None:
    engine = Engine(refusal=refusal)
    layer = BatchingLayer(engine)
    texts = ["good" * (number + 1) for number in range(30)]
    texts[17] = "bad"
    found = await asyncio.gather(*(layer.embed(ask(text)) for text in texts), return_exceptions=True)
    for text, answer in zip(texts, found, strict=True):
        if text == "bad":
            assert answer is refusal
        else:
            assert isinstance(answer, Embeddings)
            assert answer.vectors == [[float(len(text))]]
    assert len(engine.calls) <= 2 + 2 * 6


@pytest.mark.parametrize("refusal", [ModelNotFound("x"), BackendProtocolError("x"), BackendRefused("x", status=429)])
async def test_a_failure_of_all_is_not_repeated(refusal: VeloError) -> None:
    engine = Engine(refusal=refusal)
    layer = BatchingLayer(engine)
    found = await asyncio.gather(*(layer.embed(ask("bad")) for _ in range(20)), return_exceptions=True)
    assert all(answer is refusal for answer in found)
    assert len(engine.calls) <= 3
    assert layer._groups == {}


async def test_what_differs_is_asked_apart() -> None:
    base = ask("a")
    others = [
        ask("a", model="n"), ask("a", dimensions=5), ask("a", truncate=True), ask("a", options={"num_ctx": 5}),
        ask("a", extra={"encoding_format": "base64"}), ask("a", context=RequestContext(tenant="bob")),
    ]  # fmt: skip
    assert batch_key(base) == batch_key(ask("b"))
    assert len({batch_key(one) for one in [base, *others]}) == 7


async def test_who_leaves_takes_nobody_along() -> None:
    engine = Engine(seconds=0.03)
    layer = BatchingLayer(engine)
    tasks = [asyncio.create_task(layer.embed(ask("x" * (number + 1)))) for number in range(10)]
    await asyncio.sleep(0.001)
    tasks[3].cancel()
    await asyncio.sleep(0.015)
    tasks[4].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(found):
        if number in (3, 4):
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert isinstance(answer, Embeddings)
            assert answer.vectors == [[float(number + 1)]]


async def test_when_all_have_left_the_call_ends() -> None:
    engine = Engine(seconds=10)
    layer = BatchingLayer(engine)
    tasks = [asyncio.create_task(layer.embed(ask("x"))) for _ in range(5)]
    await asyncio.sleep(0.02)
    assert engine.open == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert engine.open == 0
    assert layer._groups == {}


@given(st.integers(0, 10_000), st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_shares_are_whole_numbers_with_the_right_sum(total: int, sizes: list[int]) -> None:
    shares = share_tokens(total, sizes)
    assert sum(shares) == total
    assert all(share >= 0 for share in shares)
    if sum(sizes):
        assert all(abs(share - total * size / sum(sizes)) < 1 for share, size in zip(shares, sizes, strict=True))
