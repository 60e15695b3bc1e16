"""`tune()`: what this machine's engine should be told, from the hardware, the model and the clients there are."""

from __future__ import annotations

from pathlib import Path

from velollm.errors import ConfigError
from velollm.hardware import Engine, Host, LocalHost, Machine, detect
from velollm.hardware.detection import models_folder
from velollm.hardware.shape import Shape, read_shape
from velollm.models.gguf import read_model
from velollm.models.lookup import find, list_installed
from velollm.tuning.llama_server import tune_llama_server
from velollm.tuning.ollama import tune_ollama
from velollm.tuning.values import Target, Tuning, Workload
from velollm.tuning.velo import tune_velo

__all__ = ["TARGETS", "engine_binary", "engine_help", "find_model", "tune"]

TARGETS: tuple[Target, ...] = ("ollama", "llama-server", "velo")
KINDS = {"ollama": "ollama", "llama-server": "llamacpp"}
HELP_SECONDS = 3.0


def tune(
    target: Target = "ollama",
    *,
    model: str | Path | None = None,
    clients: int = 4,
    context: int | None = None,
    machine: Machine | None = None,
    host: Host | None = None,
    binary: str | None = None,
) -> Tuning:
    """The settings for `target` (`ollama`, `llama-server` or `velo`) on this machine.

    `model` is an installed model or a GGUF file (default: the one that is loaded, else the largest installed);
    `clients` are asking at once, each with conversations of `context` tokens (default: what suits). Only what this
    version of the engine knows is named; `binary` is its program, where it is not on the PATH. Raises `ConfigError` for
    a model that is not there or not readable.
    """
    if target not in TARGETS:
        raise ConfigError(f"{target!r} cannot be tuned: {', '.join(TARGETS)} can")
    if not 1 <= clients <= 4096:
        raise ConfigError(f"{clients} clients make no sense")
    host = host or LocalHost()
    machine = machine or detect(host, bandwidth=False)
    name, path = find_model(model, machine, host)
    shape: Shape | None = read_shape(read_model(path)) if path is not None else None
    workload = Workload(clients=clients, context=context)
    if target == "velo":
        return tune_velo(machine, shape, workload, model=name)
    engine = _engine(machine, target)
    help_text = engine_help(target, host, machine, binary)
    if target == "llama-server":
        return tune_llama_server(machine, shape, workload, help_text=help_text, model=name)
    version = engine.version if engine is not None else ""
    return tune_ollama(machine, shape, workload, version=version, help_text=help_text, model=name)


def find_model(model: str | Path | None, machine: Machine, host: Host) -> tuple[str, Path | None]:
    """The name and the file of the model to tune for; without any model `("", None)`."""
    folder = Path(models_folder(host)).expanduser()
    if model is not None:
        path = find(str(model), folder)
        if path is None:
            raise ConfigError(f"no model {str(model)!r} is installed: `velollm models list` shows what is")
        return str(model), path
    loaded = [one.name for engine in machine.engines for one in engine.loaded]
    for name in loaded:
        path = find(name, folder) if not name.endswith(".gguf") else None
        if path is not None:
            return name, path
    installed = sorted(list_installed(folder), key=lambda one: -one.size) if machine.installed else []
    return (installed[0].name, installed[0].path) if installed else ("", None)


def engine_binary(target: Target, host: Host, machine: Machine) -> str | None:
    """The program of the engine: that of the running process, else the one on the PATH."""
    engine = _engine(machine, target)
    if engine is not None and engine.binary and Path(engine.binary).is_file():
        return engine.binary
    return host.which(target)


def engine_help(target: Target, host: Host, machine: Machine, binary: str | None = None) -> str:
    """What the engine (the program `binary`, if named) says of its own settings; empty when it is not at hand."""
    binary = binary or engine_binary(target, host, machine)
    if binary is None:
        return ""
    words = ("serve", "--help") if target == "ollama" else ("--help",)
    return host.run(binary, *words, seconds=HELP_SECONDS) or ""


def _engine(machine: Machine, target: Target) -> Engine | None:
    return next((engine for engine in machine.engines if engine.kind == KINDS.get(target)), None)
