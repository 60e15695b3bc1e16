"""`velollm tune` and `velollm profiles`, as the command line runs them."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine_script import ENGINE
from support.machines import RecordedHost
from tiny_gguf import write_tiny_gguf

from velollm.cli import main
from velollm.commands import profiles, tune
from velollm.hardware import LocalHost, read_machine
from velollm.tuning import verifying
from velollm.tuning.measuring import Measurement
from velollm.tuning.profiles import import_profile
from velollm.tuning.verifying import judge


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine on record, with its owner's folders in `tmp_path` and a model."""
    for name, folder in (("HOME", "home"), ("XDG_CONFIG_HOME", "config"), ("XDG_STATE_HOME", "state")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("VELOLLM_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setattr(LocalHost, "names", lambda self, path: [])  # no systemd, wherever this runs
    (tmp_path / "models").mkdir()
    write_tiny_gguf(tmp_path / "models" / "tiny.gguf")
    machine = read_machine(RecordedHost("intel_arc"))
    for module in (tune, profiles):
        monkeypatch.setattr(module, "detect", lambda *hosts, **options: machine)
    former = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, former)


@pytest.fixture
def engine(place: Path) -> str:
    path = place / "ollama-engine"
    path.write_text(ENGINE.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_what_to_set(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--model", "tiny", "--clients", "8"]) == 0
    out = capsys.readouterr().out
    assert "export OLLAMA_NUM_PARALLEL=8\n" in out
    assert "# memory: 8 x 4096 tokens of f16 cache take" in out
    assert main(["optimize", "ollama", "--model", "tiny", "--json"]) == 0
    facts = said(capsys)
    assert facts["target"] == "ollama"
    assert all(one["why"] for one in facts["settings"])
    for form in ("systemd", "launchd", "compose", "windows"):
        assert main(["tune", "ollama", "--model", "tiny", "--format", form]) == 0
        assert "OLLAMA_NUM_PARALLEL" in capsys.readouterr().out
    assert main(["tune", "llama-server", "--model", "tiny"]) == 0
    assert "--parallel 4" in capsys.readouterr().out
    assert main(["tune", "velo", "--model", "tiny"]) == 0
    assert "[engine]" in capsys.readouterr().out


def test_applied_and_undone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "config" / "velollm" / "ollama.env"
    assert main(["tune", "ollama", "--model", "tiny", "--apply"]) == 0
    assert f"written: {path}\nnow: set -a; . {path}; set +a; ollama serve\n" in capsys.readouterr().out
    assert "OLLAMA_NUM_PARALLEL=4" in path.read_text()
    assert main(["tune", "ollama", "--undo", "--json"]) == 0
    assert said(capsys) == {"path": str(path), "done": "removed"}
    assert not path.exists()
    assert main(["tune", "ollama", "--undo"]) == 1
    assert "nothing was applied to ollama" in capsys.readouterr().err


def test_what_pays_is_kept(
    place: Path, engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verifying, "BLINK", 60.0)  # how soon a lone request is answered is the test machine's affair
    words = [
        "tune",
        "ollama",
        "--model",
        "tiny",
        "--clients",
        "8",
        "--tokens",
        "12",
        "--rounds",
        "1",
        "--binary",
        engine,
    ]
    assert main([*words, "--apply", "--verify", "--json"]) == 0
    facts = said(capsys)
    assert facts["verify"]["kept"] is True
    assert facts["gain"] > 1.2
    assert "OLLAMA_NUM_PARALLEL=8" in Path(facts["applied"]["path"]).read_text()
    assert main(["profiles", "export", "--model", "tiny"]) == 0
    profile = import_profile(capsys.readouterr().out)
    assert profile.tuning.gain == pytest.approx(facts["gain"], abs=0.001)
    assert profile.tuning.values["OLLAMA_NUM_PARALLEL"] == "8"
    assert profile.tuning.model == "llama 427K F32"


def test_what_does_not_pay_is_withdrawn(
    place: Path, engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same = Measurement(throughput=10, ttft=1, ttft_alone=1)
    monkeypatch.setattr(tune, "verify", lambda *trials, **options: judge([(same, same)]))
    assert main(["tune", "ollama", "--model", "tiny", "--binary", engine, "--apply", "--verify"]) == 1
    assert "withdrawn" in capsys.readouterr().err
    assert not (place / "config").exists()


def test_a_search_finds_more_slots(place: Path, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "tiny", "--clients", "8", "--tokens", "6", "--budget", "3", "--binary", engine, "--json"]
    assert main(["tune", "ollama", *words, "--search"]) == 0
    facts = said(capsys)
    assert facts["search"]["trials"] >= 1
    assert facts["search"]["score"] >= facts["search"]["start_score"] > 0


def test_only_what_a_search_changed_is_set(
    place: Path, engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measured(url: str, *rest: Any, **options: Any) -> Measurement:
        return Measurement(throughput=20.0 if slots[-1] == "8" else 10.0, ttft=1, ttft_alone=1)

    slots: list[str] = []
    former = tune._Job._trial

    def trial(job: Any, values: Any) -> Any:
        slots.append(values["OLLAMA_NUM_PARALLEL"])
        return former(job, values)

    monkeypatch.setattr(tune, "measure", measured)
    monkeypatch.setattr(tune._Job, "_trial", trial)
    before = ["tune", "ollama", "--model", "tiny", "--clients", "4", "--json", "--binary", engine]
    assert main(before) == 0
    computed = {one["name"]: one["value"] for one in said(capsys)["settings"]}
    assert main([*before, "--search", "--budget", "60"]) == 0
    found = {one["name"]: one["value"] for one in said(capsys)["settings"]}
    assert found == {**computed, "OLLAMA_NUM_PARALLEL": "8"}


def test_what_was_only_lucky_is_withdrawn(
    place: Path, engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    luck = iter([10.0, 30.0])  # of the first two candidates; nothing is better than anything afterwards

    async def measured(url: str, *rest: Any, **options: Any) -> Measurement:
        return Measurement(throughput=next(luck, 10.0), ttft=1, ttft_alone=1)

    monkeypatch.setattr(tune, "measure", measured)
    monkeypatch.setattr(tune, "candidates", lambda tuning, choices: [{"OLLAMA_NUM_PARALLEL": n} for n in ("4", "8")])
    words = ["tune", "ollama", "--model", "tiny", "--clients", "4", "--binary", engine]
    assert main([*words, "--search", "--budget", "60", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "withdrawn: measured again" in err
    found = {one["name"]: one["value"] for one in json.loads(out)["settings"]}
    assert found["OLLAMA_NUM_PARALLEL"] == "4"


def test_an_end_from_outside_ends_the_trial(place: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def interrupted(before: Any, after: Any, load: Any, **options: Any) -> None:
        with before:
            pids.append(before._process.pid)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    monkeypatch.setattr(tune, "verify", interrupted)
    with pytest.raises(SystemExit):
        main(["tune", "ollama", "--model", "tiny", "--verify", "--binary", engine])
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model", "none"], "no model 'none' is installed"),
        (["--clients", "0"], "must be above 0"),
        (["--model", "tiny", "--apply", "--to", "/proc/nowhere/x.conf"], "cannot be written"),
        (["--model", "tiny", "--verify", "--binary", "/no/such/ollama"], "cannot be started"),
    ],
)
def test_what_cannot_be_done(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str) -> None:
    assert main(["tune", "ollama", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err


def test_profiles_there_and_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "export", "ollama", "--model", "tiny", "--clients", "3"]) == 0
    file = place / "p.toml"
    file.write_text(capsys.readouterr().out)
    assert main(["profiles", "import", str(file)]) == 0
    assert "export OLLAMA_NUM_PARALLEL=3\n" in capsys.readouterr().out
    assert main(["profiles", "import", str(file), "--apply", "--json"]) == 0
    facts = said(capsys)
    assert facts["mismatches"] == []
    assert "OLLAMA_NUM_PARALLEL=3" in Path(facts["applied"]).read_text()
    assert main(["tune", "ollama", "--undo"]) == 0
    file.write_text(file.read_text().replace("OLLAMA_NUM_PARALLEL", "LD_PRELOAD"))
    capsys.readouterr()
    assert main(["profiles", "import", str(file), "--apply"]) == 1
    assert "'LD_PRELOAD' is no setting of ollama" in capsys.readouterr().err
    assert main(["profiles", "import", str(place / "none.toml")]) == 1
