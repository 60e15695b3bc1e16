"""What is set for which engine, on every machine on record, for models of every size."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import attrs
import pytest
from support.machines import RecordedHost, machine_names

from velollm.errors import ConfigError
from velollm.hardware import Machine, read_machine
from velollm.hardware.gguf import SPARE, gpu_room, memory_needed
from velollm.hardware.shape import Shape, read_shape
from velollm.models.gguf import read_gguf
from velollm.tuning.llama_server import parse_flags, tune_llama_server
from velollm.tuning.ollama import tune_ollama
from velollm.tuning.tuner import find_model, tune
from velollm.tuning.values import Tuning, Workload
from velollm.tuning.variables import DEAD, VARIABLES, known_variables, parse_help, parse_version
from velollm.tuning.velo import tune_velo

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gguf_shapes import write_shape

NAMES = ("llama-3.2-1b", "llama-3.1-8b", "llama-3.3-70b", "gpt-oss-20b", "mamba-2.8b")
OLLAMA_HELP = """\
Start Ollama

Environment Variables:
      OLLAMA_DEBUG               Show additional debug information (e.g. OLLAMA_DEBUG=1)
      OLLAMA_HOST                IP Address for the ollama server (default 127.0.0.1:11434)
      OLLAMA_CONTEXT_LENGTH      Context length to use unless otherwise specified (default: 4k/32k/256k based on VRAM)
      OLLAMA_KEEP_ALIVE          The duration that models stay loaded in memory (default "5m")
      OLLAMA_MAX_QUEUE           Maximum number of queued requests
      OLLAMA_NUM_PARALLEL        Maximum number of parallel requests
