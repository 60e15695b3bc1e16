"""Where requests go: by load, weight and turn, by prefix and session."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scheduling_world import World

from velollm.messages import ChatRequest, Message, RequestContext
from velollm.routing.affinity import MOST_BLOCKS, Chain, PrefixTable, RecentTable, chain_of

LANES = {"a": 2, "b": 2, "c": 2}


def conversation(system: str, *turns: str, tenant: str = "", model: str = "m") -> ChatRequest:
    messages = [Message(role="system", content=system)] if system else []
    for number, turn in enumerate(turns):
        messages.append(Message(role="assistant" if number % 2 else "user", content=turn))
    return ChatRequest(model=model, messages=messages, context=RequestContext(tenant=tenant))


def ask(world: World, chain: Chain, **more: object) -> str:
    job = world.ask(
        10, prompt=chain.tokens[-1], prefix=chain.hashes, block_tokens=chain.tokens, shared=chain.shared, **more
    )
    world.run(world.now + 5)
    assert job.lane is not None
    return job.lane


def placed(world: World) -> Counter[str]:
    return Counter(job.lane or "" for job in world.served)


# ---- chains ----


def test_a_turn_begins_with_the_one_before() -> None:
    first, second = chain_of(conversation("s", "a")), chain_of(conversation("s", "a", "b", "c"))
    assert second.hashes[: len(first.hashes)] == first.hashes
    assert (first.shared, second.shared) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [
        conversation("s", "b"),
        conversation("t", "a"),
        conversation("s", "a", tenant="x"),
        conversation("s", "a", model="n"),
    ],
)
def test_chains_differ(other: ChatRequest) -> None:
    assert chain_of(conversation("s", "a")).hashes[-1] != chain_of(other).hashes[-1]


def test_long_texts_have_several_blocks_and_no_more_than_enough() -> None:
    assert len(chain_of(conversation("x" * 10_000, "a")).hashes) == 4
    assert chain_of(conversation("x" * 10_000, "a")).shared == 3
    assert len(chain_of(conversation("", *["a"] * 1000)).hashes) == MOST_BLOCKS
    growing = [chain_of(ChatRequest(prompt="y" * length)).hashes for length in (5000, 7000, 9000)]
    assert growing[0] == growing[1] == growing[2][:1]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=200))
def test_the_table_is_bounded(prompts: list[list[int]]) -> None:
    table = PrefixTable(most=20)
    recent = RecentTable(10)
    for number, prompt in enumerate(prompts):
        hashes = tuple(hash(tuple(prompt[: index + 1])) for index in range(len(prompt)))
        table.record(hashes, "ab"[number % 2])
        recent.put(hashes[0], "ab"[number % 2])
        assert len(table) <= 20
        found = table.find(hashes, 0)
        assert found is not None
        assert found[0] == "ab"[number % 2]
        assert sum(recent.counts.values()) == len(recent) <= 10


# ---- policies ----


def test_a_conversation_stays_at_its_home() -> None:
    world = World(LANES, policy="prefix")
    homes: dict[int, str] = {}
    turns: dict[int, list[str]] = {number: [] for number in range(9)}
    for turn in range(4):
        for number in range(9):
            turns[number] += [f"answer {turn}"] * bool(turn) + [f"question {number} {turn}"]
            lane = ask(world, chain_of(conversation("the same for all " * 100, *turns[number])))
            assert homes.setdefault(number, lane) == lane
    assert set(Counter(homes.values()).values()) == {3}, "new ones go where the fewest are"


def test_a_shared_beginning_decides_nothing() -> None:
    """Also where it is no system prompt, once enough have gone on from it in their own ways."""
    world = World(LANES, policy="prefix")
    for number in range(30):
        ask(
            world,
            chain_of(conversation("", "the same example " * 300, "its answer", f"a question of its own {number}")),
        )
    assert min(placed(world).values()) >= 6


def test_it_waits_for_its_home_rather_than_prefill_again() -> None:
    world = World({"a": 1, "b": 1}, policy="prefix")
    long = "word " * 4000
    home = ask(world, chain_of(conversation("", long)))
    blocker = world.ask(300, prefix=(1,), block_tokens=(10,), home=None)
    while blocker.lane != home:
        world.run(world.now + 5)
        blocker = world.ask(300, prefix=(len(world.served),), block_tokens=(10,))
    chain = chain_of(conversation("", long, "answer", "and then?"))
    job = world.ask(10, prompt=chain.tokens[-1], prefix=chain.hashes, block_tokens=chain.tokens, shared=chain.shared)
    world.run(world.now + 10)
    assert job.lane == home


def test_a_short_beginning_is_not_waited_for() -> None:
    world = World({"a": 1, "b": 1}, policy="prefix")
    chain = chain_of(conversation("", "hello"))
    jobs = [
        world.ask(100, prompt=5, prefix=chain.hashes, block_tokens=chain.tokens, shared=chain.shared) for _ in range(8)
    ]
    world.run(10)
    assert set(Counter(job.lane for job in jobs).values()) == {4}


@pytest.mark.parametrize("policy", ["least-loaded", "prefix"])
def test_sessions_stick(policy: str) -> None:
    world = World(LANES, policy=policy)
    for turn in range(10):
        for number in range(12):
            world.at(turn * 1.5 + number * 0.1, lambda n=number: world.ask(40, conversation=f"s{n}"))
    world.run(30)
    stuck = 0
    for number in range(12):
        homes = [job.lane for job in world.served if job.conversation == f"s{number}"]
        stuck += sum(home == homes[0] for home in homes[1:])
    assert stuck >= 0.9 * 12 * 9
    assert min(placed(world).values()) >= 20


def test_weights_are_shares() -> None:
    world = World({"a": 100, "b": 100}, policy="weighted")
    world.dispatcher.lanes["a"].weight = 3
    for _ in range(80):
        world.ask(10)
    assert placed(world) == {"a": 60, "b": 20}
    lanes = [job.lane for job in world.served]
    assert all("b" in lanes[start : start + 4] for start in range(0, 80, 4)), "evenly spread"


def test_round_robin_is_a_round() -> None:
    world = World(LANES, policy="round-robin")
    for _ in range(30):
        world.ask(10)
        world.run(world.now + 1)
    lanes = [job.lane for job in world.served]
    assert lanes == ["a", "b", "c"] * 10


def test_the_least_loaded_is_that_with_the_fewest_tokens() -> None:
    world = World({"a": 4, "b": 4})
    world.ask(1000)
    assert [world.ask(50).lane for _ in range(3)] == ["b", "b", "b"]
