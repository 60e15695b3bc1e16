"""Answers that are kept a moment later, together: nobody sees that it was later."""

from __future__ import annotations

import asyncio

import pytest
from support.backend import ScriptedBackend
from support.cache import Clock

from velollm.cache import ResponseCache
from velollm.cache.layer import SOON_SECONDS, CacheLayer
from velollm.collector import Collector
from velollm.messages import ChatRequest, Message, RequestContext

pytestmark = pytest.mark.anyio
SAMPLED = 0.7  # what is sampled is never compared, so that keeping it can wait


class Asked:
    """A cache around a scripted engine."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.cache = ResponseCache(clock=self.clock)
        self.engine = ScriptedBackend()
        self.layer = CacheLayer(self.engine, self.cache, clock=self.clock)

    async def ask(self, prompt: str, *, tenant: str = "") -> str:
        """What the answer says of the cache."""
        context = RequestContext(tenant=tenant)
        messages = [Message(role="user", content=prompt)]
        request = ChatRequest(model="tiny", messages=messages, temperature=SAMPLED, context=context)
        collector = Collector()
        async for event in self.layer.chat(request):
            collector.add(event)
        assert collector.answer().complete
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


async def test_nobody_elses_is_found() -> None:
    asked = Asked()
    await asked.ask("How do I boil an egg?", tenant="one")
    assert await asked.ask("How do I boil an egg?", tenant="other") == "miss"


async def test_it_is_as_old_as_the_answer() -> None:
    asked = Asked()
    await asked.ask("How do I boil an egg?")
    came = asked.clock()
    asked.clock.now += 5
    assert [entry.created for entry in asked.cache.entries()] == [came]


async def test_it_is_kept_without_being_asked_for() -> None:
    asked = Asked()
    for number in range(5):
        await asked.ask(f"What is {number} + {number}?")
    await asyncio.sleep(2 * SOON_SECONDS)
    store = asked.cache._store
    assert store.stats().entries == 5


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
