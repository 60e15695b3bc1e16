"""Single-flight: one upstream call, many readers, whoever leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest

from velollm.cache.layer import flight as module
from velollm.cache.layer.flight import AHEAD, Flight
from velollm.errors import BackendError, BackendTimeout
from velollm.messages import ChatEvent

pytestmark = pytest.mark.anyio


class Upstream:
    """Says numbers, as fast as it is asked to."""

    def __init__(self, count: int, *, gate: asyncio.Event | None = None, error: Exception | None = None) -> None:
        self.count, self.gate, self.error = count, gate, error
        self.said = 0
        self.closed = False

    async def events(self) -> AsyncGenerator[ChatEvent, None]:
        try:
            for number in range(self.count):
                if self.gate is not None and number == self.count // 2:
                    await self.gate.wait()
                self.said += 1
                yield ChatEvent(text=str(number))
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


class Log:
    """What a flight told its owner."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.ended = self.closed = 0

    def see(self, event: ChatEvent) -> None:
        self.seen.append(event.text)

    async def end(self) -> None:
        self.ended += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def begin(log: Log) -> Callable[[Upstream], Flight]:
    return lambda upstream: Flight(upstream.events(), on_event=log.see, on_end=log.end, on_close=log.close)


async def read(flight: Flight, limit: int = 10**9) -> list[str]:
    texts: list[str] = []
    async with aclosing(flight.read()) as events:
        async for event in events:
            texts.append(event.text)
            if len(texts) == limit:
                break
    return texts


NUMBERS = [str(number) for number in range(10)]


async def test_all_readers_get_all_events(begin: Callable[[Upstream], Flight], log: Log) -> None:
    gate = asyncio.Event()
    upstream = Upstream(10, gate=gate)
    flight = begin(upstream)
    readers = [asyncio.create_task(read(flight)) for _ in range(5)]
    await asyncio.sleep(0.01)
    readers.append(asyncio.create_task(read(flight)))  # late, and still from the first on
    gate.set()
    assert await asyncio.gather(*readers) == [NUMBERS] * 6
    assert (log.seen, log.ended, log.closed) == (NUMBERS, 1, 1)
    assert upstream.said == 10


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_the_first_may_leave(begin: Callable[[Upstream], Flight], log: Log, how: str) -> None:
    gate = asyncio.Event()
    upstream = Upstream(10, gate=gate)
    flight = begin(upstream)
    followers = [asyncio.create_task(read(flight)) for _ in range(3)]
    leader = asyncio.create_task(read(flight, 10**9 if how == "cancelled" else 2))
    await asyncio.sleep(0.01)
    leader.cancel()
    await asyncio.sleep(0.01)
    assert leader.done()
    assert not upstream.closed
    gate.set()
    assert await asyncio.gather(*followers) == [NUMBERS] * 3
    assert log.ended == 1


async def test_when_all_have_left_the_upstream_is_closed_at_once(begin: Callable[[Upstream], Flight], log: Log) -> None:
    upstream = Upstream(10, gate=asyncio.Event())
    flight = begin(upstream)
    readers = [asyncio.create_task(read(flight)) for _ in range(3)]
    await asyncio.sleep(0.01)
    for reader in readers:
        assert not upstream.closed
        reader.cancel()
        await asyncio.wait({reader})
    assert upstream.closed
    assert (log.ended, log.closed) == (0, 1)


@pytest.mark.parametrize("error", [BackendTimeout("late"), ValueError("bug")])
async def test_an_error_reaches_everybody(begin: Callable[[Upstream], Flight], log: Log, error: Exception) -> None:
    flight = begin(Upstream(3, error=error))
    results = await asyncio.gather(*(read(flight) for _ in range(3)), return_exceptions=True)
    assert results == [error] * 3
    assert (log.seen, log.ended, log.closed) == (["0", "1", "2"], 0, 1)


async def test_a_pump_that_is_cancelled_from_outside_is_an_error_of_the_backend(
    begin: Callable[[Upstream], Flight],
) -> None:
    flight = begin(Upstream(10, gate=asyncio.Event()))
    reader = asyncio.create_task(read(flight))
    await asyncio.sleep(0.01)
    assert flight._pump is not None
    flight._pump.cancel()
    with pytest.raises(BackendError):
        await reader


