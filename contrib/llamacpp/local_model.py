"""What an embedded model is called, where its file lies, and what is told of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from velollm.errors import ConfigError
from velollm.messages import ModelInfo
from velollm.models.gguf import GGUF, parameter_size
from velollm.models.lookup import find, is_path

__all__ = ["describe", "locate", "model_name"]

HEAD = 1024 * 1024  # bytes of a file, enough to tell it from others


def model_name(wanted: str) -> str:
    """The name under which `wanted` (a path, an installed name, or `hf:...`) is served."""
    if wanted.startswith("hf:"):
        return wanted.removeprefix("hf:").removeprefix("//")
    if is_path(wanted):
        return Path(wanted).stem
    return wanted.removesuffix(":latest")


def locate(model: str, folder: Path | None) -> Path:
    """The file of an installed model, or the path itself; raises `ConfigError`."""
    path = find(model, folder)
    if path is None:
        raise ConfigError(
            f"no model {model!r} is installed: `velollm models list` shows what is, "
            f"`velollm models install {model}` may bring it"
        )
    return path


def describe(name: str, path: Path, header: GGUF, context: int) -> ModelInfo:
    """The model as clients see it, with `context` tokens.

    Its digest is that of the header and the size: to read it all would take minutes. A chat model embeds, too, but does
    not say so: Ollama's command line would ask it for nothing else, and neither does Ollama of its own.
    """
    template = header.chat_template or ""
    embeds = bool(header.get("{arch}.pooling_type", int))
    capabilities = ["embedding"] if embeds else ["completion", "tools"]
    if "enable_thinking" in template or "<think>" in template:
        capabilities.append("thinking")
    with path.open("rb") as file:
        head = file.read(HEAD)
    return ModelInfo(
        id=name,
        created=int(path.stat().st_mtime),
        owned_by="velollm",
        size=header.size,
        digest=hashlib.sha256(head + header.size.to_bytes(8, "little")).hexdigest(),
        family=header.architecture,
        parameter_size=parameter_size(header.parameters),
        quantization=header.quantization,
        context_length=context,
        capabilities=capabilities,
    )
