"""Where a model that is named lies: as a file, in the own folder, or in the store of Ollama."""

from __future__ import annotations

import os
from pathlib import Path

from velollm.errors import ConfigError
from velollm.models.folder import InstalledModel, find_own, list_own
from velollm.models.ollama import list_models, resolve

__all__ = ["find", "is_path", "list_installed"]


def find(name: str, folder: Path | None = None, *, ollama: Path | None = None) -> Path | None:
    """The GGUF file that `name` means: a path, a model of `folder`, or one of the store `ollama`; None where none is.

    Raises `ConfigError` when `name` is a path, and nothing is there.
    """
    if is_path(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"there is no file {name}")
        return path
    own = find_own(name, folder)
    if own is not None:
        return own.path
    return resolve(name, ollama)


def is_path(name: str) -> bool:
    """Whether `name` says a place, not just a name."""
    return name.lower().endswith(".gguf") or name.startswith((".", "~", os.sep)) or os.path.isabs(name)


def list_installed(folder: Path | None = None, *, ollama: Path | None = None) -> list[InstalledModel]:
    """Every model on this machine: those of `folder` first, then those in the store of Ollama."""
    stored = [
        InstalledModel(name=model.name, path=model.path, size=model.size, source="ollama")
        for model in list_models(ollama)
    ]
    return [*list_own(folder), *stored]
