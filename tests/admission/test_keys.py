"""The file of keys: made, read, changed under a running server, and what keys allow."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from velollm.admission import KeyFile, KeyRing, add_key, hash_key, list_keys, new_key, read_keys, revoke_key
from velollm.admission.keys import Key
from velollm.cli import main
from velollm.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def key(**changes: object) -> Key:
    return Key(**{"name": "x", "salt": b"s" * 16, "digest": b"d" * 32, **changes})


def test_a_key_is_found_by_its_text_and_kept_as_its_hash(path: Path) -> None:
    secret = add_key(path, "alice", rpm=5, models=("a*",), admin=True)
    ring = read_keys(path)
    found = ring.find(secret)
    assert found is not None
    assert (found.name, found.rpm, found.models, found.admin) == ("alice", 5, ("a*",), True)
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for wrong in (
        "",
        "x",
        secret + "x",
        secret[:-1],
        "é" * 20,
        "\udcff" * 20,
        "x" * 6000,
        "' or 1=1 --",
        f"{secret}\0",
    ):
        assert ring.find(wrong) is None


def test_plain_keys_are_hashed_on_first_read(path: Path) -> None:
    path.write_text('# ours\n[[keys]]\nname = "bob"\nkey = "plain-text-key-of-bob"  # old\nrpm = 3\n')
    os.chmod(path, 0o644)
    found = read_keys(path).find("plain-text-key-of-bob")
    assert found is not None
    assert found.rpm == 3
    text = path.read_text()
    assert "plain-text" not in text
    assert text.startswith("# ours\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path).find("plain-text-key-of-bob") is not None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rpm = 0", "rpm"), ('rpm = "5"', "rpm"), ("tpm = -1", "tpm"), ('priority = "urgent"', "priority"),
        ("models = [1]", "models"), ("admin = 1", "admin"), ("colour = 1", "colour"), ('key = "short"', "key or hash"),
        ("rpm = true", "rpm"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(path: Path, line: str, words: str) -> None:
    path.write_text(f'[[keys]]\nname = "a"\nhash = "{hash_key(new_key())}"\n{line}\n')
    with pytest.raises(ConfigError, match=words):
        read_keys(path)


def test_a_short_key_is_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text('[[keys]]\nname = "test"\nkey = "sk-1"\n')
    path.chmod(0o600)
    key = read_keys(path).find("sk-1")
    assert key is not None
    assert key.name == "test"
    assert "can be guessed" in caplog.text
    assert "sk-1" not in caplog.text


@pytest.mark.parametrize("text", ["", "keys = 5", 'other = 1\n[[keys]]\nname = "a"', "[[keys]]\nname = 'a' secret!"])
def test_a_file_of_something_else_is_refused_without_showing_it(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert "secret!" not in caught.value.message


def test_revoking_leaves_the_others_as_they_are(path: Path) -> None:
    secrets = {name: add_key(path, name) for name in ("a", "b", "c")}
    path.write_text("# our keys\n" + path.read_text())
    revoke_key(path, "b")
    ring = read_keys(path)
    assert ring.find(secrets["b"]) is None
    assert [found.name for found in list_keys(path)] == ["a", "c"]
    assert path.read_text().startswith("# our keys\n")
    with pytest.raises(ConfigError, match="no key called 'b'"):
        revoke_key(path, "b")
    with pytest.raises(ConfigError, match="already"):
        add_key(path, "a")


def test_a_changed_file_is_read_anew_and_a_broken_one_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    first = add_key(path, "a")
    keys = KeyFile(path, clock=lambda: now)
    second = add_key(path, "b")
    assert keys.find(second) is None, "not looked at yet"
    now = 1.5
    assert keys.find(second) is not None
    revoke_key(path, "a")
    now = 3.0
    assert keys.find(first) is None
    path.write_text("broken")
    now = 5.0
    with caplog.at_level(logging.ERROR):
        assert keys.find(second) is not None
    assert "stay as they were" in caplog.text
    path.unlink()
    now = 7.0
    assert keys.find(second) is not None
    assert keys.find(first) is None


def test_patterns_of_models_stop_at_slashes() -> None:
    assert key().may_use("anything")
    assert key(models=("qwen*",)).may_use("qwen3:8b")
    assert not key(models=("qwen*",)).may_use("qwen/secret")
    assert not key(models=("qwen*",)).may_use("llama")
    assert key(models=("Qwen/**",)).may_use("Qwen/a/b")
    assert key(models=("*",)).may_use("a/b")
    assert key(models=("llama3",)).may_use("llama3:latest")
    assert not key(models=("a.c",)).may_use("abc")


def test_every_attempt_takes_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = 0
    real = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        nonlocal compared
        compared += 1
        return real(a, b)

    monkeypatch.setattr("hmac.compare_digest", counting)
    ring = KeyRing([key(name=str(number)) for number in range(5)])
    for text in ("", "x", "x" * 600):
        compared = 0
        ring.find(text)
        assert compared == 5


def test_cache_salts_differ_and_do_not_tell_the_key() -> None:
    salts = {key(name=name, salt=salt * 16).cache_salt for name in ("a", "b") for salt in (b"1", b"2")}
    assert len(salts) == 4


# ---- the command ----


def test_the_command_adds_lists_and_revokes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--priority", "batch", "--rpm", "5", "--tpm", "100", "--models", "a*", "--models", "b", "--admin"]
    assert main(["keys", "add", "alice", "--keys", str(path), *arguments, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["name"] == "alice"
    assert read_keys(path).find(made["key"]) is not None
    assert main(["keys", "add", "bob", "--keys", str(path)]) == 0
    out = capsys.readouterr()
    assert read_keys(path).find(out.out.strip()) is not None
    assert main(["keys", "list", "--keys", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {
        "name": "alice", "priority": "batch", "max_priority": None, "rpm": 5, "tpm": 100, "models": ["a*", "b"],
        "admin": True,
    }  # fmt: skip
    assert main(["keys", "list", "--keys", str(path)]) == 0
    assert "alice" in capsys.readouterr().out
    assert main(["keys", "revoke", "alice", "--keys", str(path)]) == 0
    assert [found.name for found in list_keys(path)] == ["bob"]
    capsys.readouterr()
    assert main(["keys", "revoke", "alice", "--keys", str(path)]) == 1
    assert "no key called" in capsys.readouterr().err
    assert main(["keys", "add", "bob", "--keys", str(path)]) == 1
    assert main(["keys", "list", "--keys", str(path.parent / "none.toml")]) == 1


def test_the_last_key_can_be_revoked_and_another_added(path: Path) -> None:
    add_key(path, "a")
    revoke_key(path, "a")
    assert list_keys(path) == []
    add_key(path, "b")
    assert [found.name for found in list_keys(path)] == ["b"]


def test_without_a_file_it_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "add", "laptop"]) == 0
    assert [found.name for found in list_keys(tmp_path / "velollm" / "keys.toml")] == ["laptop"]


def test_what_a_plain_key_parts_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[[keys]]\nname = "ann"\nkey = "a-key-for-ann-of-some-length"\n')
    salts = {key.cache_salt for _ in range(3) if (key := KeyFile(path).find("a-key-for-ann-of-some-length"))}
    assert len(salts) == 1
