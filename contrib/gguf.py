"""A GGUF file, run here: by our own engine, on llama.cpp or on a GPU, or by llama-server; in a child process or, by
choice, in this one."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from velollm.backend import Backend
from velollm.contrib.llamacpp.embedded import EmbeddedBackend
from velollm.contrib.llamacpp.local_model import locate
from velollm.errors import ConfigError
from velollm.gpu.device import check_device
from velollm.models.gguf import GGUF, read_gguf

__all__ = ["open_gguf"]

Engine: TypeAlias = Literal["velo", "llama-server", "cuda"]
ENGINES: tuple[Engine, ...] = ("velo", "llama-server", "cuda")
OWN = ("num_blocks", "batch", "kv_layout")  # options that llama-server does not have
LLAMA_SERVERS = frozenset({"unified", "replicate"})  # options that nobody else has
# Models that speak in channels (gpt-oss): llama-server tells their reasoning from their answers, our engine does not.
CHANNELS = "<|channel|>"


def open_gguf(model: str, *, engine: Engine | None = None, in_process: bool = False, **options: Any) -> Backend:
    """The backend of a path to a `.gguf`, an installed model's name, or `hf:org/repo:quant`.

    `engine` None takes `velo` where it was measured to do as much as llama-server or more, which is on CPUs with models
    that attend to all that was said, or where something is asked for that only `velo` knows; else `llama-server`.
    `options` are those of `EmbeddedBackend`; `velo` and `cuda` know `num_blocks` and `batch` besides, `velo` the
    `kv_layout`, and `cuda` the number of its GPU, `device`. `in_process` runs them without a child: nothing is copied
    between processes, and a crash of native code ends this one. Raises `ConfigError`, and `GpuUnavailable` where `cuda`
    cannot run.
    """
    device = options.pop("device", None)
    own = {name: value for name in OWN if (value := options.pop(name, None)) is not None}
    suits = engine is None and not own and not in_process and _suits_velo(model, options)
    if engine is None:
        engine = "velo" if own or in_process or suits else "llama-server"
    if engine not in ENGINES:
        raise ConfigError(f"{engine!r} is no engine: {', '.join(ENGINES)} run a GGUF file")
    if device is not None and engine != "cuda":
        raise ConfigError(f"{engine} has no device: only the engine cuda does")
    if engine == "llama-server":
        if own or in_process:
            raise ConfigError(f"llama-server has no {next(iter(own), 'in_process')}: only the engine velo does")
        return EmbeddedBackend(model, **options)
    if not suits:  # which has looked at the template
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


def _suits_velo(model: str, options: dict[str, Any]) -> bool:
    """Whether llama.cpp computes on the CPU here, and the model is one whose conversations can share what they have in
    common; of a model that is still to be fetched nothing is known."""
    try:
        on_cpu = sys.platform != "darwin" and "+" not in version("xllamacpp")  # builds for GPUs have a local version
    except PackageNotFoundError:
        return False
    if not on_cpu or model.startswith("hf:") or not LLAMA_SERVERS.isdisjoint(options):
        return False
    header = read_gguf(locate(model, options.get("folder")))
    return not (_speaks_in_channels(header) or _looks_at_less(header) or header.get("{arch}.pooling_type", int))


def _speaks_in_channels(header: GGUF) -> bool:
    return CHANNELS in (header.chat_template or "")


def _looks_at_less(header: GGUF) -> bool:
    """Whether attention does not go over all that was said: sliding windows, recurrent models."""
    recurrent = f"{header.architecture}.ssm."
    return bool(header.get("{arch}.attention.sliding_window", int)) or any(
        key.startswith((recurrent, f"{header.architecture}.wkv.")) for key in header.metadata
    )


def _check_template(model: str, folder: Path | None) -> None:
    if model.startswith("hf:"):  # not here yet; its answers will show
        return
    if _speaks_in_channels(read_gguf(locate(model, folder))):
        raise ConfigError(
            f"{model} speaks in channels, which our engine does not tell apart: run it with --engine llama-server"
        )
