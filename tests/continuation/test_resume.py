"""Going on by a backend: a model that counts words, and goes on with what it is given, or does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from velollm.backend import Backend
from velollm.continuation import Continuation, Diverged, Proofs, Said, go_on, prove
from velollm.errors import BackendProtocolError, UnsupportedError
from velollm.messages import ChatEvent, ChatRequest, Message, ModelInfo, ResponseMeta, Usage

pytestmark = pytest.mark.anyio

WORDS = [f" w{number}" for number in range(20)]


class Counter(Backend):
    """Says `words`; goes on from any place, off by `shift` words; breaks after `breaks` words of a run."""

    name = "counter"

    def __init__(self, *, shift: int = 0, proved: bool = True, breaks: int = 99) -> None:
        self.shift, self.proved, self.breaks = shift, proved, breaks
        self.words = list(WORDS)
        self.asked = 0

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        yield ChatEvent(meta=ResponseMeta(id=f"run-{self.asked}"))
        async for event in self._say(request, 0):
            yield event

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        async for event in self._say(request, len(said.pieces) + self.shift):
            yield event

    async def _say(self, request: ChatRequest, first: int) -> AsyncGenerator[ChatEvent, None]:
        self.asked += 1
        most = request.max_tokens or len(self.words)
        for number, word in enumerate(self.words[first:most]):
            if number == self.breaks:
                raise BackendProtocolError("broke off")
            yield ChatEvent(word)
        usage = Usage(prompt_tokens=3, completion_tokens=min(most, len(self.words)))
        yield ChatEvent(finish_reason="length", usage=usage)

    async def resumes(self, model: str) -> bool:
        return self.proved

    async def models(self) -> list[ModelInfo]:
        return []


def following(words: int) -> Continuation:
    stream = Continuation(ChatRequest(messages=[Message(role="user", content="Count")]))
    stream.observe(ChatEvent(meta=ResponseMeta(id="first")))
    for word in WORDS[:words]:
        stream.observe(ChatEvent(word))
    stream.cut()
    return stream


async def rest(backend: Backend, stream: Continuation, *, again: bool = True) -> list[ChatEvent]:
    return [event async for event in go_on(backend, stream, again=again)]


async def test_it_goes_on_where_it_was_cut() -> None:
    stream = following(7)
    events = await rest(Counter(), stream)
    assert "".join(event.text for event in events) == "".join(WORDS[7:])
    assert stream.finish == "length"
    assert [event.meta for event in events if event.meta] == []


async def test_what_has_said_nothing_is_asked_as_it_was() -> None:
    stream = Continuation(ChatRequest(messages=[Message(role="user", content="Count")], n=2))
    stream.cut()
    events = await rest(Counter(proved=False), stream)
    assert "".join(event.text for event in events) == "".join(WORDS)


async def test_without_proof_the_answer_is_made_again_and_checked() -> None:
    events = await rest(Counter(proved=False), following(7))
    assert "".join(event.text for event in events) == "".join(WORDS[7:])
    with pytest.raises(UnsupportedError):
        await rest(Counter(proved=False), following(7), again=False)


async def test_another_answer_is_never_let_through() -> None:
    backend = Counter(proved=False)
    backend.words[5] = " other"
    with pytest.raises(Diverged):
        await rest(backend, following(7))


async def test_an_obstacle_is_an_error_before_anything_is_asked() -> None:
    backend, stream = Counter(), following(2)
    stream.request = stream.request.replace(logprobs=True)
    with pytest.raises(UnsupportedError, match="log probabilities"):
        await rest(backend, stream)
    assert backend.asked == 0


async def test_a_stop_string_across_the_cut_ends_the_run() -> None:
    stream = following(3)
    stream.request = stream.request.replace(stop=["w2 w3"])
    stream.cut()
    events = await rest(Counter(), stream)
    assert events == [ChatEvent(finish_reason="stop", stop_sequence="w2 w3")]


async def test_what_a_stop_string_across_the_cut_ended_is_counted_where_the_backend_can_count() -> None:
    class Counting(Counter):
        async def count_tokens(self, request: ChatRequest) -> int:
            return 3

        async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
            return list(range(len(text.split())))

    stream = following(3)
    stream.request = stream.request.replace(stop=["w2 w3"])
    stream.cut()
    events = await rest(Counting(), stream)
    assert [event.finish_reason for event in events] == ["stop", None]
    assert events[1].usage == Usage(prompt_tokens=3, completion_tokens=4)  # the stop string has been generated


async def test_a_proof_is_an_answer_that_comes_out_the_same() -> None:
    assert await prove(Counter(), "")
    assert not await prove(Counter(shift=1), "")
    with pytest.raises(BackendProtocolError):
        await prove(Counter(breaks=4), "")


async def test_proofs_are_kept_for_an_hour_and_failures_to_ask_for_a_minute() -> None:
    now = 0.0
    proofs = Proofs(lambda: now)
    backend = Counter()
    assert await proofs.ask(backend, "m")
    assert backend.asked == 2
    now = 3599.0
    assert await proofs.ask(backend, "m")
    assert backend.asked == 2
    several = Counter()
    assert await asyncio.gather(*(proofs.ask(several, "shared") for _ in range(5))) == [True] * 5
    assert several.asked == 2
    broken = Counter(breaks=2)
    assert not await proofs.ask(broken, "other")
    assert proofs.known("other") is False
    now += 61
    assert proofs.known("other") is None
