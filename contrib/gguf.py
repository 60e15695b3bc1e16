"""A GGUF file, run here: by our own engine, on llama.cpp or on a GPU, or by llama-server; in a child process or, by
choice, in this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from velollm.backend import Backend
from velollm.contrib.llamacpp.embedded import EmbeddedBackend
from velollm.contrib.llamacpp.local_model import locate
from velollm.errors import ConfigError
from velollm.gpu.device import check_device
from velollm.models.gguf import read_gguf

__all__ = ["open_gguf"]

Engine: TypeAlias = Literal["velo", "llama-server", "cuda"]
ENGINES: tuple[Engine, ...] = ("velo", "llama-server", "cuda")
OWN = ("num_blocks", "batch", "kv_layout")  # options that llama-server does not have


# Models that speak in channels (gpt-oss): llama-server tells their reasoning from their answers, our engine does not.
CHANNELS = "<|channel|>"


def open_gguf(model: str, *, engine: Engine | None = None, in_process: bool = False, **options: Any) -> Backend:
    """The backend of a path to a `.gguf`, an installed model's name, or `hf:org/repo:quant`.

    `engine` None takes `llama-server`, unless something is asked for that only `velo` knows. `options` are those of
    `EmbeddedBackend`; `velo` and `cuda` know `num_blocks` and `batch` besides, `velo` the `kv_layout`, and `cuda` the
    number of its GPU, `device`. `in_process` runs them without a child: nothing is copied between processes, and a
    crash of native code ends this one. Raises `ConfigError`, and `GpuUnavailable` where `cuda` cannot run.
    """
    device = options.pop("device", None)
    own = {name: value for name in OWN if (value := options.pop(name, None)) is not None}
    if engine is None:
        engine = "velo" if own or in_process else "llama-server"
    if engine not in ENGINES:
        raise ConfigError(f"{engine!r} is no engine: {', '.join(ENGINES)} run a GGUF file")
    if device is not None and engine != "cuda":
        raise ConfigError(f"{engine} has no device: only the engine cuda does")
    if engine == "llama-server":
        if own or in_process:
            raise ConfigError(f"llama-server has no {next(iter(own), 'in_process')}: only the engine velo does")
        return EmbeddedBackend(model, **options)
    _check_template(model, options.get("folder"))
    if engine == "cuda":
        if "kv_layout" in own:
            raise ConfigError("cuda has no kv_layout: only the engine velo does")
        own["device"] = check_device(device or 0)
    if in_process:
        from velollm.contrib.velo.backend import EngineBackend

        return EngineBackend(model, **options, **own)
    from velollm.contrib.velo.served import ServedEngine

    return ServedEngine(model, **options, **own)


def _check_template(model: str, folder: Path | None) -> None:
    if model.startswith("hf:"):  # not here yet; its answers will show
        return
    if CHANNELS in (read_gguf(locate(model, folder)).chat_template or ""):
        raise ConfigError(
            f"{model} speaks in channels, which our engine does not tell apart: run it with --engine llama-server"
        )
