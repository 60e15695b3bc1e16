"""Tuned settings to share: TOML with the class of hardware and the measured gain, and nothing that tells whose.

velollm_profile = 1
target = "ollama"
model = "llama 8.0B Q4_K_M"        # architecture, size and quantisation, not the file's name
gain = 2.31                        # measured throughput by that of the defaults

[hardware]
cpu = "AMD Ryzen 7 7800X3D"
...

[settings]
OLLAMA_NUM_PARALLEL = "8"
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import attrs

from velollm.errors import ConfigError
from velollm.hardware.machine import Machine
from velollm.tuning.tuner import TARGETS
from velollm.tuning.values import Setting, Target, Tuning
from velollm.tuning.variables import VARIABLES

__all__ = ["Profile", "export_profile", "hardware_class", "import_profile", "mismatches"]

FORMAT = 1
LARGEST = 64 * 1024
GIB = 1 << 30
VALUE = re.compile(r"[A-Za-z0-9_.:+-]{0,32}")
WORDS = re.compile(r"[\w .()+/@-]{0,80}")
# Nothing that names a file, an address or a person may travel in a profile.
OLLAMA = frozenset(VARIABLES) - {"OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_ORIGINS", "OLLAMA_REMOTES", "OLLAMA_EDITOR",
                                 "OLLAMA_AUTH", "OLLAMA_DEBUG_LOG_REQUESTS"}  # fmt: skip
WAITING = frozenset({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "LLAMA_ARG_THREADS"})
FLAGS = frozenset({
    "--parallel", "--ctx-size", "--flash-attn", "--cache-type-k", "--cache-type-v", "--threads", "--threads-batch",
    "--batch-size", "--ubatch-size", "--cache-ram", "--metrics", "--n-gpu-layers",
})  # fmt: skip
VELO = frozenset({"engine.ctx", "engine.threads", "engine.kv_type"})
KEYS = {"velollm_profile", "target", "model", "version", "gain", "hardware", "settings"}
HARDWARE = {"cpu", "cores", "memory_gib", "gpus", "isa", "system"}


@attrs.frozen(kw_only=True)
class Profile:
    """A tuning with the class of hardware that it was made for."""

    tuning: Tuning
    hardware: Mapping[str, Any]


def hardware_class(machine: Machine) -> dict[str, Any]:
    """What decides how fast a machine is, and nothing that tells it from its sisters."""
    system = "darwin" if "mac" in machine.system.name.lower() else machine.system.name.split(" ")[0].lower()
    return {
        "cpu": _plain(machine.cpu.model),
        "cores": machine.cpu.usable_cores,
        "memory_gib": round((machine.memory.limit or machine.memory.total) / GIB),
        "gpus": [f"{_plain(gpu.name)} {round((gpu.memory_total or 0) / GIB)} GiB" for gpu in machine.gpus],
        "isa": [name for name in machine.cpu.isa if name in ("AVX2", "AVX512_VNNI", "AMX_INT8", "NEON", "SVE")],
        "system": _plain(system),
    }


def export_profile(tuning: Tuning, machine: Machine, *, model: str = "") -> str:
    """The TOML of a tuning; `model` describes it by kind. Settings that are not for sharing are left out."""
    allowed = _allowed(tuning.target)
    lines = [f"velollm_profile = {FORMAT}", f"target = {json.dumps(tuning.target)}"]
    lines += [
        f"{key} = {json.dumps(_plain(value))}"
        for key, value in (("model", model), ("version", tuning.version))
        if value
    ]
    if tuning.gain is not None:
        lines.append(f"gain = {tuning.gain:.3f}")
    lines += ["", "[hardware]", *(f"{key} = {json.dumps(value)}" for key, value in hardware_class(machine).items())]
    lines += ["", "[settings]"]
    for setting in tuning.settings:
        if setting.name in allowed and VALUE.fullmatch(setting.value):
            lines += [f"# {setting.why}"] if setting.why else []
            lines.append(f"{json.dumps(setting.name)} = {json.dumps(setting.value)}")
    return "\n".join(lines) + "\n"


def import_profile(text: str, *, name: str = "the profile") -> Profile:
    """The profile in `text`. Raises `ConfigError`, which says what is wrong, for anything a profile may not hold."""
    if len(text) > LARGEST:
        raise ConfigError(f"{name} is larger than any profile")
    try:
        facts = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is no TOML: {error}") from error
    if facts.get("velollm_profile") != FORMAT:
        raise ConfigError(f"{name} is no profile of a kind known here (velollm_profile = {FORMAT})")
    unknown = sorted(facts.keys() - KEYS)
    if unknown:
        raise ConfigError(f"{name}: {unknown[0]!r} does not belong into a profile")
    target = facts.get("target")
    if target not in TARGETS:
        raise ConfigError(f"{name}: target must be one of {', '.join(TARGETS)}, not {target!r}")
    gain = facts.get("gain")
    if gain is not None and (type(gain) not in (int, float) or not math.isfinite(gain) or not 0 < gain < 1000):
        raise ConfigError(f"{name}: gain must be a factor such as 2.1, not {gain!r}")
    settings = _settings(facts.get("settings"), target, name)
    model, version = (_words(facts.get(key, ""), key, name) for key in ("model", "version"))
    tuning = Tuning(target=target, settings=settings, model=model, version=version, gain=gain)
    return Profile(tuning=tuning, hardware=_hardware(facts.get("hardware"), name))


def mismatches(profile: Profile, machine: Machine) -> list[str]:
    """In what this machine differs from the profile's, in words; empty for the same class."""
    here = hardware_class(machine)
    found = [
        f"{key}: {profile.hardware[key] or 'none'} there, {here[key] or 'none'} here"
        for key in ("cpu", "cores", "gpus")
        if key in profile.hardware and profile.hardware[key] != here[key]
    ]
    memory = profile.hardware.get("memory_gib")
    if type(memory) is int and not 0.75 <= here["memory_gib"] / max(memory, 1) <= 4 / 3:
        found.append(f"memory: {memory} GiB there, {here['memory_gib']} GiB here")
    return found


