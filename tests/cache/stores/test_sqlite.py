"""The SQLite store against what disks, other programs and other processes do to its file."""

from __future__ import annotations

import logging
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cache import Clock, entry

from velollm.cache.stores.file import APPLICATION_ID, SCHEMA_VERSION
from velollm.cache.stores.sqlite import SqliteStore

SIZE = 8 << 20


def filled(path: Path, count: int = 50) -> None:
    store = SqliteStore(path, SIZE, Clock())
    for number in range(count):
        store.put(entry(number, size=500, alias=number.to_bytes(16, "little")))
    assert store.flush(5)
    store.close()


def held(path: Path) -> int:
    """How many entries a store serves from a file, each of them compared."""
    store = SqliteStore(path, SIZE, Clock())
    try:
        found = [e for e in (store.get(entry(number).key) for number in range(50)) if e is not None]
        for one in (*found, *store.entries()):
            assert one.answer == b"x" * 500
        store.put(entry(99, size=500))
        assert store.get(entry(99).key) == entry(99, size=500)
        return len(found)
    finally:
        store.close()


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE diary (day TEXT)")
        db.commit()


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        db.execute("CREATE TABLE entries (key BLOB)")
        db.commit()


def text(path: Path) -> None:
    path.write_text("this is no database\n" * 300)


def zeroed(path: Path) -> None:
    filled(path)
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    filled(path)
    path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize("harm", [foreign, newer, text, zeroed, cut])
def test_a_file_that_cannot_be_trusted_is_set_aside_once_and_kept(
    harm: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.db"
    harm(path)  # type: ignore[operator]
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert held(path) == 0
        assert held(path) == 0
    aside = [p for p in tmp_path.iterdir() if "set-aside" in p.name and not p.name.endswith(("-wal", "-shm"))]
    assert [p.read_bytes() for p in aside] == [before]
    assert len(caplog.records) == 1


def test_an_empty_file_is_made_ours(tmp_path: Path) -> None:
    (tmp_path / "cache.db").touch()
    assert held(tmp_path / "cache.db") == 0
    assert [p.name for p in tmp_path.iterdir() if "set-aside" in p.name] == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 30), companion=st.booleans())
def test_flipped_bits_are_never_served(tmp_path: Path, seed: int, flips: int, companion: bool) -> None:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.db"
    filled(path)
    rng = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(flips):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    if companion:
        path.with_name(path.name + "-wal").write_bytes(rng.randbytes(5000))
    assert 0 <= held(path) <= 50


def test_values_that_another_wrote_are_misses(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    filled(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE entries SET data = ? WHERE rowid % 2", (b"\x80\x04K\x05.",))
        db.execute("UPDATE entries SET data = (SELECT data FROM entries WHERE rowid = 2) WHERE rowid = 4")
        db.execute("UPDATE entries SET data = 'text' WHERE rowid = 6")
        db.commit()
    assert held(path) == 23


def test_a_store_is_private_to_its_user(tmp_path: Path) -> None:
    filled(tmp_path / "deep" / "cache.db")
    assert (tmp_path / "deep" / "cache.db").stat().st_mode & 0o077 == 0


WRITER = """
    import sys
    sys.path.insert(0, "tests")
    from support.cache import Clock, entry
    from velollm.cache.stores.sqlite import SqliteStore

    store = SqliteStore(sys.argv[1], 8 << 20, Clock())
    for number in range(int(sys.argv[2]), 10**6):
        if store.wait(store.put(entry(number, size=500)), 5):
            print(number, flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.e2e)])
def test_killed_in_the_middle_of_a_write_nothing_acknowledged_is_lost(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "cache.db"
    acknowledged = -1
    rng = random.Random(5)
    root = Path(__file__).parents[3]
    for _ in range(kills):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(acknowledged + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
            assert process.stdout is not None
            for _ in range(rng.randrange(1, 40)):
                line = process.stdout.readline()
                assert line, "the writer failed"
                acknowledged = int(line)
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split("\n")
            acknowledged = max([acknowledged, *(int(line) for line in rest[:-1] if line)])
    store = SqliteStore(path, SIZE, Clock())
    try:
        assert store.stats().set_aside == 0
        assert all(store.get(entry(number).key) == entry(number, size=500) for number in range(acknowledged + 1))
    finally:
        store.close()


def test_a_folder_that_cannot_be_written_leaves_memory_at_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = SqliteStore(blocked / "cache.db", SIZE, Clock())
    for number in range(10):
        ticket = store.put(entry(number))
        assert store.get(entry(number).key) == entry(number)
        assert not store.wait(ticket, 5)
    stats = store.stats()
    store.close()
    assert stats.degraded
    assert stats.dropped_writes == 10
    assert len(caplog.records) == 1


FULL_DISK = """
    import logging, resource, signal, sys
    sys.path.insert(0, "tests")
    from support.cache import Clock, entry
    from velollm.cache.stores import sqlite

    logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sqlite._RETRY_AFTER = 0.05
    store = sqlite.SqliteStore(sys.argv[1], 64 << 20, Clock())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))
    for number in range(100):
        store.put(entry(number, size=100_000))
        assert store.get(entry(number).key).answer == b"x" * 100_000
    assert not store.flush(10) and store.stats().degraded and store.stats().dropped_writes > 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    import time
    for number in range(200, 300):
        time.sleep(0.02)
        if store.wait(store.put(entry(number)), 5):
            break
    assert not store.stats().degraded
    store.close()
"""


def test_a_full_disk_degrades_to_memory_with_one_warning_and_recovers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path / "cache.db")],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING") == 1
    assert done.stderr.count("in use again") == 1


def test_a_purge_by_another_process_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from velollm.cache.stores import Selection, sqlite

    monkeypatch.setattr(sqlite, "_PEER_CHECK_EVERY", 0.0)
    one, other = (SqliteStore(tmp_path / "cache.db", SIZE, Clock()) for _ in range(2))
    one.put(entry(1))
    assert one.flush(5)
    assert one.get(entry(1).key) is not None
    assert other.purge(Selection()) == 1
    assert one.get(entry(1).key) is None
    one.close()
    other.close()
