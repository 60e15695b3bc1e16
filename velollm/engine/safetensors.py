"""A model in safetensors, with its config.json, under the names that a GGUF file would give its tensors. Needs NumPy.

Format: github.com/huggingface/safetensors (a length of 8 bytes, a JSON header, the numbers). Files come from anywhere:
every length and offset is checked against the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import orjson

from velollm.engine.weights import Stored, Tensors, read_numbers
from velollm.errors import ConfigError
from velollm.gpu.arrays import ITEM_SIZE

__all__ = ["is_safetensors", "read_config", "read_tensors"]

ENDING = ".safetensors"
MAX_HEADER = 100 * 1024 * 1024  # the limit of the format's own library
KINDS: Mapping[str, str] = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WITH_BIAS = ("attn_q", "attn_k", "attn_v")
IGNORED = "rotary_emb.inv_freq"  # what old files keep of RoPE follows from config.json


def is_safetensors(path: Path) -> bool:
    """Whether `path` is such a file, or a folder that holds some."""
    return path.suffix == ENDING or (path.is_dir() and any(path.glob("*" + ENDING)))


def read_config(path: Path) -> dict[str, Any]:
    """config.json in the folder `path`, or beside the file. Raises `ConfigError`."""
    where = (path if path.is_dir() else path.parent) / "config.json"
    try:
        found = orjson.loads(where.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where} is no object")
    return found


def read_tensors(path: Path) -> Tensors:
    """Every tensor as float32, under its name in a GGUF file. Raises `ConfigError` for what is broken or unknown."""
    files = sorted(path.glob("*" + ENDING)) if path.is_dir() else [path]
    return Tensors({name: read for file in files for name, read in _tensors(file)})


def _tensors(path: Path) -> Iterator[tuple[str, Callable[[], Stored]]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise ConfigError(f"{path} is no safetensors file, or broken off")
            header = orjson.loads(file.read(length))
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise ConfigError(f"{path} has a header that is no object")
    for name, about in header.items():
        if name != "__metadata__" and not name.endswith(IGNORED):
            yield _known(name, path), _reader(path, 8 + length, size, name, about)


def _reader(path: Path, start: int, size: int, name: str, about: Any) -> Callable[[], Stored]:
    try:
        kind, shape, (first, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        fits = 0 <= first <= end <= size - start and all(type(one) is int and one >= 0 for one in (*shape, first, end))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {name} is not described as it should be") from error
    if kind not in KINDS:
        raise ConfigError(f"{path}: {name} is {kind}, and only {', '.join(KINDS)} are read")
    if not fits or end - first != prod(shape) * ITEM_SIZE[KINDS[kind]]:
        raise ConfigError(f"{path}: {name} does not lie within the file")
    return partial(read_numbers, path, KINDS[kind], start + first, shape)


def _known(name: str, path: Path) -> str:
    if name in WHOLE:
        return WHOLE[name]
    match = LAYER.fullmatch(name)
    part = PARTS.get(match[2]) if match else None
    if match is None or part is None or (match[3] == "bias" and part not in WITH_BIAS):
        raise ConfigError(f"{path}: no model that is known here has a tensor {name}")
    return f"blk.{match[1]}.{part}.{match[3]}"
