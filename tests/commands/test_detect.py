"""`velollm detect`, as the command line runs it."""

from __future__ import annotations

import json

import attrs
import pytest
from support.machines import RecordedHost

from velollm.cli import main
from velollm.commands import detect
from velollm.hardware import Engine, Machine, read_machine
from velollm.hardware.host import Note


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    engine = Engine(kind="ollama", url="http://127.0.0.1:11434", version="0.17.4", slots=1, models=("a", "b"))
    found = attrs.evolve(
        read_machine(RecordedHost("nvidia_desktop")), engines=(engine,), notes=(Note(about="x", problem="y"),)
    )
    monkeypatch.setattr(detect, "detect", lambda **options: found)
    return found


def test_for_people(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect"]) == 0
    out = capsys.readouterr().out
    assert "24 cores (8 performance, 16 efficiency), 32 threads, up to 5.8 GHz" in out
    assert "GPU       NVIDIA GeForce RTX 4090, 8.9, driver 550.144.03" in out
    assert "24.0 GiB, 22.5 GiB free, 1008 GB/s" in out
    assert "ollama 0.17.4, http://127.0.0.1:11434, 1 slot, 2 models" in out
    assert "Notes     x: y" in out


def test_for_programs(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["gpus"][0]["compute"] == "8.9"
    assert facts["engines"][0]["kind"] == "ollama"
    assert facts["notes"] == [{"about": "x", "problem": "y"}]
