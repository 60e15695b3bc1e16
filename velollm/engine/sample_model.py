"""Writes a small llama model of random f32 weights as GGUF, to compare what builds of llama.cpp compute. Needs NumPy.

Layout: the GGUF specification, version 3 (github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["write_sample_model"]

WIDTH, LAYERS, HEADS, FEED_FORWARD, VOCABULARY = 128, 2, 4, 256, 256
ALIGNMENT = 32
UINT32, FLOAT32, STRING, ARRAY, INT32 = 4, 6, 8, 9, 5


def write_sample_model(path: Path, seed: int = 0) -> Path:
    """Write it to `path`, and return that. Its tokens are the bytes."""
    random = np.random.Generator(np.random.PCG64(seed))
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output.weight": (VOCABULARY, WIDTH), "output_norm.weight": ()}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}ffn_{name}.weight": (FEED_FORWARD, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{block}ffn_down.weight": (WIDTH, FEED_FORWARD)}
        shapes |= {f"{block}attn_norm.weight": (), f"{block}ffn_norm.weight": ()}
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        scale = 1.0 if name == "token_embd.weight" else 4 * WIDTH**-0.5 if name == "output.weight" else WIDTH**-0.5
        drawn = random.standard_normal(shape, dtype=np.float32) * np.float32(scale) if shape else np.ones(WIDTH)
        tensors[name] = drawn.astype(np.float32)
    path.write_bytes(_file(_metadata(), tensors))
    return path


def _metadata() -> dict[str, Any]:
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in seen}
    unseen = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + number) for number, byte in enumerate(unseen)}
    return {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [letters[byte] for byte in range(VOCABULARY)],
        "tokenizer.ggml.token_type": [1] * VOCABULARY,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def _file(metadata: dict[str, Any], tensors: dict[str, npt.NDArray[np.float32]]) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    data = b""
    for name, array in tensors.items():
        shape = array.shape[::-1]  # the innermost dimension first
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += _padded(array.tobytes())
    return _padded(head) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    return struct.pack(f"<IIQ{len(value)}i", ARRAY, INT32, len(value), *value)
