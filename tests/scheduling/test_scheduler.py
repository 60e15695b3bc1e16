"""The dispatcher in an event loop: whoever leaves, wherever it waits, leaves no slot and no place in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from support.backend import ScriptedBackend

from velollm.continuation import Said
from velollm.errors import BackendUnreachable, Overloaded, RequestError
from velollm.messages import ChatEvent, ChatRequest, EmbedRequest, Message, Usage
from velollm.routing import BackendPool, Turns
from velollm.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.anyio


class Engine(ScriptedBackend):
    """Says ten words, two milliseconds each, and can go on with them; `most` is how many it answered at once."""

    def __init__(self, name: str = "engine", *, slots: int | None = None, **options: object) -> None:
        super().__init__([f"w{number} " for number in range(10)], **{"pause": 0.002, **options})  # type: ignore[arg-type]
        self.name = name
        self.most = 0
        self.told = slots
        self.resumed: list[str] = []

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        async with aclosing(super().chat(request)) as events:
            async for event in events:
                self.most = max(self.most, self.running)
                yield event

    async def slots(self, model: str) -> int | None:
        return self.told

    async def resumes(self, model: str) -> bool:
        return True

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        self.resumed.append(said.text)
        self.running += 1
        try:
            for word in self.words[len(said.pieces) :]:
                await asyncio.sleep(self.pause)
                yield ChatEvent(text=word)
            yield ChatEvent(finish_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=len(self.words)))
        finally:
            self.running -= 1


def request(priority: str | None = None, **headers: str) -> ChatRequest:
    asked = ChatRequest(model="tiny", messages=[Message(role="user", content="Hello")], stream=True)
    asked.context.client_headers = headers | ({"x-velollm-priority": priority} if priority else {})
    return asked


async def text(pool: BackendPool, asked: ChatRequest) -> str:
    return "".join([event.text async for event in pool.chat(asked)])


def check_empty(pool: BackendPool) -> None:
    dispatcher = pool.turns.scheduler.dispatcher
    dispatcher.check_integrity()
    assert len(dispatcher.waiting) == 0
    assert not any(lane.running for lane in dispatcher.lanes.values())
    assert pool.turns.scheduler._futures == {}
    assert pool.turns.scheduler._victims == {}


WORDS = "".join(f"w{number} " for number in range(10))


async def test_no_more_than_there_are_slots() -> None:
    engine = Engine()
    pool = BackendPool([engine], turns=Turns(concurrency=3))
    assert set(await asyncio.gather(*(text(pool, request()) for _ in range(20)))) == {WORDS}
    assert engine.most == 3
    check_empty(pool)


async def test_the_engine_says_how_many_slots_it_has() -> None:
    engine = Engine(slots=2)
    pool = BackendPool([engine], turns=Turns(concurrency=0))
    await asyncio.gather(*(text(pool, request()) for _ in range(8)))
    assert engine.most == 2


async def test_without_limits_everything_runs_at_once() -> None:
    engine = Engine()
    pool = BackendPool([engine])
    await asyncio.gather(*(text(pool, request()) for _ in range(50)))
    assert engine.most == 50


async def test_a_preempted_stream_is_one_stream() -> None:
    engine = Engine(pause=0.01)
    pool = BackendPool([engine], turns=Turns(concurrency=1))
    batch = request("batch")
    running = asyncio.create_task(text(pool, batch))
    await asyncio.sleep(0.05)
    assert await text(pool, request("interactive")) == WORDS
    assert await running == WORDS
    assert engine.cancelled == 1
    assert len(engine.resumed) == 1
    assert WORDS.startswith(engine.resumed[0])
    assert batch.context.trailer["preemptions"] == 1
    check_empty(pool)


async def test_it_makes_way_at_any_word_even_between_its_end_and_its_usage() -> None:
    class Stepwise(Engine):
        """Stops before each event until the test lets it go on; its usage has an event of its own."""

        gate: asyncio.Event

        async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
            async with aclosing(self._say(request, 0)) as events:
                async for event in events:
                    yield event

        async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
            self.resumed.append(said.text)
            async with aclosing(self._say(request, len(said.pieces))) as events:
                async for event in events:
                    yield event

        async def _say(self, request: ChatRequest, first: int) -> AsyncGenerator[ChatEvent, None]:
            batch = request.context.priority == "batch"
            for number, word in enumerate([*self.words, ""][first:], first):
                if batch and number == stops_at:
                    reached.set()
                    await self.gate.wait()
                yield ChatEvent(word) if word else ChatEvent(finish_reason="stop")
            if batch and stops_at > len(self.words):
                reached.set()
                await self.gate.wait()
            yield ChatEvent(usage=Usage(prompt_tokens=5, completion_tokens=len(self.words)))

    for stops_at in range(12):
        engine, reached = Stepwise(), asyncio.Event()
        engine.gate = asyncio.Event()
        pool = BackendPool([engine], turns=Turns(concurrency=1))
        batch = asyncio.create_task(text(pool, request("batch")))
        await reached.wait()
        urgent = asyncio.create_task(text(pool, request("interactive")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert urgent.done() == (stops_at <= 10), "behind its end it keeps the slot"
        engine.gate.set()
        assert await batch == await urgent == WORDS
        assert engine.resumed == ([] if stops_at in (0, 11) else [" ".join(WORDS.split()[:stops_at]) + " "])
        check_empty(pool)


async def test_what_has_begun_to_reason_keeps_its_slot() -> None:
    class Thinker(Engine):
        async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
            yield ChatEvent(reasoning="Hm, ")
            async with aclosing(super().chat(request)) as events:
                async for event in events:
                    yield event

    engine = Thinker(pause=0.01)
    pool = BackendPool([engine], turns=Turns(concurrency=1))
    batch = asyncio.create_task(text(pool, request("batch")))
    await asyncio.sleep(0.03)
    assert await text(pool, request("interactive")) == WORDS
    assert await batch == WORDS
    assert (engine.cancelled, engine.resumed) == (0, [])
    check_empty(pool)


async def test_an_answer_in_one_piece_loses_nothing_by_making_way() -> None:
    engine = Engine(pause=0.01)
    pool = BackendPool([engine], turns=Turns(concurrency=1))
    batch = request("batch").replace(stream=False)
    running = asyncio.create_task(text(pool, batch))
    await asyncio.sleep(0.05)
    await text(pool, request("interactive"))
    assert await running == WORDS
    assert engine.resumed != [""]
    assert engine.resumed != []


async def test_what_has_to_be_found_out_first_makes_way_too() -> None:
    class Slow(Engine):
        async def resumes(self, model: str) -> bool:
            await asyncio.sleep(0.3)
            return True

    engine = Slow()
    pool = BackendPool([engine], turns=Turns(concurrency=1))
    batch = asyncio.create_task(text(pool, request("batch")))
    await asyncio.sleep(0.02)
    begin = asyncio.get_running_loop().time()
    assert await text(pool, request("interactive")) == WORDS
    assert asyncio.get_running_loop().time() - begin < 0.25
    assert await batch == WORDS
    check_empty(pool)


async def test_where_nothing_was_proved_nothing_makes_way() -> None:
    class Unable(Engine):
        async def resumes(self, model: str) -> bool:
            return False

    engine = Unable(pause=0.01)
    pool = BackendPool([engine], turns=Turns(concurrency=1))
    batch = asyncio.create_task(text(pool, request("batch")))
    await asyncio.sleep(0.03)
    assert await text(pool, request("interactive")) == WORDS
    assert await batch == WORDS
    assert engine.cancelled == 0
    check_empty(pool)


@pytest.mark.parametrize("reading", [True, False])
async def test_a_client_that_leaves_while_it_makes_way(reading: bool) -> None:
    """A cancellation of the client's own is never taken for a preemption."""
    engine = Engine(pause=0.01)
    pool = BackendPool([engine], turns=Turns(concurrency=1))
    batch = asyncio.create_task(text(pool, request("batch")))
    await asyncio.sleep(0.03)
    urgent = asyncio.create_task(text(pool, request("interactive")))
    await asyncio.sleep(0 if reading else 0.005)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert await urgent == WORDS
    check_empty(pool)


