"""Answers that are kept as they came, until somebody might be answered from them: nobody sees the difference."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from typing import Any, NoReturn

import pytest
from support.asking import answer
from support.backend import ScriptedBackend
from support.cache import Clock

from velollm.cache import ResponseCache
from velollm.cache.layer import CacheLayer, key_tag
from velollm.cache.layer.flight import Flight
from velollm.messages import ChatEvent, ChatRequest, Message, RequestContext

pytestmark = pytest.mark.anyio
SAMPLED = 0.7  # what is sampled is never compared, so that keeping it can wait


class TruncatedBackend(ScriptedBackend):
    """Always runs out of tokens."""

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        yield ChatEvent(text="half", finish_reason="length")


class Asked:
    """A cache around a scripted engine."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.cache = ResponseCache(clock=self.clock, **options)
        self.engine: ScriptedBackend = ScriptedBackend()
        self.layer = CacheLayer(self.engine, self.cache, clock=self.clock)

    async def ask(self, prompt: str, *, tenant: str = "", temperature: float | None = SAMPLED) -> str:
        """What the answer says of the cache."""
        context = RequestContext(tenant=tenant)
        messages = [Message(role="user", content=prompt)]
        request = ChatRequest(model="tiny", messages=messages, temperature=temperature, context=context)
        assert (await answer(self.layer, request)).complete
        return context.headers["x-velollm-cache"]


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ("How do I boil an egg?", "hit-exact"),
        ("Hi! How do I boil an egg, please?", "hit-canonical"),
        ("How do I boil a potato?", "miss"),
        ("How do I boil two egg?", "miss"),
    ],
)
async def test_the_next_request_finds_it(again: str, said: str) -> None:
    asked = Asked()
    assert await asked.ask("How do I boil an egg?") == "miss"
    assert await asked.ask(again) == said


async def test_nobody_elses_is_found_or_takes_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    read = []
    monkeypatch.setattr(asked.cache._store, "on_read", read.append)
    await asked.ask("How do I boil an egg?", tenant="one")
    assert await asked.ask("How do I boil an egg?", tenant="other") == "miss"
    assert await asked.ask("How do I boil an egg, please?", tenant="other") == "miss"
    assert [unread.tags for unread in read] == [(key_tag("other"),)]


async def test_it_is_as_old_as_the_answer() -> None:
    asked = Asked()
    await asked.ask("How do I boil an egg?")
    came = asked.clock()
    asked.clock.now += 5
    assert [entry.created for entry in asked.cache.entries()] == [came]


def forbidden(*_: object) -> NoReturn:
    raise AssertionError("nobody has asked for it")


async def test_nothing_is_worked_out_before_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    with monkeypatch.context() as patch:
        patch.setattr("velollm.cache.request.derive_keys", forbidden)
        for word in ("potatoes", "tomatoes", "carrots"):
            assert await asked.ask(f"Where do {word} come from?") == "miss"
    stats = asked.cache.stats()
    assert (stats.stores, stats.misses, stats.store["entries"]) == (3, 3, 3)
    assert await asked.ask("Where do tomatoes come from?") == "hit-exact"
    assert asked.cache.stats().stores == 3