def _settings(value: Any, target: Target, name: str) -> tuple[Setting, ...]:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{name} has no [settings]")
    allowed = _allowed(target)
    settings = []
    for key, one in value.items():
        if key not in allowed:
            raise ConfigError(f"{name}: {key!r} is no setting of {target} that a profile may hold")
        if not isinstance(one, str) or not VALUE.fullmatch(one):
            raise ConfigError(f"{name}: the value of {key} must be a short text without spaces, not {one!r}")
        settings.append(Setting(name=key, value=one, why="from an imported profile"))
    return tuple(settings)


def _hardware(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} has no [hardware]")
    for key, one in value.items():
        parts = one if isinstance(one, list) else [one]
        if key not in HARDWARE or len(parts) > 32:
            raise ConfigError(f"{name}: hardware.{key} does not belong into a profile")
        for part in parts:
            if not (type(part) is int and 0 <= part < 1 << 20) and not (
                isinstance(part, str) and WORDS.fullmatch(part)
            ):
                raise ConfigError(f"{name}: hardware.{key} must be short plain words or a number, not {part!r}")
    return value


def _words(value: Any, key: str, name: str) -> str:
    if not isinstance(value, str) or not WORDS.fullmatch(value):
        raise ConfigError(f"{name}: {key} must be short plain words, not {value!r}")
    return value


def _allowed(target: Target) -> frozenset[str]:
    return {"ollama": OLLAMA | WAITING, "llama-server": FLAGS | WAITING, "velo": VELO}[target]


def _plain(text: str) -> str:
    return "".join(letter for letter in text if WORDS.fullmatch(letter))[:80]
