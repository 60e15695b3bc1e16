"""`velollm cache` on a store of its own, and `velollm embed`; against a server they run in tests/e2e."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.cache import answer, ask

from velollm.cache import ResponseCache
from velollm.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> str:
    setting = f"sqlite:{tmp_path / 'answers.db'}"
    with ResponseCache(store=setting, ttl=10**8) as cache:
        for model in ("m", "n"):
            cache.store("ann", ask("How do I boil an egg?", model=model), answer("8 minutes"))
        assert cache.flush(5)
    return setting


def test_stats(store: str, capsys: Capture) -> None:
    assert main(["cache", "stats", "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store"]["entries"] == 2
    assert main(["cache", "stats", "--store", store]) == 0
    assert "entries                    2" in capsys.readouterr().out


def test_export_and_purge(store: str, capsys: Capture) -> None:
    assert main(["cache", "export", "--store", store]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["answer"]["choices"][0]["message"]["content"] for line in lines] == ["8 minutes"] * 2
    assert main(["cache", "purge", "--store", store, "--model", "m"]) == 0
    assert capsys.readouterr().out == "1 entry is gone\n"
    assert main(["cache", "purge", "--store", store, "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"purged": 1}


def test_a_report_needs_evidence(store: str, capsys: Capture) -> None:
    assert main(["cache", "report", "--store", store]) == 0
    assert "nothing to report" in capsys.readouterr().out


@pytest.fixture
def evidence(store: str) -> str:
    asked = ask("What is the best way to boil eggs?", model="m")
    with ResponseCache(store=store) as cache:
        assert cache.flush(5)
        for said in ("8 minutes", "Ask her"):
            assert cache.compare(cache.prepare("ann", asked), answer(said), route="m", seconds=90.0) is not None
    return store


def test_a_report_without_a_server(evidence: str, capsys: Capture) -> None:
    assert main(["cache", "report", "--store", evidence]) == 0
    shown = capsys.readouterr().out
    assert "2 of them (100%) the semantic tier would have answered" in shown
    assert "1 of those answers (50.0%) agree" in shown
    assert "7 tokens and 2 minutes of the engine" in shown
    assert "50 comparisons are too few" in shown
    assert "'What is the best way to boil eggs?'  'How do I boil an egg?'  0%" in shown
    assert main(["cache", "report", "--store", evidence, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["agreed"] == 1


def test_where_no_server_is_the_store_of_the_settings_is_read(evidence: str, tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "velollm.toml"
    config.write_text(f'[server]\nport = 9\n[cache]\nstore = "{evidence}"\n')
    assert main(["--config", str(config), "cache", "report"]) == 0
    out, err = capsys.readouterr()
    assert "no server answers at http://127.0.0.1:9" in err
    assert "2 of them" in out


def test_a_purge_takes_the_words_from_the_report(evidence: str, capsys: Capture) -> None:
    assert main(["cache", "purge", "--store", evidence, "--tenant", "ann"]) == 0
    capsys.readouterr()
    assert main(["cache", "report", "--store", evidence]) == 0
    shown = capsys.readouterr().out
    assert "2 of them" in shown
    assert "boil" not in shown


def test_what_is_no_store_is_left_as_it_is(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "diary.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE diary (day TEXT)")
        db.commit()
    before = path.read_bytes()
    for action in (["stats"], ["export"], ["purge", "--all"]):
        assert main(["cache", *action, "--store", f"sqlite:{path}"]) == 1
        assert "belongs to another program" in capsys.readouterr().err
        assert main(["cache", *action, "--store", f"sqlite:{tmp_path / 'none.db'}"]) == 1
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["diary.db"]


def test_nobody_answers(capsys: Capture) -> None:
    assert main(["cache", "stats", "--url", "http://127.0.0.1:1"]) == 1
    assert "velollm serve" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["purge"], ["stats", "--store", "disk"]])
def test_usage(words: list[str], capsys: Capture) -> None:
    assert main(["cache", *words]) == 2
    assert "--" in capsys.readouterr().err


def test_embed_needs_the_right_wheel(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("numpy")
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"x")
    assert main(["-q", "embed", "install", "--folder", str(tmp_path / "to"), "--wheel", str(wheel)]) == 1
    assert "SHA-256" in capsys.readouterr().err
