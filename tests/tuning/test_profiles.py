"""Profiles: what is shared, and what is refused."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.machines import RecordedHost, machine_names

from velollm.errors import ConfigError
from velollm.hardware import read_machine
from velollm.tuning.ollama import tune_ollama
from velollm.tuning.profiles import export_profile, hardware_class, import_profile, mismatches
from velollm.tuning.values import Setting, Workload

GOOD = """\
velollm_profile = 1
target = "ollama"
model = "llama 8.0B Q4_K_M"
gain = 2.31
[hardware]
cpu = "AMD EPYC"
cores = 2
[settings]
OLLAMA_NUM_PARALLEL = "8"
"""


@pytest.mark.parametrize("name", machine_names())
def test_there_and_back(name: str) -> None:
    machine = read_machine(RecordedHost(name))
    tuning = attrs.evolve(tune_ollama(machine, None, Workload(clients=8), version="0.17.4"), gain=2.5)
    text = export_profile(tuning, machine, model="llama 8.0B Q4_K_M")
    profile = import_profile(text)
    assert profile.tuning.values == tuning.values
    assert (profile.tuning.gain, profile.tuning.model) == (2.5, "llama 8.0B Q4_K_M")
    assert mismatches(profile, machine) == []


def test_nothing_personal_leaves() -> None:
    machine = read_machine(RecordedHost("nvidia_desktop"))
    tuning = tune_ollama(machine, None, Workload(), version="0.17.4", model="/home/ada/secret.gguf")
    secret = [
        Setting(name="OLLAMA_HOST", value="10.1.2.3:11434", why="x"),
        Setting(name="OLLAMA_MODELS", value="/home/ada/models", why="x"),
        Setting(name="OLLAMA_KEEP_ALIVE", value="/home/ada", why="x"),
    ]
    text = export_profile(attrs.evolve(tuning, settings=(*tuning.settings, *secret)), machine)
    for word in ("ada", "10.1.2.3", "GPU-5ca9de22", "/home", "OLLAMA_HOST", "00000000:01"):
        assert word not in text


def test_another_machine_is_told() -> None:
    profile = import_profile(GOOD)
    words = mismatches(profile, read_machine(RecordedHost("nvidia_desktop")))
    assert any(word.startswith("cpu: AMD EPYC there") for word in words)
    small = attrs.evolve(profile, hardware={"memory_gib": 512})
    assert any("memory" in word for word in mismatches(small, read_machine(RecordedHost("wsl"))))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("velollm_profile = 1", "velollm_profile = 2", "no profile of a kind known"),
        ("velollm_profile = 1\n", "", "no profile"),
        ('"ollama"', '"vllm"', "target must be one of"),
        ("gain = 2.31", "gain = nan", "gain must be a factor"),
        ("gain = 2.31", "gain = true", "gain must be a factor"),
        ("gain = 2.31", "gain = -1", "gain must be a factor"),
        ("OLLAMA_NUM_PARALLEL", "OLLAMA_HOST", "no setting of ollama that a profile may hold"),
        ("OLLAMA_NUM_PARALLEL", "LD_PRELOAD", "no setting of ollama"),
        ("OLLAMA_NUM_PARALLEL", "OLLAMA_NUM_THREAD", "no setting of ollama"),
        ('"8"', '"8; rm -rf ~"', "short text without spaces"),
        ('"8"', '"$(reboot)"', "short text without spaces"),
        ('"8"', "8", "short text"),
        ('cpu = "AMD EPYC"', 'cpu = "x\\u0000y"', "short plain words"),
        ('cpu = "AMD EPYC"', 'owner = "ada"', "does not belong into a profile"),
        ('model = "llama 8.0B Q4_K_M"', 'author = "x"', "'author' does not belong"),
        ('[settings]\nOLLAMA_NUM_PARALLEL = "8"\n', "", "no \\[settings\\]"),
        ("[hardware]", "[hardware", "no TOML"),
    ],
)
def test_what_is_refused(old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=words):
        import_profile(GOOD.replace(old, new, 1))


@given(st.text(max_size=300))
def test_any_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError):
        import_profile(text)


def test_huge_and_deep_profiles() -> None:
    with pytest.raises(ConfigError, match="larger than any profile"):
        import_profile("#" * 100_000)
    with pytest.raises(ConfigError):
        import_profile("a = " + "[" * 30_000)


def test_the_class_of_a_container_is_its_limits() -> None:
    found = hardware_class(read_machine(RecordedHost("container_limits")))
    assert (found["cores"], found["memory_gib"]) == (2, 8)
