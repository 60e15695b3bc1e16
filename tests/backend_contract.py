"""What every `Backend` must keep: a test class to subclass, with a `backend` fixture that serves an engine.

class TestMyBackend(BackendContract):
    model = "tiny"

    @pytest.fixture
    async def backend(self): ...
"""

from __future__ import annotations

import asyncio
import copy
from contextlib import aclosing

import orjson
import pytest

from velollm.backend import Backend
from velollm.collector import Collector
from velollm.errors import VeloError
from velollm.messages import ChatAnswer, ChatEvent, ChatRequest, Message, ModelInfo

__all__ = ["BackendContract"]

FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter"}


@pytest.mark.anyio
class BackendContract:
    """Subclasses give the `backend` fixture and say which `model` it serves.

    `unknown_model` is a name that the engine refuses, None where it serves any name. `in_flight` says how many requests
    the engine works on, where a scripted one can tell. `patience` is how long, in seconds, one answer may take; none
    may take less than 20 ms, or there is nothing to cancel.
    """

    model = "model"
    unknown_model: str | None = "no-such-model"
    patience = 5.0

    def in_flight(self) -> int:
        """Requests that the engine is busy with."""
        return 0

    def request(self, **changes: object) -> ChatRequest:
        """A short question to `model`."""
        known: dict[str, object] = {
            "model": self.model,
            "messages": [Message(role="user", content="Say hello.")],
            "max_tokens": 16,
            "temperature": 0,
        }
        return ChatRequest(**{**known, **changes})  # type: ignore[arg-type]

    async def events(self, backend: Backend, request: ChatRequest) -> list[ChatEvent]:
        """All events of an answer."""
        async with asyncio.timeout(self.patience):
            return [event async for event in backend.chat(request)]

    async def answer(self, backend: Backend, request: ChatRequest) -> ChatAnswer:
        """The answer put together."""
        collector = Collector()
        for event in await self.events(backend, request):
            collector.add(event)
        return collector.answer()

    @pytest.mark.parametrize("stream", [True, False])
    async def test_answers(self, backend: Backend, stream: bool) -> None:
        answer = await self.answer(backend, self.request(stream=stream))
        assert answer.complete
        assert [choice.index for choice in answer.choices] == [0]
        assert answer.choices[0].text
        assert answer.choices[0].finish_reason in FINISH_REASONS
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 0
        assert answer.usage.completion_tokens > 0

    @pytest.mark.parametrize("stream", [True, False])
    async def test_each_choice_finishes_once_and_last(self, backend: Backend, stream: bool) -> None:
        events = await self.events(backend, self.request(stream=stream))
        finishing = [number for number, event in enumerate(events) if event.finish_reason is not None]
        assert len(finishing) == 1
        assert not any(event.text or event.tool_calls for event in events[finishing[0] + 1 :])

    async def test_raw_bytes_come_with_their_wire(self, backend: Backend) -> None:
        for event in await self.events(backend, self.request(stream=True)):
            assert (event.raw is None) == (event.wire is None)
            frames = (event.raw or b"").strip().split(b"\n\n")
            assert not event.raw or len(frames) == event.pieces, "one frame for each piece that came at once"
            for frame in filter(None, frames):
                assert isinstance(orjson.loads(frame.removeprefix(b"data: ")), dict)

    async def test_request_is_left_as_it_was(self, backend: Backend) -> None:
        request = self.request(stream=True)
        before = copy.deepcopy(request)
        await self.answer(backend, request)
        request.context = before.context
        assert request == before

    async def test_lists_models(self, backend: Backend) -> None:
        models = await backend.models()
        assert models
        assert all(isinstance(model, ModelInfo) and model.id for model in models)
        assert len({model.id for model in models}) == len(models)

    async def test_is_ready(self, backend: Backend) -> None:
        await backend.ready()

    @pytest.mark.parametrize("stream", [True, False])
    async def test_unknown_model_is_the_clients_error(self, backend: Backend, stream: bool) -> None:
        if self.unknown_model is None:
            pytest.skip("this engine serves any name")
        with pytest.raises(VeloError) as caught:
            await self.answer(backend, self.request(model=self.unknown_model, stream=stream))
        assert 400 <= caught.value.status < 500
        assert caught.value.message

    async def test_serves_several_at_once(self, backend: Backend) -> None:
        answers = await asyncio.gather(*(self.answer(backend, self.request(stream=True)) for _ in range(4)))
        assert all(answer.complete and answer.choices[0].text for answer in answers)

    async def test_closing_the_stream_ends_the_work(self, backend: Backend) -> None:
        async with asyncio.timeout(self.patience), aclosing(backend.chat(self.request(stream=True))) as events:
            async for _ in events:
                break
        await self.idle()
        assert (await self.answer(backend, self.request(stream=True))).complete

    async def test_cancelling_ends_the_work(self, backend: Backend) -> None:
        task = asyncio.create_task(self.answer(backend, self.request(stream=False)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.idle()
        assert (await self.answer(backend, self.request())).complete

    async def test_closes_twice(self, backend: Backend) -> None:
        await self.answer(backend, self.request())
        await backend.aclose()
        await backend.aclose()

    async def idle(self) -> None:
        """Wait until the engine works on nothing; two seconds are enough for that."""
        async with asyncio.timeout(2):
            while self.in_flight():
                await asyncio.sleep(0.01)
