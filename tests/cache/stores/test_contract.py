"""What every store promises, tested on all of them; Redis is a real server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cache import Clock, entry
from support.redis import RedisServer

from velollm.cache.evidence import Disagreement, Evidence
from velollm.cache.stores import Selection, Store, open_store

MB = 1 << 20
SIZE = 4 * MB


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    pytest.importorskip("redis")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Store]]:
    """Opens stores over the same medium."""
    setting = request.param
    if setting == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        import redis

        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        setting = server.url
    elif setting == "sqlite":
        setting = f"sqlite:{tmp_path / 'cache.db'}"
    opened: list[Store] = []

    def opener() -> Store:
        opened.append(open_store(setting, SIZE, clock))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()


@pytest.fixture
def store(make: Callable[[], Store]) -> Store:
    return make()


def test_what_is_put_is_there_at_once_and_for_good(store: Store) -> None:
    ticket = store.put(entry(1))
    assert ticket
    assert store.get(entry(1).key) == entry(1)
    assert store.wait(ticket, 5)
    assert store.get(entry(1).key) == entry(1)
    assert store.get(entry(2).key) is None


def test_an_alias_leads_to_the_newest_entry(store: Store) -> None:
    store.put(entry(1, alias=b"a" * 16))
    store.put(entry(2, alias=b"a" * 16))
    assert store.flush(5)
    assert store.find(b"a" * 16) == entry(2, alias=b"a" * 16)
    assert store.find(b"b" * 16) is None


def test_a_second_put_replaces_the_first(store: Store) -> None:
    store.put(entry(1))
    store.put(entry(1, size=50))
    assert store.flush(5)
    assert store.get(entry(1).key) == entry(1, size=50)
    assert [e.size for e in store.entries()] == [entry(1, size=50).size]


def test_expired_is_gone(store: Store, clock: Clock) -> None:
    store.put(entry(1, expires=clock.now + 60, alias=b"a" * 16))
    assert store.flush(5)
    clock.now += 61
    assert store.get(entry(1).key) is None
    assert store.find(b"a" * 16) is None
    assert list(store.entries()) == []


def test_deleted_is_gone(store: Store) -> None:
    store.put(entry(1, alias=b"a" * 16))
    assert store.flush(5)
    store.delete(entry(1).key)
    assert store.get(entry(1).key) is None or store.flush(5)
    store.put(entry(2))
    assert store.flush(5)
    assert [e.key for e in store.entries()] == [entry(2).key]


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(), []),
        (Selection(model="other"), [1, 2, 4]),
        (Selection(tag="x"), [1, 3, 4]),
        (Selection(tag="x y"), [1, 2, 3]),
        (Selection(tenant=b"t" * 16), [4]),
        (Selection(model="m", tag="x"), [1, 3, 4]),
        (Selection(model="nobody's"), [1, 2, 3, 4]),
    ],
)
def test_purge(store: Store, selection: Selection, left: list[int]) -> None:
    forgotten: list[bytes] = []
    store.on_forget = forgotten.append
    all_of_them = [
        entry(1),
        entry(2, tags=("x",)),
        entry(3, model="other"),
        entry(4, tenant=b"u" * 16, tags=("x y", "x z"), model="m2"),
    ]
    for one in all_of_them:
        store.put(one)
    assert store.purge(selection) == 4 - len(left)
    assert [int.from_bytes(e.key, "big") for e in store.entries()] == left
    assert set(forgotten) >= {e.key for e in all_of_them} - {n.to_bytes(16, "big") for n in left}
    for one in all_of_them:
        assert (store.get(one.key) is not None) == (int.from_bytes(one.key, "big") in left)


def test_entries_come_oldest_first(store: Store) -> None:
    for number in (3, 1, 2):
        store.put(entry(number, created=1_700_000_000.0 - number))
    assert store.flush(5)
    expected = [3, 1, 2] if store.stats().kind != "redis" else [3, 2, 1]
    assert [int.from_bytes(e.key, "big") for e in store.entries()] == expected


def test_what_is_too_large_is_refused(store: Store) -> None:
    assert store.put(entry(1, size=SIZE + 1)) == 0
    assert store.get(entry(1).key) is None
    assert store.stats().oversized == 1


def test_bytes_are_bounded(store: Store) -> None:
    """120 answers of half a megabyte in a store of four: what is held stays below, and the newest is there."""
    for number in range(120):
        assert store.put(entry(number, size=MB // 2))
        if number % 10 == 0:
            store.flush(5)
    assert store.flush(20)
    stats = store.stats()
    assert stats.bytes <= SIZE
    assert stats.limit == SIZE
    assert store.get(entry(119).key) == entry(119, size=MB // 2)


def test_the_least_recently_used_goes_first(store: Store, clock: Clock) -> None:
    if store.stats().kind == "redis":
        pytest.skip("the server's own policy decides")
    for number in range(200):
        clock.now += 1
        store.put(entry(number, size=40_000))
        store.flush(5)
        assert store.get(entry(0).key) is not None, number
    assert store.get(entry(1).key) is None


def test_a_persistent_store_keeps_what_it_had(make: Callable[[], Store]) -> None:
    first = make()
    for number in range(20):
        first.put(entry(number, alias=number.to_bytes(16, "little")))
    first.close()
    second = make()
    held = [int.from_bytes(e.key, "big") for e in second.entries()]
    assert held == (list(range(20)) if second.persistent else [])
    if second.persistent:
        assert second.get(entry(7).key) == second.find((7).to_bytes(16, "little"))


def test_two_processes_see_each_other(make: Callable[[], Store]) -> None:
    one, other = make(), make()
    if not one.persistent:
        pytest.skip("memory is one process's own")
    one.put(entry(1))
    assert one.flush(5)
    assert other.get(entry(1).key) == entry(1)
    other.put(entry(1, size=99))
    other.put(entry(2))
    assert other.flush(5)
    assert one.get(entry(2).key) == entry(2)


def test_many_threads(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    numbers = itertools.count()

    def work(_: int) -> bool:
        number = next(numbers) % 50
        store.put(entry(number))
        found = store.get(entry(number).key)
        return found is None or found == entry(number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))
    assert store.flush(10)
    assert len(list(store.entries())) == 50


@pytest.mark.parametrize("setting", ["disk", "sqlite:", "sqlite", "mysql://x", ""])
def test_an_unknown_store_is_named(setting: str) -> None:
    with pytest.raises(ValueError, match="store"):
        open_store(setting, SIZE, Clock())


def found(asked: int = 1, tenant: bytes = b"t", model: str = "m") -> Evidence:
    quoted = Disagreement(asked="a", stored="b", agreement=0.1, tenant=tenant, model=model)
    return Evidence(asked=asked, compared=1, seconds=0.5, first=5.0, last=6.0 + asked, disagreements=[quoted])


def test_evidence_adds_up(store: Store) -> None:
    assert store.evidence() == {}
    for _ in range(3):
        store.add_evidence("chat", found())
    store.add_evidence("other", found(7))
    known = store.evidence()
    assert (known["chat"].asked, known["chat"].seconds, len(known["chat"].disagreements)) == (3, 1.5, 3)
    assert known["other"] == found(7)


def test_evidence_outlives_the_process_and_is_shared(make: Callable[[], Store]) -> None:
    one = make()
    if not one.persistent:
        pytest.skip("memory is one process's own")
    other = make()
    one.add_evidence("chat", found())
    assert one.flush(5)
    other.add_evidence("chat", found())
    assert other.evidence()["chat"].asked == one.evidence()["chat"].asked == 2
    one.add_evidence("chat", found())
    one.close()
    other.close()
    assert make().evidence()["chat"].asked == 3


def test_a_purge_takes_the_words_of_a_tenant_and_a_whole_one_everything(store: Store) -> None:
    store.add_evidence("chat", found(tenant=b"ann"))
    store.add_evidence("chat", found(tenant=b"bob"))
    assert store.flush(5)
    store.add_evidence("chat", found(tenant=b"ann"))
    store.purge(Selection(tenant=b"ann"))
    known = store.evidence()["chat"]
    assert (known.asked, [one.tenant for one in known.disagreements]) == (3, [b"bob"])
    store.purge(Selection())
    assert store.evidence() == {}
