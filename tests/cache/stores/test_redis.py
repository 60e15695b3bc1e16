"""The Redis store against a server that is poisoned, killed, frozen and started again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cache import Clock, entry
from support.redis import RedisServer

from velollm.cache.entry import encode
from velollm.cache.stores.open import open_store
from velollm.cache.stores.redis import RedisStore

redis = pytest.importorskip("redis")
KEY = b"velollm:cache:1:e:" + entry(1).key.hex().encode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    made = RedisServer(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    made = open_store(server.url, 1 << 20, Clock())
    assert isinstance(made, RedisStore)
    yield made
    made.close()


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as made:
        yield made


@pytest.mark.parametrize(
    "value", [b"", b"junk", b"\x80\x04K\x05.", encode(entry(2)), encode(entry(1))[:-1], b"VLC9" + encode(entry(1))[4:]]
)
def test_poisoned_values_are_misses(store: RedisStore, client: Any, value: bytes) -> None:
    client.set(KEY, value)
    assert store.get(entry(1).key) is None
    assert store.stats().damaged == 1
    assert not store.stats().degraded
    assert list(store.entries()) in ([], [entry(2)])


def test_a_key_of_another_type_is_a_miss_and_no_outage(store: RedisStore, client: Any) -> None:
    client.rpush(KEY, b"x")
    client.set(b"velollm:cache:1:a:" + (b"a" * 16).hex().encode(), b"short")
    assert store.get(entry(1).key) is None
    assert store.find(b"a" * 16) is None
    assert not store.stats().degraded
    store.put(entry(2))
    assert store.flush(5)


def test_entries_expire_on_the_server(store: RedisStore, client: Any) -> None:
    store.put(entry(1, expires=1_700_000_000.0 + 100))
    assert store.flush(5)
    assert 0 < client.pttl(KEY) <= 100_000


def test_a_server_that_dies_and_comes_back(
    store: RedisStore, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store.put(entry(1))
    assert store.flush(5)
    server.kill()
    slowest = 0.0
    for number in range(2, 300):
        before = time.perf_counter()
        store.put(entry(number))
        assert store.get(entry(number).key) == entry(number)
        assert store.get(entry(number + 1000).key) is None
        slowest = max(slowest, time.perf_counter() - before)
    assert store.stats().degraded
    server.start()
    end = time.monotonic() + 5
    while not store.wait(store.put(entry(5000)), 5) and time.monotonic() < end:
        time.sleep(0.05)
    assert not store.stats().degraded
    warned = [record.levelname for record in caplog.records if record.name == "velollm.cache"]
    assert warned.count("WARNING") == 1
    assert warned.count("INFO") == 1
    assert slowest < 1.0


def test_a_server_that_hangs_costs_one_short_wait(store: RedisStore, server: RedisServer) -> None:
    store.put(entry(1))
    assert store.flush(5)
    server.freeze()
    try:
        before = time.perf_counter()
        for number in range(100, 200):
            assert store.get(entry(number).key) is None
        assert time.perf_counter() - before < 1.0
        assert store.stats().degraded
    finally:
        server.thaw()


def test_a_server_that_was_never_there(tmp_path: Path) -> None:
    store = open_store("redis://127.0.0.1:1/0", 1 << 20, Clock())
    assert not store.wait(store.put(entry(1)), 5)
    assert store.get(entry(1).key) == entry(1)
    assert list(store.entries()) == [entry(1)]
    assert store.purge.__self__.stats().degraded  # type: ignore[attr-defined]
    store.close()
