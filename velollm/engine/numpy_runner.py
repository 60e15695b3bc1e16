"""The reference: a llama model in plain NumPy over paged KV. Slow and short; the other runners are tested against it.

Keys and values lie in pages [layer, block, place, head, width]; a sequence's come together through its block table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from velollm.engine.blocks import BLOCK_SIZE
from velollm.engine.events import Copy, Discard, Event, Export, Import
from velollm.engine.runner import RunnerLimits
from velollm.engine.scheduler import Chunk
from velollm.engine.weights import read_weights
from velollm.errors import ConfigError
from velollm.models.gguf import read_gguf

__all__ = ["NumpyRunner"]

Floats = npt.NDArray[np.float32]
ARCHITECTURE = "llama"


class NumpyRunner:
    """The llama model in the GGUF file at `path`, with `num_blocks` blocks of KV cache.

    Raises `ConfigError` (`GGUFError` among them) for other architectures, tensor types that are not read,
    and files that are none.
    """

    def __init__(self, path: str | Path, num_blocks: int = 256, *, slots: int = 256, batch: int = 256) -> None:
        header = read_gguf(path)
        if header.architecture != ARCHITECTURE:
            raise ConfigError(f"{path}: the reference runner knows llama models, not {header.architecture!r}")
        self._weights = dict(read_weights(path))
        self._layers = header.get("{arch}.block_count", int)
        self._heads = header.get("{arch}.attention.head_count", int)
        self._kv_heads = header.get("{arch}.attention.head_count_kv", int) or self._heads
        self._epsilon = header.get("{arch}.attention.layer_norm_rms_epsilon", float)
        vocabulary, width = self._weights["token_embd.weight"].shape
        self._width = width // self._heads
        context = header.context_length or num_blocks * BLOCK_SIZE
        base = header.get("{arch}.rope.freq_base", float) or 10_000.0
        self._rope = _rotations(context, self._width, base)
        self._pages = np.zeros((2, self._layers, num_blocks, BLOCK_SIZE, self._kv_heads, self._width), np.float32)
        self._kept: dict[int, Floats] = {}
        self.limits = RunnerLimits(
            vocabulary=vocabulary, context=context, num_blocks=num_blocks, batch=batch, slots=slots
        )

    def apply(self, events: Sequence[Event]) -> None:
        """Copy pages, and carry states away and back; sharing needs nothing, for tables point at the same pages."""
        for event in events:
            match event:
                case Copy(source, target, count):
                    self._pages[:, :, target, :count] = self._pages[:, :, source, :count]
                case Export(key, _, table, _):
                    self._kept[key] = self._pages[:, :, list(table)].copy()
                case Import(key, _, table):
                    self._pages[:, :, list(table)] = self._kept.pop(key)
                case Discard(key):
                    del self._kept[key]
                case _:
                    pass

    def execute(self, chunks: Sequence[Chunk]) -> Floats:
        """One forward pass over all chunks; each attends to its own sequence alone."""
        tokens = np.concatenate([chunk.tokens for chunk in chunks])
        places = [range(chunk.start, chunk.start + chunk.count) for chunk in chunks]
        rotation = self._rope[np.concatenate([np.asarray(place) for place in places])]
        x = self._weights["token_embd.weight"][tokens]
        for layer in range(self._layers):
            x = x + self._attend(layer, x, rotation, chunks)
            x = x + self._feed_forward(layer, x)
        ends = np.cumsum([chunk.count for chunk in chunks]) - 1
        wanted = x[[end for end, chunk in zip(ends, chunks, strict=True) if chunk.sample]]
        output = self._weights.get("output.weight", self._weights["token_embd.weight"])
        return self._norm(wanted, "output_norm.weight") @ output.T

    def close(self) -> None:
        """Nothing is held that Python would not free."""
        self._kept.clear()

    def _attend(self, layer: int, x: Floats, rotation: npt.NDArray[np.complex64], chunks: Sequence[Chunk]) -> Floats:
        block = f"blk.{layer}."
        h = self._norm(x, block + "attn_norm.weight")
        queries = _rotated(self._project(h, block + "attn_q.weight", self._heads), rotation)
        keys = _rotated(self._project(h, block + "attn_k.weight", self._kv_heads), rotation)
        values = self._project(h, block + "attn_v.weight", self._kv_heads)
        out = np.empty((len(x), self._heads * self._width), np.float32)
        at = 0
        for chunk in chunks:
            mine = slice(at, at + chunk.count)
            at += chunk.count
            table = np.array(chunk.table)
            places = np.arange(chunk.start, chunk.start + chunk.count)
            pages = self._pages[:, layer]
            pages[0, table[places // BLOCK_SIZE], places % BLOCK_SIZE] = keys[mine]
            pages[1, table[places // BLOCK_SIZE], places % BLOCK_SIZE] = values[mine]
            end = chunk.start + chunk.count
            past = pages[:, table].reshape(2, -1, self._kv_heads, self._width)[:, :end]
            out[mine] = self._attention(queries[mine], past[0], past[1], places)
        return out @ self._weights[block + "attn_output.weight"].T

    def _attention(self, queries: Floats, keys: Floats, values: Floats, places: npt.NDArray[np.int64]) -> Floats:
        """[n, heads, width] against [m, kv_heads, width]; the query at place p sees the keys up to p."""
        group = self._heads // self._kv_heads
        grouped = queries.reshape(len(queries), self._kv_heads, group, self._width)
        scores = np.einsum("nkgw,mkw->kgnm", grouped, keys) / np.float32(np.sqrt(self._width))
        scores[:, :, np.arange(len(keys)) > places[:, None]] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed: Floats = np.einsum("kgnm,mkw->nkgw", scores, values)
        return mixed.reshape(len(queries), -1)

    def _feed_forward(self, layer: int, x: Floats) -> Floats:
        block = f"blk.{layer}."
        h = self._norm(x, block + "ffn_norm.weight")
        gate = h @ self._weights[block + "ffn_gate.weight"].T
        up = h @ self._weights[block + "ffn_up.weight"].T
        mixed: Floats = (gate / (1 + np.exp(-gate)) * up) @ self._weights[block + "ffn_down.weight"].T
        return mixed

    def _project(self, x: Floats, name: str, heads: int) -> Floats:
        return (x @ self._weights[name].T).reshape(len(x), heads, self._width)

    def _norm(self, x: Floats, name: str) -> Floats:
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self._epsilon).astype(np.float32)
        normed: Floats = x / scale * self._weights[name]
        return normed


def _rotations(context: int, width: int, base: float) -> npt.NDArray[np.complex64]:
    """[context, width / 2] unit complex numbers that turn neighbouring pairs (llama's own RoPE)."""
    frequencies = base ** (-np.arange(0, width, 2) / width)
    turned: npt.NDArray[np.complex64] = np.exp(1j * np.outer(np.arange(context), frequencies)).astype(np.complex64)
    return turned


def _rotated(x: Floats, rotation: npt.NDArray[np.complex64]) -> Floats:
    pairs = np.ascontiguousarray(x).view(np.complex64) * rotation[:, None, :]
    turned: Floats = pairs.view(np.float32)
    return turned
