"""The user's own folder of models: one GGUF file for each, named after it. Large models may come in several parts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

from velollm.errors import ConfigError

__all__ = ["InstalledModel", "cache_folder", "default_folder", "find_own", "list_own", "remove_own", "safe_name"]

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


@attrs.frozen(kw_only=True)
class InstalledModel:
    """A model on this machine. `source` is `velollm` (own folder), `ollama` or `file`; `size` in bytes, all parts."""

    name: str
    path: Path
    size: int
    source: str = "velollm"


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where models are kept unless another folder is named: `velollm/models` in the user's data folder."""
    return _user_folder("XDG_DATA_HOME", ".local/share", "Library/Application Support", environ) / "models"


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where downloads wait until they are unpacked."""
    return _user_folder("XDG_CACHE_HOME", ".cache", "Library/Caches", environ) / "downloads"


def _user_folder(variable: str, unix: str, mac: str, environ: Mapping[str, str]) -> Path:
    named = environ.get(variable, "")
    if os.path.isabs(named):  # the XDG specification: relative paths are to be ignored
        return Path(named) / "velollm"
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "velollm"
    return Path.home() / (mac if sys.platform == "darwin" else unix) / "velollm"


def safe_name(name: str) -> str:
    """`name` without `:latest`; raises `ConfigError` where it cannot be the name of a file."""
    bare = name.removesuffix(":latest")
    if not SAFE.fullmatch(bare):
        raise ConfigError(f"{name!r} cannot name a model: letters, digits and . _ + - only, beginning with one of them")
    return bare


def list_own(folder: Path | None = None) -> list[InstalledModel]:
    """The models in `folder`, by name; of a model in parts, the first part stands for all."""
    folder = folder or default_folder()
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.glob("*.gguf")):
        part = PART.fullmatch(path.stem)
        if path.is_file() and (part is None or int(part[2]) == 1):
            name = part[1] if part else path.stem
            found.append(InstalledModel(name=name, path=path, size=sum(piece.stat().st_size for piece in _parts(path))))
    return found


def find_own(name: str, folder: Path | None = None) -> InstalledModel | None:
    """The model called `name` in `folder`; the case of letters and a final `:latest` do not matter."""
    wanted = name.removesuffix(":latest").removesuffix(".gguf").lower()
    return next((model for model in list_own(folder) if model.name.lower() == wanted), None)


def remove_own(name: str, folder: Path | None = None) -> InstalledModel:
    """Delete a model of `folder`, all of its parts (of a linked one, the links). Raises `ConfigError`."""
    model = find_own(name, folder)
    if model is None:
        raise ConfigError(
            f"no model {name!r} in {folder or default_folder()}: `velollm models list` shows what is there"
        )
    for path in _parts(model.path):
        path.unlink(missing_ok=True)
    return model


def _parts(path: Path) -> list[Path]:
    part = PART.fullmatch(path.stem)
    if part is None:
        return [path]
    pieces = (path.with_name(f"{part[1]}-{number:05}-of-{part[3]}.gguf") for number in range(1, int(part[3]) + 1))
    return [piece for piece in pieces if piece.is_file()]
