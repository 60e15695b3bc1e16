"""Writes a small llama model of random f32 weights as GGUF, to compare builds of llama.cpp by. Needs NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from velollm.models.gguf_writer import pack_head

__all__ = ["write_sample_model"]

WIDTH, LAYERS, HEADS, FEED_FORWARD, VOCABULARY = 128, 2, 4, 256, 256
F32 = 0


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
    described = [(name, array.shape[::-1], F32) for name, array in tensors.items()]
    head, offsets, size = pack_head(_metadata(), described)
    with path.open("wb") as file:
        file.write(head)
        for offset, array in zip(offsets, tensors.values(), strict=True):
            file.seek(offset)
            file.write(array.tobytes())
        file.truncate(size)
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