async def test_what_a_flood_leaves_uncompared_is_not_worked_out_either(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    asked.cache._allowance.spend(1e9)
    with monkeypatch.context() as patch:
        patch.setattr("velollm.cache.request.canonicalize", forbidden)
        for word in ("potatoes", "tomatoes", "carrots"):
            assert await asked.ask(f"Where do {word} come from?", temperature=None) == "miss"
    assert asked.cache.stats().not_compared == 3
    assert await asked.ask("Hi! Where do tomatoes come from, please?", temperature=None) == "hit-canonical"


async def test_it_expires_and_makes_room() -> None:
    asked = Asked()
    await asked.ask("Where do potatoes come from?")
    asked.clock.now += asked.cache.ttl + 1
    await asked.ask("Where do tomatoes come from?")
    stats = asked.cache.stats().store
    assert (stats["entries"], stats["expired"]) == (1, 1)
    assert await asked.ask("Where do potatoes come from?") == "miss"


async def test_the_oldest_makes_way() -> None:
    asked = Asked(size=16_000)
    for number in range(1000, 1100):
        await asked.ask(f"What is number {number}?")
    stats = asked.cache.stats().store
    assert stats["bytes"] <= 16_000
    assert stats["entries"] + stats["evictions"] == 100
    assert await asked.ask("What is number 1099?") == "hit-exact"
    assert await asked.ask("What is number 1000?") == "miss"


async def test_a_long_request_is_kept_by_its_keys_alone() -> None:
    asked = Asked()
    assert await asked.ask("Where do potatoes come from? " + "x " * 5000) == "miss"
    assert asked.cache.stats().store["bytes"] < 5000
    assert await asked.ask("Where do potatoes come from? " + "x " * 5000) == "hit-exact"


async def test_an_answer_that_ran_out_of_tokens_is_refused_at_once() -> None:
    asked = Asked()
    asked.engine = TruncatedBackend()
    asked.layer.inner = asked.engine
    await asked.ask("Where do potatoes come from?")
    assert asked.cache.stats().refused == {"truncated": 1}


async def test_an_answer_is_no_work_for_the_collector_of_garbage() -> None:
    asked = Asked()
    await asked.ask("Where do potatoes come from?", temperature=None)
    gc.collect()
    others = [one for one in gc.get_objects() if isinstance(one, Flight)]  # of other tests
    gc.disable()
    try:
        await asked.ask("Where do tomatoes come from?", temperature=None)
        await asyncio.sleep(0.01)  # the flight lands behind its last reader
        assert not [one for one in gc.get_objects() if isinstance(one, Flight) and one not in others]
    finally:
        gc.enable()


@pytest.mark.parametrize(("tenant", "left"), [("one", 1), ("nobody", 2)])
async def test_a_purge_need_not_read_it(tenant: str, left: int) -> None:
    asked = Asked()
    for name in ("one", "other"):
        await asked.ask("Where do potatoes come from?", tenant=name)
    assert asked.cache.purge(tag=key_tag(tenant)) == 2 - left
    assert asked.cache.stats().store["entries"] == left


@pytest.mark.parametrize("look", ["stats", "entries", "purge", "flush", "close"])
async def test_whoever_looks_sees_it(look: str) -> None:
    asked = Asked()
    await asked.ask("How do I boil an egg?")
    seen = getattr(asked.cache, look)()
    if look == "stats":
        assert seen.stores == 1
    elif look == "entries":
        assert len(seen) == 1
    elif look == "purge":
        assert seen == 1
        assert await asked.ask("How do I boil an egg?") == "miss"


async def test_the_alias_comes_with_the_first_that_is_alike() -> None:
    asked = Asked()
    await asked.ask("How do I boil an egg?")
    await asked.ask("What is photosynthesis?")
    assert {entry.alias for entry in asked.cache.entries()} == {b""}
    assert await asked.ask("how do i boil an egg") == "hit-canonical"
    assert sorted(entry.alias == b"" for entry in asked.cache.entries()) == [False, True]


async def test_many_that_look_alike_are_not_kept_waiting_for_one() -> None:
    asked = Asked()
    for number in range(100):  # short words have no part in a sketch: all of these have the same
        assert await asked.ask(f"is {number} odd") == "miss"
    entries = asked.cache.entries()
    assert len(entries) == 100
    assert sum(entry.alias == b"" for entry in entries) <= 16
    assert await asked.ask("Is 7 odd?") == "hit-canonical"
    assert await asked.ask("Is 99 odd?") == "hit-canonical"
    assert all(entry.alias for entry in asked.cache.entries())
    assert asked.cache.purge() == 100
    assert await asked.ask("Is 7 odd?") == "miss"
