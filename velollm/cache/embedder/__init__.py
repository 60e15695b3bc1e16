"""Texts to vectors, for retrieval only: MiniLM where it is installed. Without it, trigrams retrieve as well.

    embedder = open_embedder("auto")          # None: trigrams
    cache = ResponseCache(semantic="on", embedder=embedder)

What an embedder finds is judged by the guards like anything else, so a worse one costs hits and never truth.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from velollm.cache.semantic import Embedder
from velollm.errors import ConfigError
from velollm.models.folder import default_folder

__all__ = ["MODEL_FILE", "NAME", "TOKENIZER_FILE", "embedder_folder", "open_embedder"]

logger = logging.getLogger("velollm.cache")

NAME = "all-MiniLM-L6-v2"
MODEL_FILE = "model-int8.onnx"
TOKENIZER_FILE = "tokenizer.json"
FOLDER_VARIABLE = "VELOLLM_EMBEDDER_DIR"
NEEDED = ("onnxruntime", "tokenizers", "numpy")


def embedder_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where MiniLM is installed: the folder named in the environment, else one in the user's data folder."""
    named = environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else default_folder(environ).parent / "embedders" / NAME


def open_embedder(setting: str, folder: Path | None = None) -> Embedder | None:
    """`trigrams`: none. `auto`: MiniLM if all is there. `minilm`: MiniLM, or a ConfigError that says what is not."""
    if setting == "trigrams":
        return None
    folder = folder or embedder_folder()
    missing = [name for name in NEEDED if find_spec(name) is None]
    installed = (folder / MODEL_FILE).is_file() and (folder / TOKENIZER_FILE).is_file()
    if setting == "auto" and (missing or not installed):
        return None
    if missing:
        raise ConfigError(f'MiniLM needs {", ".join(missing)}: pip install "velollm[semantic]"')
    if not installed:
        raise ConfigError(f"MiniLM is not installed in {folder}: `velollm embed install` brings it")
    from velollm.cache.embedder.minilm import MiniLM

    try:
        return MiniLM(folder)
    except Exception as error:  # a damaged file; onnxruntime and tokenizers have exceptions of their own
        if setting != "auto":
            raise ConfigError(
                f"MiniLM in {folder} cannot be used ({error}): `velollm embed install --force`"
            ) from error
        logger.warning("MiniLM in %s cannot be used (%s): trigrams retrieve instead", folder, error)
        return None
