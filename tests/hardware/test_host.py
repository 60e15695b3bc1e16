"""The real machine: files, commands, memory; and the whole of `detect`."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from velollm.hardware import LocalHost, detect, memory
from velollm.hardware.cpu import cpu_list
from velollm.hardware.memory import measure_bandwidth


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_commands_that_fail_hang_or_flood(tmp_path: Path) -> None:
    script(tmp_path, "fails", "echo no driver >&2; exit 9")
    script(tmp_path, "hangs", "exec sleep 60")
    script(tmp_path, "floods", "exec head -c 5000000 /dev/zero")
    script(tmp_path, "works", "echo $LC_ALL $1")
    (tmp_path / "broken").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "broken").chmod(0o755)
    host = LocalHost({"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert host.run("works", "a b") == "C a b"
    assert host.run("missing") is None
    assert host.run("fails") is None
    assert host.run("hangs", seconds=0.1) is None
    assert host.run("broken") is None
    assert len(host.run("floods", seconds=5) or "") <= 1 << 20
    assert {note.about: note.problem for note in host.notes}.keys() == {"fails", "hangs", "broken"}
    assert host.notes[0].problem == "no driver"
    assert host.notes[1].problem == "did not answer within 0.1 s"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    host = LocalHost({})
    assert host.read(str(tmp_path)) is None  # a folder
    assert host.read(str(tmp_path / "none")) is None
    assert host.names(str(tmp_path / "none")) == []
    assert host.link(str(tmp_path / "none")) is None
    (tmp_path / "x").write_bytes(b"\xff\xfe12\n\0")
    assert host.number(str(tmp_path / "x")) is None
    (tmp_path / "x").write_text("0x1F\n")
    assert host.number(str(tmp_path / "x")) == 31
    (tmp_path / "x").write_text("9" * 5000)
    assert host.number(str(tmp_path / "x")) is None
    assert host.disk(str(tmp_path / "not" / "yet"))
    assert host.library("no_such_module") is None
    assert [note.about for note in host.notes] == [str(tmp_path)]


def test_lists_of_processors() -> None:
    assert cpu_list("0-3,8,10-11") == [0, 1, 2, 3, 8, 10, 11]
    for nonsense in ("", "x", "0-", "-1", "0-99999999", "3,,4"):
        assert cpu_list(nonsense) == []


def test_bandwidth_is_measured_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = measure_bandwidth(1, 1 << 30, seconds=0.02)
    assert rate
    assert 1e8 < rate < 1e13
    assert measure_bandwidth(2, 1 << 20) is None  # no memory to spare
    monkeypatch.setattr(memory, "_memchr", lambda: None)
    assert measure_bandwidth(1, 1 << 30) is None


def test_detect_here() -> None:
    machine = detect(engines=False, bandwidth=False)
    assert machine.cpu.logical == os.cpu_count() or machine.cpu.logical > 0
    assert machine.seconds < 5
    assert machine.memory.total > 1 << 28


@pytest.mark.skipif(sys.platform != "linux", reason="compared with lscpu")
def test_against_lscpu() -> None:
    try:
        printed = subprocess.run(["lscpu", "--json"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no lscpu here")

    def flatten(rows: list[dict[str, object]]) -> dict[str, str]:
        found = {}
        for row in rows:
            found[str(row["field"]).rstrip(":")] = str(row["data"])
            found.update(flatten(row.get("children", [])))  # type: ignore[arg-type]
        return found

    facts = flatten(json.loads(printed)["lscpu"])
    cpu = detect(engines=False, bandwidth=False).cpu
    assert cpu.logical == len(cpu_list(facts["On-line CPU(s) list"]))
    if facts.get("Core(s) per socket", "").isdigit():
        assert cpu.physical == int(facts["Core(s) per socket"]) * int(facts["Socket(s)"])
        assert cpu.sockets == int(facts["Socket(s)"])
    if "NUMA node(s)" in facts:
        assert cpu.numa_nodes == int(facts["NUMA node(s)"])
    flags = set(facts.get("Flags", "").split())
    assert ("AVX2" in cpu.isa) == ("avx2" in flags)
    assert ("AVX512_VNNI" in cpu.isa) == ("avx512_vnni" in flags)
