"""Every finding: what brings it about, and that a sound machine has none."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.machines import RecordedHost, machine_names

from velollm.cli import main
from velollm.commands import doctor as command
from velollm.diagnosis import IDS, Finding, doctor, examine
from velollm.diagnosis.facts import Facts, gather
from velollm.hardware import Engine, LoadedModel, Machine, Note, read_machine
from velollm.hardware.processes import Process

GIB = 1 << 30
NOW = 1_800_000_000.0
DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


def engine(**facts: Any) -> Engine:
    usual: dict[str, Any] = {
        "kind": "ollama", "url": "http://127.0.0.1:11434", "version": "0.17.4", "models": ("m",), "slots": 4,
        "settings": {"OMP_WAIT_POLICY": "passive"}, "process_known": True,
    }  # fmt: skip
    return Engine(**{**usual, **facts})


def sound(**changes: Any) -> Machine:
    machine = attrs.evolve(read_machine(RecordedHost("intel_arc")), engines=(engine(),), installed=("m",))
    return attrs.evolve(machine, **changes)


def here(name: str, **changes: Any) -> Machine:
    return attrs.evolve(read_machine(RecordedHost(name)), **{"engines": (engine(),), "installed": ("m",), **changes})


def found(machine: Machine, **facts: Any) -> dict[str, Finding]:
    findings = examine(Facts(machine=machine, **facts), now=NOW)
    return {one.id: one for one in reversed(findings)}  # the worst of a kind


def on_cpu(**changes: Any) -> Machine:
    return sound(gpus=(), **changes)


CUT = """\
time=2026-11-25T16:24:43.766Z level=WARN source=runner.go:187 msg="truncating input prompt" limit=4096 prompt=9031
time=2026-11-25T16:25:43.766Z level=WARN source=runner.go:187 msg="truncating input prompt" limit=4096 prompt=5000
"""
OLD_LOADS = "".join(
    'level=INFO source=server.go:431 msg="starting runner" cmd="/usr/bin/ollama runner --model /m/blobs/sha256-b179 '
    f'--port 46731"\nlevel=INFO source=runner.go:895 msg=load request="{{Operation:commit Parallel:1 KvSize:{size} '
    'KvCacheType: NumThreads:2}"\n'
    for size in (4096, 8192, 4096, 8192)
)
NEW_LOADS = "".join(
    'level=INFO source=llama_server.go:433 msg="starting llama-server" cmd="llama-server --model /m/blobs/sha256-b1 '
    f'-c {size} --cache-type-k f16"\n'
    for size in (4096, 8192, 16384, 4096)
)
SERVER = Process(pid=7, kind="llamacpp", command=("llama-server", "--host", "0.0.0.0"))
MEMORY = sound().memory
CPU = sound().cpu
GPU = sound().gpus[0]

# id: what brings it about, and words that its evidence or remedy must have.
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("engine-not-running", {"machine": sound(engines=()), "ollama_installed": True}, "ollama serve"),
    ("engine-not-running", {"machine": sound(engines=())}, "velollm serve"),
    ("old-version", {"machine": sound(engines=(engine(version="0.17.0"),))}, "CVE-2026-7482"),
    ("old-version", {"machine": sound(engines=(engine(kind="llamacpp", version="b5600-x"),))}, "b5721 or later"),
    ("prompts-cut", {"machine": sound(), "ollama_log": CUT}, "2 prompts were cut at 4096 tokens; the longest had 9031"),
    ("prompts-cut", {"machine": sound(), "ollama_log": CUT}, "--context 12288"),
    ("model-on-cpu", {"machine": sound(engines=(engine(
        loaded=(LoadedModel(name="m", size=8 * GIB, gpu_share=0.4, context=32768),)),))}, "40% of it is on the GPU"),
    ("one-slot", {"machine": sound(engines=(engine(slots=1),)), "clients": {11434: 6}}, "--clients 6"),
    ("context-reloads", {"machine": sound(), "ollama_log": OLD_LOADS}, "loaded 4 times, with contexts of 4096, 8192"),
    ("context-reloads", {"machine": sound(), "ollama_log": NEW_LOADS}, "4096, 8192, 16384"),
    ("dead-variable", {"machine": sound(engines=(engine(settings={"OLLAMA_NUM_THREAD": "8"}),))}, "num_thread"),
    ("kv-type-ignored", {"machine": sound(engines=(engine(settings={"OLLAMA_KV_CACHE_TYPE": "q8_0"}),))}, "q8_0"),
    ("keep-alive-zero", {"machine": sound(engines=(engine(settings={"OLLAMA_KEEP_ALIVE": "0"}),))}, "anew"),
    ("unknown-variable", {"machine": sound(engines=(engine(settings={"OLLAMA_PARALLEL": "8"}),))}, "OLLAMA_PARALLEL"),
    ("exposed-without-keys", {"machine": sound(), "listeners": {11434: {"0.0.0.0"}}}, "asks for no key"),
    ("exposed-without-keys", {"machine": sound(engines=(engine(kind="llamacpp", version=""),)),
        "listeners": {11434: {"::"}}, "processes": (SERVER,)}, "llamacpp listens on :::11434"),
    ("threads-exceed-limit", {"machine": here("container_limits")}, "64 threads, but the container may use 2.5 CPUs"),
    ("threads-exceed-limit", {"machine": here("container_limits", engines=(engine(
        kind="llamacpp", version="", settings={"-t": "16"}),))}, "--threads 2"),
    ("busy-waiting", {"machine": on_cpu(cpu=attrs.evolve(CPU, load=9.5), engines=(engine(settings={}),))}, "thread"),
    ("busy-waiting", {"machine": on_cpu(cpu=attrs.evolve(CPU, load=9.5), engines=(engine(
        version="0.31.0", settings={}),))}, "9.5 programs want 6 cores"),
    ("swap-in-use", {"machine": here("laptop_two_gpus")}, "2.0 GiB of swap"),
    ("disk-nearly-full", {"machine": sound(disk=attrs.evolve(sound().disk, free=GIB))}, "1.0 GiB of"),
    ("governor-powersave", {"machine": here("nvidia_desktop"), "scaling_driver": "acpi-cpufreq"}, "cpupower"),
    ("governor-powersave", {"machine": sound(), "energy_preference": "power"}, "energy_performance_preference"),
    ("thermal-limit", {"machine": here("laptop_two_gpus")}, "held down by thermal at 86"),
    ("power-limit", {"machine": here("laptop_two_gpus")}, "55 W instead of 80 W, and the limit is reached"),
    ("pcie-narrow", {"machine": sound(gpus=(attrs.evolve(GPU, pcie_width=1, pcie_width_max=16),))}, "1 of 16 lanes"),
    ("gpu-driver-hangs", {"machine": here("hanging_driver")}, "did not answer within 0.7 s"),
    ("gpu-without-driver", {"machine": here("broken_driver")}, "couldn't communicate"),
    ("gpu-without-driver", {"machine": here("amd_apu")}, "usermod -aG render"),
    ("gpu-memory-taken", {"machine": sound(gpus=(attrs.evolve(GPU, memory_free=GIB),))}, "no engine has a model"),
    ("config-invalid", {"machine": sound(), "config_error": "toml, line 3: no\nmore"}, "line 3: no (and 1 more)"),
    ("keys-readable", {"machine": sound(), "keys_open": True, "keys_file": "/k.toml"}, "chmod 600 /k.toml"),
    ("port-taken", {"machine": sound(), "listeners": {8000: {"127.0.0.1"}}}, "--port 8001"),
    ("port-taken", {"machine": sound(engines=(engine(url="http://127.0.0.1:1"),)), "listeners": {11434: {"127.0.0.1"}}},
        "not Ollama"),
    ("no-model", {"machine": sound(installed=(), engines=(engine(models=()),))}, "models install"),
    ("memory-limit-small", {"machine": here("container_limits", engines=(engine(
        loaded=(LoadedModel(name="m", size=7 * GIB),)),))}, "may use 8.0 GiB"),
    ("narrow-build", {"machine": here("h200_mig", gpus=()), "wheel_installed": True}, "AMX"),
    ("cache-clock", {"machine": sound(), "newest_entry": NOW + 3600}, "60 minutes in the future"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "facts", "words"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_each_finding(name: str, facts: dict[str, Any], words: str) -> None:
    finding = found(**facts)[name]
    assert words in finding.evidence + finding.remedy
    assert finding.severity in ("error", "warning", "info")
    assert finding.remedy


def test_a_native_build_is_not_narrow() -> None:
    facts = {"machine": here("h200_mig", gpus=()), "wheel_installed": True}
    assert "--native-build" in found(**facts)["narrow-build"].remedy
    assert "narrow-build" not in found(**facts, native_build=True)


def test_every_finding_has_a_case_and_a_section() -> None:
    assert {name for name, _, _ in CASES} == set(IDS)
    sections = re.findall(r"^### `([a-z-]+)`$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sections == sorted(sections)
    assert set(sections) == set(IDS)


def test_a_sound_machine_has_none() -> None:
    assert found(sound(), newest_entry=NOW, listeners={11434: {"127.0.0.1"}}, clients={11434: 3}) == {}


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_can_be_examined(name: str) -> None:
    findings = examine(Facts(machine=read_machine(RecordedHost(name))), now=NOW)
    assert {one.id for one in findings} <= set(IDS)
    assert [one.severity for one in findings] == sorted(
        (one.severity for one in findings), key=["error", "warning", "info"].index
    )


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"machine": sound(engines=(engine(kind="openai", models=()),)), "listeners": {11434: {"0.0.0.0"}}},
         "exposed-without-keys"),
        ({"machine": here("nvidia_desktop"), "scaling_driver": "intel_pstate"}, "governor-powersave"),
        ({"machine": sound(), "listeners": {11434: {"127.0.0.1"}}}, "exposed-without-keys"),
        ({"machine": sound(engines=(engine(version="0.0.0"),))}, "old-version"),
        ({"machine": sound(), "newest_entry": NOW + 30}, "cache-clock"),
        ({"machine": sound(), "ollama_log": OLD_LOADS.replace("8192", "4096")}, "context-reloads"),
        ({"machine": on_cpu(cpu=attrs.evolve(CPU, load=99.0))}, "busy-waiting"),  # it waits passively
        ({"machine": sound(engines=(engine(kind="llamacpp", version=""),)), "listeners": {11434: {"0.0.0.0"}},
          "processes": (Process(pid=7, kind="llamacpp", command=("llama-server", "--api-key", "x")),)},
         "exposed-without-keys"),
    ],
)  # fmt: skip
def test_what_is_right_is_left_alone(facts: dict[str, Any], name: str) -> None:
    assert name not in found(**facts)


# ---- gathering -------------------------------------------------------------------------------------------------------


def test_facts_from_a_host(tmp_path: Path) -> None:
    base = RecordedHost("nvidia_desktop")
    text = "\n".join(f"=== line {path} {value}" for path, value in (
        ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate"),
        ("/proc/41/cmdline", "/usr/bin/ollama\\0serve\\0"),
        ("/proc/41/environ", "OLLAMA_NUM_PARALLEL=1\\0"),
        ("/var/log/ollama.log", 'msg="truncating input prompt" limit=4096 prompt=9031'),
    ))  # fmt: skip
    host = RecordedHost(
        text=f"=== system linux x\n=== env HOME={tmp_path}\n{text}\n=== link /proc/41/fd/2 /var/log/ollama.log"
    )
    for path in ("/proc/41/cmdline", "/proc/41/environ"):
        host.files[path] = host.files[path].replace("\\0", "\0")
    facts = gather(host, read_machine(base))
    assert facts.scaling_driver == "intel_pstate"
    assert "truncating" in facts.ollama_log
    assert [process.pid for process in facts.processes] == [41]


def test_the_journal_and_broken_settings(tmp_path: Path) -> None:
    config = tmp_path / "velollm.toml"
    config.write_text("[server]\nprot = 1\n")
    host = RecordedHost(
        text=f"=== system linux x\n=== env HOME={tmp_path}\n=== line /proc/41/cmdline /usr/bin/ollama\n"
    )
    host.commands[("journalctl", "-u", "ollama", "-n", "3000", "--no-pager", "-o", "cat")] = CUT
    facts = gather(host, sound(), config)
    assert "limit=4096" in facts.ollama_log
    assert "prot" in facts.config_error


def test_the_clock_of_the_cache(tmp_path: Path) -> None:
    from velollm.diagnosis import facts as module

    path = tmp_path / "cache.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE entries (used REAL)")
        connection.execute("INSERT INTO entries VALUES (?)", (NOW + 900.0,))
        connection.commit()

    class Section:
        store = f"sqlite:{path}"

    class Settings:
        cache = Section()

    assert module._newest_entry(Settings()) == NOW + 900
    path.write_bytes(b"no database")
    assert module._newest_entry(Settings()) is None
    assert module._newest_entry(None) is None


# ---- the command -----------------------------------------------------------------------------------------------------


def test_doctor_here() -> None:
    findings = doctor(machine=here("nvidia_desktop", engines=(), notes=(Note(about="x", problem="y"),)))
    assert any(one["id"] == "engine-not-running" for one in findings)
    assert all(set(one) == {"id", "severity", "evidence", "remedy"} for one in findings)


def test_what_the_command_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    some = [
        attrs.asdict(Finding("swap-in-use", "warning", "a" * 200, "b")),
        attrs.asdict(Finding("x", "info", "c", "d")),
    ]
    monkeypatch.setattr(command, "doctor", lambda **options: some)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("! swap-in-use\n")
    assert "  → b\n· x\n" in out
    assert out.endswith("1 thing to mend\n")
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == some
    monkeypatch.setattr(command, "doctor", lambda **options: some[1:])
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("nothing is wrong\n")


def test_it_is_quick() -> None:
    facts = Facts(machine=sound(), ollama_log=("x" * 200 + "\n") * 2500 + OLD_LOADS)
    began = time.thread_time()
    examine(facts, now=NOW)
    assert time.thread_time() - began < 1
