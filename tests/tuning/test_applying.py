"""Tunings as text that its readers understand, written whole or not at all, and taken back."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.machines import RecordedHost

from velollm.errors import ConfigError
from velollm.tuning.applying import apply, last_applied, merge_toml, undo
from velollm.tuning.places import Place, find_place, state_folder
from velollm.tuning.rendering import FORMATS, render
from velollm.tuning.values import Setting, Tuning

NASTY = "a'b\"c $HOME `x` %i \\ & <z>"


def ollama(**values: str) -> Tuning:
    values = values or {"OLLAMA_NUM_PARALLEL": "8", "OLLAMA_KEEP_ALIVE": "1h"}
    return Tuning(
        target="ollama",
        settings=tuple(
            Setting(name=name, value=value, why="because -- of it", memory="1 + 1 = 2", effect="good")
            for name, value in values.items()
        ),
    )


VELO = Tuning(
    target="velo",
    settings=(
        Setting(name="engine.ctx", value="8192", why="long"), Setting(name="engine.kv_type", value="q8_0", why="small"),
    ),
)  # fmt: skip
SERVER = Tuning(
    target="llama-server",
    settings=(Setting(name="--parallel", value="8", why="x"), Setting(name="--metrics", value="", why="y")),
)


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_for_a_shell() -> None:
    text = render(ollama(A=NASTY, B="2"), "shell") + 'printf "%s|%s" "$A" "$B"'
    assert subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout == f"{NASTY}|2"
    assert "# memory: 1 + 1 = 2" in text
    assert re.search(r"^llama-server \\\n  --parallel 8 \\\n  --metrics$", render(SERVER, "shell"), re.MULTILINE)


def test_for_systemd() -> None:
    text = render(ollama(A=NASTY), "systemd")
    assert text.splitlines()[1] == "[Service]"
    value = re.search(r'^Environment="A=(.*)"$', text, re.MULTILINE)
    assert value is not None
    assert value[1].replace("%%", "%").replace('\\"', '"').replace("\\\\", "\\") == NASTY
    variables = {"--parallel": "LLAMA_ARG_N_PARALLEL"}
    text = render(SERVER, "systemd", variables=variables)
    assert 'Environment="LLAMA_ARG_N_PARALLEL=8"' in text
    assert "# no variable does it: --metrics" in text


def test_for_launchd() -> None:
    facts = plistlib.loads(render(ollama(A=NASTY, B="2"), "launchd").encode())
    assert facts["Label"] == "io.velollm.ollama"
    script = facts["ProgramArguments"][2].replace("launchctl setenv", "printf '%s=%s\\n'")
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == f"A={NASTY}\nB=2\n"


def test_for_compose_and_windows() -> None:
    text = render(ollama(A=NASTY), "compose")
    line = next(line for line in text.splitlines() if line.strip().startswith("A:"))
    assert json.loads(line.partition(":")[2]) == NASTY
    assert '- "--parallel=8"' in render(SERVER, "compose")
    assert f"SetEnvironmentVariable('A', '{NASTY.replace(chr(39), chr(39) * 2)}', 'User')" in render(
        ollama(A=NASTY), "windows"
    )


def test_for_ourselves() -> None:
    for form in FORMATS:
        assert tomllib.loads(render(VELO, form)) == {"engine": {"ctx": 8192, "kv_type": "q8_0"}}


# ---- places ----------------------------------------------------------------------------------------------------------


def test_where_services_read() -> None:
    unit = (
        "=== line /run/systemd/system/x y\n=== line /etc/systemd/system/ollama.service [Unit]\n=== env HOME=/home/a\n"
    )
    place = find_place("ollama", RecordedHost(text=f"=== system linux x\n{unit}"))
    assert str(place.path) == "/etc/systemd/system/ollama.service.d/velollm.conf"
    assert "systemctl restart ollama" in place.then
    own = unit.replace("/etc/systemd/system/ollama", "/home/a/.config/systemd/user/ollama")
    place = find_place("ollama", RecordedHost(text=f"=== system linux x\n{own}"))
    assert str(place.path) == "/home/a/.config/systemd/user/ollama.service.d/velollm.conf"
    assert "systemctl --user" in place.then
    bare = RecordedHost(text="=== system linux x\n=== env HOME=/home/a\n=== env XDG_CONFIG_HOME=/c\n")
    assert str(find_place("ollama", bare).path) == "/c/velollm/ollama.env"
    assert str(find_place("velo", bare).path) == "/c/velollm/velollm.toml"
    assert str(state_folder(bare)) == "/home/a/.local/state/velollm/tuning"
    assert find_place("ollama", RecordedHost("apple_m4_max")).form == "launchd"
    assert find_place("ollama", RecordedHost("windows")).form == "windows"
    for name, form in (("x.conf", "systemd"), ("x.yml", "compose"), ("x.env", "shell"), ("x.plist", "launchd")):
        assert find_place("ollama", bare, named=Path(name)).form == form


# ---- writing ---------------------------------------------------------------------------------------------------------


def place(path: Path, form: str = "systemd") -> Place:
    return Place(path=path, form=form, then="")


def test_written_and_taken_back(tmp_path: Path) -> None:
    state, path = tmp_path / "state", tmp_path / "ollama.service.d" / "velollm.conf"
    text = render(ollama(), "systemd")
    applied = apply(ollama(), place(path), text, state)
    assert path.read_text() == text
    assert (applied.previous, last_applied(state, "ollama")) == (None, applied)
    assert undo("ollama", state).path == path
    assert not path.parent.exists()
    assert last_applied(state, "ollama") is None
    with pytest.raises(ConfigError, match="nothing to undo"):
        undo("ollama", state)


def test_what_was_there_comes_back(tmp_path: Path) -> None:
    state, path = tmp_path / "state", tmp_path / "x.conf"
    path.write_text("mine\n")
    path.chmod(0o600)
    apply(ollama(), place(path), "first\n", state)
    apply(ollama(), place(path), "second\n", state)
    assert path.read_text() == "second\n"
    assert path.stat().st_mode & 0o777 == 0o600
    undo("ollama", state)
    assert path.read_text() == "mine\n"  # not "first"
    assert os.listdir(tmp_path) in (["x.conf", "state"], ["state", "x.conf"])


def test_one_place_at_a_time(tmp_path: Path) -> None:
    state = tmp_path / "state"
    apply(ollama(), place(tmp_path / "x.conf"), "ours\n", state)
    with pytest.raises(ConfigError, match=r"is tuned already, in .*x\.conf"):
        apply(ollama(), place(tmp_path / "y.conf"), "ours\n", state)
    assert not (tmp_path / "y.conf").exists()
    (tmp_path / "x.conf").unlink()  # whoever deletes it has undone it
    apply(ollama(), place(tmp_path / "y.conf"), "ours\n", state)
    assert undo("ollama", state).path == tmp_path / "y.conf"


def test_what_was_edited_since_is_not_thrown_away(tmp_path: Path) -> None:
    state, path = tmp_path / "state", tmp_path / "x.conf"
    apply(ollama(), place(path), "ours\n", state)
    path.write_text("edited\n")
    with pytest.raises(ConfigError, match="--force"):
        undo("ollama", state)
    assert path.read_text() == "edited\n"
    undo("ollama", state, force=True)
    assert not path.exists()


def test_no_permission_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, path = tmp_path / "state", tmp_path / "etc" / "x.conf"
    path.parent.mkdir()
    real = os.replace

    def refuse(source: str, target: Path) -> None:
        if Path(target) == path:
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigError, match=r"Permission denied; nothing was changed\. Run it with sudo"):
        apply(ollama(), place(path), "text", state)
    assert list(path.parent.iterdir()) == []
    assert last_applied(state, "ollama") is None
    monkeypatch.setattr(os, "replace", real)
    apply(ollama(), place(tmp_path / "y.conf"), "text", state)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigError):
        apply(ollama(), place(path), "text", state)
    former = last_applied(state, "ollama")
    assert former is not None
    assert former.path == tmp_path / "y.conf"  # still what it was


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        apply(ollama(), place(tmp_path / "blocked" / "x.conf"), "text", tmp_path / "state")
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match="is not text"):
        apply(ollama(), place(tmp_path / "binary.conf"), "text", tmp_path / "state")


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    (tmp_path / "ollama.json").write_text('{"target": 1')
    assert last_applied(tmp_path, "ollama") is None
    (tmp_path / "ollama.json").write_text('{"target": 1, "path": "x", "surprise": 2}')
    assert last_applied(tmp_path, "ollama") is None


# ---- TOML ------------------------------------------------------------------------------------------------------------


def test_toml_keeps_what_it_does_not_set(tmp_path: Path) -> None:
    state, path = tmp_path / "state", tmp_path / "velollm.toml"
    before = (
        '# mine\n[server]\nport = 9000\n\n[engine]   # here\nmodels = ["a"]\nctx = 512 # small\n\n[cache]\nsize = 1\n'
    )
    path.write_text(before)
    apply(VELO, place(path, "toml"), "", state)
    text = path.read_text()
    facts = tomllib.loads(text)
    assert facts["engine"] == {"models": ["a"], "ctx": 8192, "kv_type": "q8_0"}
    assert facts["server"] == {"port": 9000}
    assert "# mine" in text
    undo("velo", state)
    assert path.read_text() == before


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only words", "[engine]", "[engine]\n", "[engine]\n[cache]\n", "a = 1\n"]
)
def test_toml_from_any_beginning(text: str) -> None:
    assert tomllib.loads(merge_toml(text, VELO, Path("x")))["engine"] == {"ctx": 8192, "kv_type": "q8_0"}


@pytest.mark.parametrize("text", ["engine = { ctx = 5 }", "engine.ctx = 5", "[engine", '[engine]\n"ctx" = 5\n'])
def test_toml_that_cannot_be_edited_by_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be edited|by hand"):
        merge_toml(text, VELO, Path("x"))