"""
LLAMA_HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-tb,   --threads-batch N                number of threads to use during batch and prompt processing (default:
                                        same as --threads)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
                                        (env: LLAMA_ARG_FLASH_ATTN)
-ctk,  --cache-type-k TYPE              KV cache data type for K
                                        (env: LLAMA_ARG_CACHE_TYPE_K)
-ctv,  --cache-type-v TYPE              KV cache data type for V
                                        (env: LLAMA_ARG_CACHE_TYPE_V)
-np,   --parallel N                     number of server slots (default: -1, -1 = auto)
                                        (env: LLAMA_ARG_N_PARALLEL)
--metrics                               enable prometheus compatible metrics endpoint (default: disabled)
                                        (env: LLAMA_ARG_ENDPOINT_METRICS)
"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shape]:
    folder = tmp_path_factory.mktemp("shapes")
    return {name: read_shape(read_gguf(write_shape(folder / f"{name}.gguf", name))) for name in NAMES}


def machine(name: str) -> Machine:
    return read_machine(RecordedHost(name))


# ---- versions --------------------------------------------------------------------------------------------------------


def test_variables_by_version() -> None:
    assert "OLLAMA_CONTEXT_LENGTH" not in known_variables("0.5.12")
    assert "OLLAMA_CONTEXT_LENGTH" in known_variables("0.5.13")
    assert "OLLAMA_KV_CACHE_TYPE" not in known_variables("0.4.7")
    assert "OLLAMA_IGPU_ENABLE" in known_variables("v0.30.0-rc1")
    for version in ("", "0.0.0", "nonsense", "0.1.34", "0.17.4", "99.0.0"):
        assert not set(known_variables(version)) & DEAD.keys()
    assert set(known_variables("0.0.0")) < set(VARIABLES)  # a build by hand: only what all versions read
    assert parse_version("0.17.4-rc1") == (0, 17, 4)


def test_variables_by_help() -> None:
    assert "OLLAMA_CONTEXT_LENGTH" in parse_help(OLLAMA_HELP)
    assert "OLLAMA_CONTEXT_LENGTH" in known_variables("0.0.0", OLLAMA_HELP)
    assert "OLLAMA_KV_CACHE_TYPE" not in known_variables("0.0.0", OLLAMA_HELP)
    assert not known_variables("", "Environment Variables:\n      OLLAMA_NEW_ENGINE  x\n") & DEAD.keys()


def test_flags_by_help() -> None:
    flags = parse_flags(LLAMA_HELP)
    assert flags["--parallel"] == flags["-np"] == "LLAMA_ARG_N_PARALLEL"
    assert flags["--threads-batch"] == ""
    assert flags["--flash-attn"] == "LLAMA_ARG_FLASH_ATTN"
    assert "--cache-ram" not in flags
    assert parse_flags("") == {}
    assert parse_flags("\0" * 5000 + "-" * 5000) is not None


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", machine_names())
@pytest.mark.parametrize("model", [None, *NAMES])
def test_every_machine_and_model(name: str, model: str | None, shapes: dict[str, Shape]) -> None:
    here, shape = machine(name), shapes.get(model or "")
    for version in ("", "0.1.34", "0.17.4", "0.32.15"):
        tuning = tune_ollama(here, shape, Workload(clients=8), version=version)
        others = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "LLAMA_ARG_THREADS"}
        assert set(tuning.values) <= {*known_variables(version), *others}
        assert all(setting.why for setting in tuning.settings)
        assert 1 <= int(tuning.values["OLLAMA_NUM_PARALLEL"]) <= 8
    server = tune_llama_server(here, shape, Workload(clients=8), help_text=LLAMA_HELP)
    assert set(server.values) <= parse_flags(LLAMA_HELP).keys()
    slots, total = int(server.values["--parallel"]), int(server.values["--ctx-size"])
    assert total % slots == 0
    own = tune_velo(here, shape, Workload(clients=8)).values
    assert int(own["engine.threads"]) == here.cpu.usable_cores
    if shape is not None:
        kind = server.values.get("--cache-type-k", "f16")
        need = memory_needed(shape, total // slots, slots, kv_type=kind).total
        room = max(gpu_room(here), int(here.memory.usable * SPARE))
        assert need <= room or (slots == 1 and total == 4096)


def test_a_roomy_machine_gives_each_client_a_slot(shapes: dict[str, Shape]) -> None:
    tuning = tune_ollama(machine("nvidia_desktop"), shapes["llama-3.1-8b"], Workload(clients=8), version="0.17.4")
    assert tuning.values["OLLAMA_NUM_PARALLEL"] == "8"
    assert tuning.values["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert tuning.values["OLLAMA_FLASH_ATTENTION"] == "1"
    assert "OLLAMA_KV_CACHE_TYPE" not in tuning.values
    assert re.search(r"8 x 8192 tokens of f16 cache take 8.0 GiB", tuning.settings[0].memory)
    assert tuning.notes == ()


def test_a_tight_one_quantises_before_it_gives_up_slots(shapes: dict[str, Shape]) -> None:
    tuning = tune_ollama(machine("wsl"), shapes["llama-3.1-8b"], Workload(clients=8, context=8192), version="0.17.4")
    assert tuning.values["OLLAMA_KV_CACHE_TYPE"] == "q8_0"
    assert tuning.values["OLLAMA_FLASH_ATTENTION"] == "1"
    assert 1 < int(tuning.values["OLLAMA_NUM_PARALLEL"]) < 8
    assert any("the rest waits" in note for note in tuning.notes)


def test_containers_and_crowds(shapes: dict[str, Shape]) -> None:
    tuning = tune_ollama(machine("container_limits"), shapes["llama-3.2-1b"], Workload(), version="0.30.0")
    assert tuning.values["OMP_WAIT_POLICY"] == "passive"
    assert tuning.values["LLAMA_ARG_THREADS"] == "2"
    former = tune_ollama(machine("container_limits"), shapes["llama-3.2-1b"], Workload(), version="0.17.4")
    assert any("num_thread 2" in note for note in former.notes)
    assert "LLAMA_ARG_THREADS" not in former.values
    server = tune_llama_server(machine("container_limits"), shapes["llama-3.2-1b"], Workload(), help_text=LLAMA_HELP)
    assert server.values["--threads"] == "2"
    assert "that the container may use, of 64" in next(one.why for one in server.settings if one.name == "--threads")
    for name, version in (("container_limits", "0.17.4"), ("intel_arc", "0.30.0")):  # no OpenMP; no crowd
        assert "OMP_WAIT_POLICY" not in tune_ollama(machine(name), None, Workload(), version=version).values


def test_hybrids_compute_on_fast_cores(shapes: dict[str, Shape]) -> None:
    here = attrs.evolve(machine("nvidia_desktop"), gpus=())
    server = tune_llama_server(here, shapes["llama-3.2-1b"], Workload(), help_text=LLAMA_HELP)
    assert server.values["--threads"] == "8"


def test_old_versions_are_told_less(shapes: dict[str, Shape]) -> None:
    tuning = tune_ollama(machine("nvidia_desktop"), shapes["llama-3.1-8b"], Workload(), version="0.5.0")
    assert "OLLAMA_CONTEXT_LENGTH" not in tuning.values
    assert any("OLLAMA_CONTEXT_LENGTH" in note for note in tuning.notes)


def test_changed_values_say_why() -> None:
    tuning = tune_ollama(machine("intel_arc"), None, Workload(clients=4), version="0.17.4")
    changed = tuning.with_values({"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_VULKAN": "1"}, "measured")
    assert changed.values["OLLAMA_NUM_PARALLEL"] == "2"
    assert changed.settings[0].why.startswith("measured; ")
    assert changed.settings[-1].name == "OLLAMA_VULKAN"
    assert [one.name for one in tuning.settings] == [one.name for one in changed.settings[:-1]]


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_tune_by_name(tmp_path: Path) -> None:
    host, path = RecordedHost("nvidia_desktop"), write_shape(tmp_path / "m.gguf", "llama-3.2-1b")
    host.commands[("ollama",)] = None
    found = tune("ollama", model=path, clients=6, context=4096, machine=read_machine(host), host=host)
    assert isinstance(found, Tuning)
    assert found.model == str(path)
    assert found.values["OLLAMA_NUM_PARALLEL"] == "6"
    assert "OLLAMA_CONTEXT_LENGTH" not in found.values  # nobody says which version it is
    host.commands[("/usr/bin/ollama", "serve", "--help")] = OLLAMA_HELP
    found = tune("ollama", model=path, clients=6, context=4096, machine=read_machine(host), host=host)
    assert found.values["OLLAMA_CONTEXT_LENGTH"] == "4096"
    assert find_model(None, read_machine(host), host) == ("", None)


def test_what_cannot_be_tuned(tmp_path: Path) -> None:
    here = machine("wsl")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense that is long enough for a header")
    for words, options in (
        ("cannot be tuned", {"target": "vllm"}),
        ("clients make no sense", {"clients": 0}),
        ("no model 'none'", {"model": "none"}),
        ("there is no file", {"model": tmp_path / "x.gguf"}),
        ("cannot be used", {"model": tmp_path / "bad.gguf"}),
    ):
        with pytest.raises(ConfigError, match=words):
            tune(machine=here, host=RecordedHost("wsl"), **options)  # type: ignore[arg-type]
