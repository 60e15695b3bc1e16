"""The models that Ollama has downloaded, as GGUF files, read where they lie. Nothing here ever writes.

models/manifests/<host>/<namespace>/<model>/<tag>   JSON that names the layers of a model
models/blobs/sha256-<digest>                        the layers, one of which is the GGUF
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import orjson

__all__ = ["StoredModel", "list_models", "resolve", "store_folders"]

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
GGUF_LAYER = "application/vnd.ollama.image.model"
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")  # with a port, a host may have a colon
HOST_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
LONGEST_MANIFEST = 1 << 20
SERVICE_FOLDERS = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models", "/var/lib/ollama/models")


@attrs.frozen(kw_only=True)
class StoredModel:
    """A model in the store, under the name that Ollama shows for it; `size` is that of its GGUF, in bytes."""

    name: str
    path: Path
    size: int


def store_folders(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where Ollama keeps models: the folder it was told, else the user's, then those of its Linux service."""
    named = environ.get("OLLAMA_MODELS")
    if named:
        return [Path(named).expanduser()]
    service = [Path(folder) for folder in SERVICE_FOLDERS] if sys.platform == "linux" else []
    return [Path.home() / ".ollama" / "models", *service]


def resolve(name: str, store: Path | None = None) -> Path | None:
    """The GGUF of the model `name` (`qwen3:8b`, `hf.co/org/repo:Q4_K_M`), or None where the store has none."""
    parts = _parts(name)
    if parts is None:
        return None
    for folder in _folders(store):
        manifest = _find(folder / "manifests", parts)
        gguf = None if manifest is None else _gguf(folder, manifest)
        if gguf is not None:
            return gguf
    return None


def list_models(store: Path | None = None) -> list[StoredModel]:
    """All models of the store that are one GGUF file, by name."""
    found: dict[str, StoredModel] = {}
    for folder in _folders(store):
        for manifest, parts in _manifests(folder / "manifests"):
            gguf = _gguf(folder, manifest)
            if gguf is not None:
                name = _shown(parts)
                found.setdefault(name, StoredModel(name=name, path=gguf, size=gguf.stat().st_size))
    return [found[name] for name in sorted(found)]


def _folders(store: Path | None) -> list[Path]:
    return store_folders() if store is None else [store]


def _parts(name: str) -> tuple[str, str, str, str] | None:
    """Host, namespace, model and tag; None for what can be no model's name."""
    place, slash, last = name.removeprefix("https://").removeprefix("http://").rpartition("/")
    model, colon, tag = last.partition(":")
    host, namespace = HOST, NAMESPACE
    if slash:
        above, _, namespace = place.rpartition("/")
        host = above or HOST
    parts = (host, namespace, model, tag if colon else TAG)
    good = HOST_PART.fullmatch(host) and all(PART.fullmatch(part) for part in parts[1:])
    return parts if good else None


def _find(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """The file below `folder` that `parts` name, whatever the case of their letters."""
    exact = folder.joinpath(*parts)
    if exact.is_file():
        return exact
    for part in parts:
        wanted = part.lower()
        found = next((entry for entry in _entries(folder) if entry.name.lower() == wanted), None)
        if found is None:
            return None
        folder = found
    return folder if folder.is_file() else None


def _manifests(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[Path, tuple[str, ...]]]:
    for entry in _entries(folder):
        parts = (*above, entry.name)
        if len(parts) < 4 and entry.is_dir():
            yield from _manifests(entry, parts)
        elif len(parts) == 4 and entry.is_file():
            yield entry, parts


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it is missing or not ours to read."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


def _gguf(store: Path, manifest: Path) -> Path | None:
    """The file of the model's weights; None where there is none, or more than one file."""
    try:
        if manifest.stat().st_size > LONGEST_MANIFEST:
            return None
        layers = orjson.loads(manifest.read_bytes())["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == GGUF_LAYER]
        match = DIGEST.fullmatch(digests[0]) if len(digests) == 1 else None
        if match is None:
            return None
        blob = store / "blobs" / f"sha256-{match[1]}"
        with blob.open("rb") as file:
            return blob if file.read(4) == b"GGUF" else None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _shown(parts: tuple[str, ...]) -> str:
    """The name as Ollama lists it: without what is the same for nearly all."""
    host, namespace, model, tag = parts
    if host != HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == NAMESPACE else f"{namespace}/{model}:{tag}"
