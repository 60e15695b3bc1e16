"""GGUF files from the Hugging Face hub, through `huggingface_hub` (the extra `hub`) and its cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from velollm.errors import ConfigError

__all__ = ["HubFile", "choose_files", "fetch_files", "need_hub", "parse_hub"]

REPO = re.compile(r"hf:(?://)?([\w.-]+/[\w.-]+)(?::([\w.+-]+))?")
PARTS = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_XS", "Q5_K_M", "Q8_0", "MXFP4", "F16", "BF16")


@attrs.frozen
class HubFile:
    """`repo` is `org/name`; `quant` picks among its files, an empty string leaves the choice to us."""

    repo: str
    quant: str


def parse_hub(name: str) -> HubFile:
    """`hf:org/repo` or `hf:org/repo:quant` taken apart; raises `ConfigError`."""
    match = REPO.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name!r} does not name a model on the hub: hf:org/repo:quant is wanted")
    return HubFile(match[1], match[2] or "")


def need_hub() -> None:
    """Raises `ConfigError` when the extra is missing."""
    if find_spec("huggingface_hub") is None:
        raise ConfigError('models from the hub need the extra: pip install "velollm[hub]"')


def fetch_files(name: str) -> list[Path]:
    """What `hf:org/repo:quant` means, one file or all parts in order: from the hub's cache, else downloaded. Blocking.

    Raises `ConfigError` when the extra is missing, the hub cannot be reached, or it has no such file.
    """
    wanted = parse_hub(name)
    need_hub()
    hub: Any = import_module("huggingface_hub")
    try:
        return _cached(hub, wanted) or _downloaded(hub, wanted)
    except ConfigError:
        raise
    except Exception as error:  # the hub's client lets through those of its HTTP library, which changes with versions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{name} could not be had from the hub: {reason}; "
            "other ways to a model: --model FILE.gguf, `velollm models install smollm2`, or a running Ollama"
        ) from error


def _cached(hub: Any, wanted: HubFile) -> list[Path]:
    """The files as they lie in the hub's cache, or none."""
    try:
        folder = Path(hub.snapshot_download(wanted.repo, local_files_only=True))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf") if path.is_file()]
        chosen = choose_files(names, wanted)
    except (OSError, ConfigError):
        return []
    parts = PARTS.search(chosen[0])
    return [folder / file for file in chosen] if parts is None or len(chosen) == int(parts[2]) else []


def _downloaded(hub: Any, wanted: HubFile) -> list[Path]:
    files = choose_files(hub.list_repo_files(wanted.repo), wanted)
    return [Path(hub.hf_hub_download(wanted.repo, file)) for file in files]


def choose_files(files: Iterable[str], wanted: HubFile) -> list[str]:
    """The files of a repository that make up the wanted model; projectors and other helpers are none."""
    models = sorted(file for file in files if file.lower().endswith(".gguf") and "mmproj" not in file.lower())
    if not models:
        raise ConfigError(f"{wanted.repo} has no GGUF files")
    for quant in (wanted.quant,) if wanted.quant else PREFERRED:
        found = [file for file in models if re.search(rf"(^|[-._/]){re.escape(quant)}([-./]|$)", file, re.IGNORECASE)]
        if found:
            return _parts(found)
    if wanted.quant:
        raise ConfigError(f"{wanted.repo} has no {wanted.quant}; it has {', '.join(models)[:500]}")
    return _parts(models)


def _parts(found: list[str]) -> list[str]:
    """The first file, with all of its parts."""
    match = PARTS.search(found[0])
    if match is None:
        return found[:1]
    head = found[0][: match.start()]
    return [file for file in found if file.startswith(head) and PARTS.fullmatch(file[len(head) :])]
