"""Writes a llama model of half a billion random weights as GGUF (Q4_0, 280 MB): for measurements, it says nothing.

    python benchmarks/random_gguf.py random-0.5b.gguf

The same on every machine. Its tokenizer is a real byte-level one: bytes, pairs of small letters, and pairs of pairs.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import numpy.typing as npt

from velollm.models.gguf_writer import Tensor, pack_head

__all__ = ["write_random_gguf"]

F32, Q4_0, Q8_0 = 0, 2, 8
LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY, CONTEXT = 28, 1024, 16, 4, 4096, 32000, 16384
HEAD = WIDTH // HEADS
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL, CONTROL = 1, 3
BLOCK = 32  # weights with one scale
SPREAD = 4.3  # standard deviation of whole numbers from -7 to 7
SPREAD_8 = 73.3  # and of those from -127 to 127


def write_random_gguf(path: Path, seed: int = 0) -> Path:
    """Write the model to `path` and return it."""
    tensors = _tensors()
    head, offsets, _ = pack_head(_metadata(), tensors)
    random = np.random.Generator(np.random.PCG64(seed))
    with path.open("wb") as file:
        file.write(head)
        for (_, dimensions, kind), offset in zip(tensors, offsets, strict=True):
            file.seek(offset)
            file.write(_weights(random, dimensions, kind).tobytes())
    return path


def _tensors() -> list[Tensor]:
    kv = HEAD * KV_HEADS
    tensors: list[Tensor] = [("token_embd.weight", (WIDTH, VOCABULARY), Q4_0), ("output_norm.weight", (WIDTH,), F32)]
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        tensors += [(block + "attn_norm.weight", (WIDTH,), F32), (block + "ffn_norm.weight", (WIDTH,), F32)]
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH), ("attn_k", WIDTH, kv), ("attn_v", WIDTH, kv), ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", WIDTH, FEED_FORWARD), ("ffn_up", WIDTH, FEED_FORWARD), ("ffn_down", FEED_FORWARD, WIDTH),
        ):  # fmt: skip
            tensors.append((f"{block}{name}.weight", (rows, columns), Q4_0))
    return [*tensors, ("output.weight", (WIDTH, VOCABULARY), Q8_0)]


def _weights(random: np.random.Generator, dimensions: tuple[int, ...], kind: int) -> npt.NDArray[Any]:
    """Ones for norms; else whole numbers with such a scale that activations keep their size."""
    if kind == F32:
        return np.ones(dimensions, np.float32)
    blocks = int(np.prod(dimensions)) // BLOCK
    if kind == Q8_0:
        out = np.empty(blocks, [("scale", np.float16), ("weights", np.int8, BLOCK)])
        out["scale"] = 4 * dimensions[0] ** -0.5 / SPREAD_8
        out["weights"] = random.integers(-127, 128, (blocks, BLOCK), np.int8)
        return out
    out = np.empty(blocks, [("scale", np.float16), ("weights", np.uint8, BLOCK // 2)])
    out["scale"] = dimensions[0] ** -0.5 / SPREAD
    low, high = random.integers(1, 16, (2, blocks, BLOCK // 2), np.uint8)
    out["weights"] = low | high << 4
    return out


def _metadata() -> dict[str, Any]:
    tokens, merges = _vocabulary()
    first = VOCABULARY - len(SPECIAL)
    return {
        "general.architecture": "llama",
        "general.name": "random 0.5b",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HEAD,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": first,
        "tokenizer.ggml.eos_token_id": first + 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def _vocabulary() -> tuple[list[str], list[str]]:
    """The tokens by id, and the merges that make them."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in seen}
    unseen = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + number) for number, byte in enumerate(unseen)}
    pairs = [one + two for one, two in product(ascii_lowercase, repeat=2)]
    left = VOCABULARY - len(SPECIAL) - 256 - len(pairs)
    fours = [(one, two) for _, (one, two) in zip(range(left), product(pairs, repeat=2), strict=False)]
    merges = [f"{one} {two}" for one, two in [*map(tuple, pairs), *fours]]
    return [*(letters[byte] for byte in range(256)), *pairs, *(one + two for one, two in fours), *SPECIAL], merges


if __name__ == "__main__":
    write_random_gguf(Path(sys.argv[1]))