@pytest.mark.parametrize("priority", ["interactive", "batch"])
async def test_cancelled_wherever_it_waits(priority: str) -> None:
    """A request is cancelled at its first, second, third ... await, while others compete for the slot."""
    survived = 0
    for number in range(60):
        engine = Engine(pause=0.0)
        pool = BackendPool([engine, Engine("other", pause=0.0)], turns=Turns(concurrency=1, slo=5.0))
        others = [asyncio.create_task(text(pool, request("interactive" if n % 2 else "batch"))) for n in range(5)]
        task = asyncio.create_task(text(pool, request(priority)))
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
            survived += 1
        except asyncio.CancelledError:
            pass
        assert set(await asyncio.gather(*others)) == {WORDS}
        check_empty(pool)
        await pool.aclose()
    assert survived < 50, "most were cancelled while they waited or ran"


async def test_clients_that_all_leave_free_everything() -> None:
    engine = Engine(pause=10)
    pool = BackendPool([engine], turns=Turns(concurrency=4))
    tasks = [asyncio.create_task(text(pool, request())) for _ in range(200)]
    await asyncio.sleep(0.05)
    assert engine.running == 4
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert engine.running == 0
    check_empty(pool)


async def test_a_full_queue_refuses_with_a_hint() -> None:
    pool = BackendPool([Engine(pause=0.02)], turns=Turns(concurrency=1, max_queue=2))
    tasks = [asyncio.create_task(text(pool, request())) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as caught:
        await text(pool, request())
    assert caught.value.code == "queue_full"
    assert caught.value.retry_after == 3, "three requests of about a second, as far as is known"
    await asyncio.gather(*tasks)
    check_empty(pool)


async def test_one_timer_however_often_is_dispatched(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def counted(delay: float, call: object, *args: object) -> asyncio.TimerHandle:
        handle = call_later(delay, call, *args)  # type: ignore[arg-type]
        if getattr(call, "__func__", None) is Scheduler._tick:
            armed.append(handle)
        return handle

    monkeypatch.setattr(loop, "call_later", counted)
    pool = BackendPool([Engine(pause=0.02)], turns=Turns(concurrency=1, queue_timeout=0.1))
    tasks = [asyncio.create_task(text(pool, request())) for _ in range(50)]
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert sum(not handle.cancelled() and handle.when() > loop.time() for handle in armed) <= 1
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(
        result == WORDS or (isinstance(result, Overloaded) and result.code == "queue_timeout") for result in results
    )
    check_empty(pool)


async def test_another_backend_has_its_turn_when_one_is_down() -> None:
    down = Engine("down", error=BackendUnreachable("down"))
    well = Engine("well")
    pool = BackendPool([down, well], turns=Turns(concurrency=1))
    assert set(await asyncio.gather(*(text(pool, request()) for _ in range(6)))) == {WORDS}
    assert well.most == 1
    check_empty(pool)
    await pool.aclose()


async def test_what_makes_no_sense_is_refused() -> None:
    pool = BackendPool([Engine()])
    for headers in (
        {"x-velollm-priority": "urgent"},
        {"x-velollm-deadline-ms": "soon"},
        {"x-velollm-deadline-ms": "-1"},
    ):
        with pytest.raises(RequestError):
            await text(pool, request(**headers))
    check_empty(pool)


async def test_embeddings_take_turns_too() -> None:
    pool = BackendPool([Engine()], turns=Turns(concurrency=1))
    results = await asyncio.gather(*(pool.embed(EmbedRequest(model="tiny", inputs=["a"])) for _ in range(5)))
    assert all(result.vectors for result in results)
    check_empty(pool)


async def test_the_wait_is_told() -> None:
    pool = BackendPool([Engine()], turns=Turns(concurrency=1))
    first, second = request(), request()
    await asyncio.gather(text(pool, first), text(pool, second))
    marks = second.context.marks
    assert marks["sent"] - marks["queued"] > 0.01
    assert first.context.marks["sent"] - first.context.marks["queued"] < 0.01
