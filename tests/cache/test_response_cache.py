"""The cache as a library: tiers, tenants, times, modes, and what it says about itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.cache import Clock, answer, ask

from velollm.cache import Controls, ResponseCache
from velollm.cache.stores import MemoryStore

EGG = "How do I boil an egg?"
EGGS = "What's the best way to boil eggs?"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> Iterator[ResponseCache]:
    with ResponseCache(semantic="on", clock=clock, rng=random.Random(1)) as made:
        yield made


@pytest.mark.parametrize(
    ("again", "tier"), [(EGG, "exact"), ("hi! how do i boil an egg, please?", "canonical"), (EGGS, "semantic")]
)
def test_the_tiers(cache: ResponseCache, clock: Clock, again: str, tier: str) -> None:
    assert cache.store("t", ask(EGG), answer("8 minutes"))
    clock.now += 5
    hit = cache.lookup("t", ask(again))
    assert hit is not None
    assert (hit.tier, hit.age, hit.header) == (tier, 5, f"hit-{tier}")
    assert hit.answer == answer("8 minutes")
    assert 0 < hit.similarity <= 1


@pytest.mark.parametrize("tenant", ["u", "", None, "t "])
def test_tenants_are_apart(cache: ResponseCache, tenant: str | None) -> None:
    cache.store("t", ask(EGG), answer())
    for prompt in (EGG, EGG.lower(), EGGS):
        assert cache.lookup(tenant, ask(prompt)) is None
    assert b"t" not in {entry.tenant for entry in cache.entries()}


def test_tenants_may_share() -> None:
    with ResponseCache(semantic="on", shared=True) as cache:
        cache.store("t", ask(EGG), answer())
        assert cache.lookup("u", ask(EGGS)) is not None


@pytest.mark.parametrize("change", [{"model": "n"}, {"max_tokens": 3}, {"seed": 1}, {"stop": "x"}, {"top_p": 0.1}])
def test_parameters_are_apart(cache: ResponseCache, change: dict[str, Any]) -> None:
    cache.store("t", ask(EGG), answer())
    for prompt in (EGG, EGG.lower(), EGGS):
        assert cache.lookup("t", ask(prompt, **change)) is None


def test_context_is_apart(cache: ResponseCache) -> None:
    cache.store("t", ask(EGG, {"role": "system", "content": "French"}), answer())
    for prompt in (EGG, EGG.lower(), EGGS):
        assert cache.lookup("t", ask(prompt)) is None
        assert cache.lookup("t", ask(prompt, {"role": "system", "content": "German"})) is None


def test_variants_are_apart(cache: ResponseCache) -> None:
    cache.keep(cache.prepare("t", ask(EGG), variant="sha256:1"), answer())
    assert cache.find(cache.prepare("t", ask(EGGS), variant="sha256:2")).hit is None
    assert cache.find(cache.prepare("t", ask(EGGS), variant="sha256:1")).hit is not None


def test_an_answer_expires_and_a_caller_may_only_tighten(cache: ResponseCache, clock: Clock) -> None:
    cache.store("t", ask(EGG), answer(), Controls(ttl=10**9))
    cache.store("t", ask("What is DNA?"), answer(), Controls(ttl=10))
    clock.now += 11
    assert cache.lookup("t", ask("What is DNA?")) is None
    assert cache.lookup("t", ask(EGG), Controls(max_age=10)) is None
    assert cache.lookup("t", ask(EGG), Controls(max_age=11)) is not None
    clock.now += 3600
    assert cache.lookup("t", ask(EGG)) is None


def test_expiry_is_spread(cache: ResponseCache, clock: Clock) -> None:
    for number in range(50):
        cache.store("t", ask(f"What is thing {number}?"), answer())
    lives = [entry.expires - clock.now for entry in cache.entries()]
    assert 3240 <= min(lives) < max(lives) <= 3600
    assert max(lives) - min(lives) > 100


def test_no_store_and_no_cache(cache: ResponseCache) -> None:
    assert not cache.store("t", ask(EGG), answer(), Controls(no_store=True))
    assert cache.store("t", ask(EGG), answer("old"))
    assert cache.lookup("t", ask(EGG), Controls(no_cache=True)) is None
    assert cache.lookup("t", ask(EGG), Controls(no_store=True)) is None
    assert cache.store("t", ask(EGG), answer("new"), Controls(no_cache=True))
    hit = cache.lookup("t", ask(EGG))
    assert hit is not None
    assert hit.answer == answer("new")


@pytest.mark.parametrize("offered", [answer(finish="length"), {"error": "x"}, None, {"choices": [], "x": object()}])
def test_what_is_incomplete_is_not_kept(cache: ResponseCache, offered: Any) -> None:
    receipt = cache.store("t", ask(EGG), offered)
    assert not receipt
    assert receipt.reason
    assert not receipt.wait(0)
    assert cache.lookup("t", ask(EGG)) is None


def test_what_is_no_json_is_not_kept(cache: ResponseCache) -> None:
    assert cache.store("t", ask(EGG), {**answer(), "x": object()}).reason == "not-json"


@pytest.mark.parametrize("semantic", ["shadow", "off"])
def test_modes(semantic: Any) -> None:
    with ResponseCache(semantic=semantic) as cache:
        cache.store("t", ask(EGG), answer())
        found = cache.find(cache.prepare("t", ask(EGGS)))
        assert found.hit is None
        assert (found.shadow is not None) == (semantic == "shadow")
        assert found.header == "miss"
        routed = cache.find(cache.prepare("t", ask(EGGS)), {"semantic": "on", "exact": "on"})
        assert (routed.hit is not None) == (semantic == "shadow")


def test_shadow_evidence_and_distrust() -> None:
    with ResponseCache() as cache:
        cache.store("t", ask(EGG), answer("Boil it for 8 minutes."))
        request = cache.prepare("t", ask(EGGS))
        would = cache.find(request).shadow
        assert cache.record_shadow(request, would, answer("You boil it for 8 minutes."), route="chat", seconds=1.5)
        assert not cache.record_shadow(request, would, answer("Ask your mother."), route="chat", seconds=1.5)
        assert cache.find(request).shadow is None
        assert not cache.record_shadow(request, None, answer(), route="chat")
        (report,) = cache.report()
        assert (report.compared, report.agreed, report.misses, report.seconds_saved) == (2, 1, 1, 1.5)
        assert report.disagreements[0][:2] == (EGGS, EGG)


def test_shadow_mode_compares_when_the_answer_is_there() -> None:
    with ResponseCache() as cache:
        for prompt in (EGG, EGGS):
            request = cache.prepare("t", ask(prompt))
            found = cache.find_sure(request)
            assert found is not None
            assert found.compare
            would = cache.compare(request, answer("Boil it for 8 minutes."), route="chat", seconds=1.5)
            cache.keep(request, answer("Boil it for 8 minutes."))
        assert would is not None
        assert would.prompt == EGG
        (report,) = cache.report()
        assert (report.compared, report.agreed, report.misses, report.seconds_saved) == (1, 1, 1, 1.5)
        assert (cache.stats().misses, cache.stats().shadow_hits) == (1, 1)


def test_what_shadow_mode_found_out_outlives_the_process(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'answers.db'}"
    with ResponseCache(store=store) as cache:
        cache.store("t", ask(EGG), answer("Boil it for 8 minutes."))
        assert cache.compare(cache.prepare("t", ask(EGGS)), answer("Ask your mother."), route="chat") is not None
    with ResponseCache(store=store) as cache:
        assert cache.flush(5)
        (report,) = cache.report()
        assert (report.route, report.compared, report.agreed) == ("chat", 1, 0)
        assert report.disagreements[0][:2] == (EGGS, EGG)
        assert cache.lookup("t", ask(EGG)) is not None
        assert cache.find(cache.prepare("t", ask(EGGS))).shadow is None  # it is still not trusted
        cache.store("t", ask(EGG), answer("Boil it for 9 minutes."))  # nor is another answer to it
    with ResponseCache(store=store, semantic="on") as cache:
        assert cache.flush(5)
        assert cache.lookup("t", ask(EGGS)) is None


def test_a_route_may_have_any_name() -> None:
    with ResponseCache() as cache:
        for route in ("", "\ud800", "x" * 10**6, "\x00"):
            cache.record_shadow(cache.prepare("t", ask(EGG)), None, answer(), route=route)
        assert len(cache.report()) == 4


def test_a_flood_is_compared_in_part() -> None:
    clock = Clock()
    with ResponseCache(clock=clock) as cache:
        cache.store("t", ask(EGG), answer())
        cache._allowance.spend(1.0)
        request = cache.prepare("t", ask(EGGS))
        assert cache.compare(request, answer()) is None
        cache.keep(request, answer())
        assert cache.stats().indexed == 1
        assert cache.stats().not_compared == cache.report()[0].skipped == 1
        clock.now += 60
        assert cache.compare(cache.prepare("t", ask(EGGS)), answer()) is not None


def test_bypasses_say_why(cache: ResponseCache) -> None:
    for body, reason in (
        (ask("What time is it?"), "time-bound"),
        ({"messages": "x"}, "not-chat"),
        ({}, "not-chat"),
        (ask("hi", x="\ud800"), "invalid"),
        (ask("\ud800"), "invalid"),
    ):
        found = cache.find(cache.prepare("t", body))
        assert found.header == f"bypass; reason={reason}"
        assert not cache.store("t", body, answer())


def test_explain(cache: ResponseCache) -> None:
    cache.store("t", ask("How do I boil 2 eggs?"), answer())
    refused = cache.explain("t", ask("How do I boil 3 eggs?"))
    assert refused.tier is None
    assert refused.verdicts[2].refused[0][0] == "How do I boil 2 eggs?"
    assert refused.verdicts[2].reason.startswith("number")
    assert "number" in str(refused)
    accepted = cache.explain("t", ask("How can I boil two eggs?"))
    assert accepted.tier == "semantic"
    closed = cache.explain("t", ask("How can I boil 2 eggs?", tools=[{"type": "function"}]))
    assert [verdict.outcome for verdict in closed.verdicts] == ["miss", "closed", "closed"]
    assert closed.reason == "tools"
    assert cache.stats().lookups == 0


def test_stats(cache: ResponseCache) -> None:
    cache.lookup("t", ask(EGG))
    cache.store("t", ask(EGG), answer())
    cache.lookup("t", ask(EGG))
    cache.lookup("t", ask(EGGS))
    cache.lookup("t", ask("What time is it?"))
    cache.store("t", ask(EGG), answer(finish="length"))
    stats = cache.stats()
    assert (stats.lookups, stats.misses, stats.stores, stats.indexed) == (4, 1, 1, 1)
    assert stats.hits == {"exact": 1, "semantic": 1}
    assert stats.bypasses == {"time-bound": 1}
    assert stats.refused == {"truncated": 1}
    assert stats.store["entries"] == 1


def test_purge(cache: ResponseCache) -> None:
    for tenant in "tu":
        for model in "mn":
            cache.store(tenant, ask(EGG, model=model), answer())
    cache.keep(cache.prepare("t", ask("What is DNA?")), answer(), tags=("bio",))
    assert cache.purge(tag="bio") == 1
    assert cache.purge(tenant="t", model="m") == 1
    assert cache.lookup("t", ask(EGGS)) is None
    assert cache.lookup("u", ask(EGGS)) is not None
    assert cache.purge() == 3
    assert cache.stats().indexed == 0


def test_the_index_is_rebuilt_from_the_store(tmp_path: Path) -> None:
    setting = f"sqlite:{tmp_path / 'cache.db'}"
    with ResponseCache(semantic="on", store=setting) as cache:
        assert cache.store("t", ask(EGG), answer("8 minutes")).wait(5)
    with ResponseCache(semantic="on", store=setting) as cache:
        assert cache.flush(5)
        hit = cache.lookup("t", ask(EGGS))
        assert hit is not None
        assert (hit.tier, hit.answer) == ("semantic", answer("8 minutes"))
        assert cache.lookup("u", ask(EGGS)) is None


def test_an_evicted_answer_leaves_the_index() -> None:
    with ResponseCache(semantic="on", size="1MiB") as cache:
        cache.store("t", ask(EGG), answer("first"))
        for number in range(40):
            cache.store("t", ask(f"What is thing {number}?"), answer("x" * 50_000))
        assert cache.lookup("t", ask(EGGS)) is None
        stats = cache.stats()
        assert stats.indexed == stats.store["entries"] < 41
        assert stats.store["bytes"] <= 1 << 20


def test_120_answers_of_a_megabyte_stay_within_bounds() -> None:
    with ResponseCache(size="64MiB") as cache:
        for number in range(120):
            assert cache.store("t", ask(f"What is thing {number}?"), answer("x" * (1 << 20)))
        assert cache.stats().store["bytes"] <= 64 << 20
        assert cache.lookup("t", ask("What is thing 119?")) is not None
        assert not cache.store("t", ask(EGG), answer("x" * (65 << 20)))


def test_a_prompt_of_ten_megabytes_costs_its_hash(cache: ResponseCache) -> None:
    prompt = "please " * 1_500_000
    assert cache.store("t", ask(prompt), answer())
    assert cache.lookup("t", ask(prompt)) is not None
    assert cache.lookup("t", ask(prompt + ".")) is None
    assert cache.stats().store["bytes"] < 10_000


def test_a_stored_value_that_is_no_answer_is_a_miss(clock: Clock) -> None:
    store = MemoryStore(1 << 20, clock)
    with ResponseCache(semantic="on", store=store, clock=clock) as cache:
        cache.store("t", ask(EGG), answer())
        (entry,) = cache.entries()
        import attrs

        for poison in (b"", b"[]", b"{", b"null", orjson.dumps({"choices": []}), orjson.dumps({"error": "x"})):
            store.put(attrs.evolve(entry, answer=poison))
            assert cache.lookup("t", ask(EGG)) is None
        store.put(attrs.evolve(entry, tenant=b"x" * 16))
        assert cache.lookup("t", ask(EGG)) is None
        store.put(attrs.evolve(entry, check=b"x" * 16, alias_check=b"", prompt="x"))
        for prompt in (EGG, EGG.lower(), EGGS):
            assert cache.lookup("t", ask(prompt)) is None


@pytest.mark.parametrize(
    "options", [{"semantic": "maybe"}, {"ttl": 0}, {"jitter": 1}, {"size": "much"}, {"store": "disk"}, {"exact": ""}]
)
def test_settings_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ResponseCache(**options)


def test_an_embedder_retrieves_and_the_guards_decide() -> None:
    with ResponseCache(semantic="on", embedder=lambda text: [1.0, 0.0]) as cache:
        cache.store("t", ask("How do I boil an eggg?"), answer())
        assert cache.lookup("t", ask("How can I boil an eggg?")) is not None
        assert cache.lookup("t", ask("Who wrote Emmma?")) is None


def test_an_embedder_is_asked_where_a_word_may_be_a_slip_and_once() -> None:
    asked: list[str] = []

    def embed(text: str) -> list[float]:
        asked.append(text)
        return [1.0, 0.0]

    with ResponseCache(semantic="on", embedder=embed) as cache:
        for prompt in (EGG, "How do I boil an eggg?", EGGS):
            request = cache.prepare("t", ask(prompt))
            cache.find(request)
            cache.keep(request, answer())
    assert asked == ["how do i boil an eggg"]


def test_an_embedder_that_fails_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def embed(text: str) -> list[float]:
        raise OSError("gone")

    with ResponseCache(semantic="on", embedder=embed) as cache:
        for _ in range(3):
            cache.store("t", ask("How do I peel a banana?"), answer())
            assert cache.lookup("t", ask("How do I peel a bananna?")) is not None
            assert cache.lookup("t", ask("How do I fry a bananna?")) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