async def test_it_does_not_run_away_from_its_readers(begin: Callable[[Upstream], Flight]) -> None:
    upstream = Upstream(10_000)
    flight = begin(upstream)
    async with aclosing(flight.read()) as events:
        await anext(events)
        await asyncio.sleep(0.01)
        assert upstream.said <= AHEAD + 2
        rest = [event.text async for event in events]
    assert len(rest) == 9_999


async def test_what_all_have_read_is_let_go_once_nobody_may_join(
    begin: Callable[[Upstream], Flight], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 100_000)
    flight = begin(Upstream(5_000))
    slow: list[str] = []
    most = 0
    async with aclosing(flight.read()) as behind, aclosing(flight.read()) as ahead:
        slow.append((await anext(behind)).text)
        async for _ in ahead:
            slow.append((await anext(behind)).text)
            most = max(most, len(flight._events))
            if len(slow) == 4_000:
                break
        assert log.closed == 1
        slow += [event.text async for event in behind]
    assert slow == [str(number) for number in range(5_000)]
    assert most < 1_000


async def test_cancelled_at_every_step_nothing_is_left(log: Log) -> None:
    for step in range(40):
        upstream = Upstream(6, gate=asyncio.Event())
        flight = Flight(upstream.events(), on_event=log.see, on_end=log.end, on_close=log.close)
        readers = [asyncio.create_task(read(flight)) for _ in range(2)]
        for _ in range(step):
            await asyncio.sleep(0)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        assert upstream.closed or upstream.said == 0
        assert flight._pump is None or flight._pump.done()
        assert flight._places == {}


async def test_it_runs_ahead_of_a_slow_reader_by_so_many_bytes(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_BYTES", 3000)
    upstream = Upstream(40)

    async def large() -> AsyncGenerator[ChatEvent, None]:
        async with aclosing(upstream.events()) as events:
            async for event in events:
                yield ChatEvent(text=event.text * 500)

    flight = Flight(large(), on_event=log.see, on_end=log.end, on_close=log.close)
    count = 0
    async with aclosing(flight.read()) as events:
        async for _ in events:
            count += 1
            for _ in range(5):
                await asyncio.sleep(0)
            assert upstream.said - count <= 6
    assert count == 40


async def test_few_events_that_are_large_are_let_go_as_well(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 50_000)
    monkeypatch.setattr(module, "AHEAD_BYTES", 30_000)

    async def large() -> AsyncGenerator[ChatEvent, None]:
        for number in range(40):
            yield ChatEvent(text=str(number % 10) * 20_000)

    flight = Flight(large(), on_event=log.see, on_end=log.end, on_close=log.close)
    most = 0
    async with aclosing(flight.read()) as events:
        async for _ in events:
            for _ in range(3):
                await asyncio.sleep(0)
            most = max(most, sum(len(event.text) for event in flight._events))
    assert log.closed == 1
    assert most <= 6 * 20_000


async def test_who_does_not_read_is_given_up_and_the_others_are_served(
    begin: Callable[[Upstream], Flight], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 4000)
    monkeypatch.setattr(module, "LAG", 60_000)  # bytes: about three hundred events
    flight = begin(Upstream(1000))
    async with aclosing(flight.read()) as stalled, aclosing(flight.read()) as slow, aclosing(flight.read()) as keen:
        first = await asyncio.gather(anext(stalled), anext(slow), anext(keen))
        assert [event.text for event in first] == ["0"] * 3
        had = 1
        for number in range(1, 1000):
            assert (await anext(keen)).text == str(number)
            if number - had > 100:  # behind, but never too far
                assert (await anext(slow)).text == str(had)
                had += 1
            assert flight._bytes <= 61_000
        assert [event.text async for event in slow] == [str(number) for number in range(had, 1000)]
        assert [event async for event in keen] == []
        with pytest.raises(BackendError, match="too slowly"):
            await anext(stalled)
    assert log.ended == 1
