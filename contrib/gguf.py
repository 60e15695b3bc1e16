"""A GGUF file, run here: by our own engine or by llama-server, in a child process or, by choice, in this one."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from velollm.backend import Backend
from velollm.contrib.llamacpp.embedded import EmbeddedBackend
from velollm.errors import ConfigError

__all__ = ["open_gguf"]

Engine: TypeAlias = Literal["velo", "llama-server"]


def open_gguf(model: str, *, engine: Engine = "llama-server", in_process: bool = False, **options: Any) -> Backend:
    """The backend of a path to a `.gguf`, an installed model's name, or `hf:org/repo:quant`.

    `options` are those of `EmbeddedBackend`; `velo` knows `num_blocks` and `batch` besides. `in_process` runs `velo`
    without a child: nothing is copied between processes, and a crash of llama.cpp ends this one. Raises `ConfigError`.
    """
    if engine not in ("velo", "llama-server"):
        raise ConfigError(f"{engine!r} is no engine: velo or llama-server runs a GGUF file")
    own = {name: options.pop(name) for name in ("num_blocks", "batch") if options.get(name) is not None}
    options = {name: value for name, value in options.items() if name not in ("num_blocks", "batch")}
    if engine == "llama-server":
        if own or in_process:
            raise ConfigError(f"llama-server has no {next(iter(own), 'in_process')}: only the engine velo does")
        return EmbeddedBackend(model, **options)
    if in_process:
        from velollm.contrib.velo.backend import EngineBackend

        return EngineBackend(model, **options, **own)
    from velollm.contrib.velo.served import ServedEngine

    return ServedEngine(model, **options, **own)
