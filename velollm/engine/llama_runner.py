"""llama.cpp as a runner: one context with a unified KV memory, in which a sequence's slot is its sequence id.

Blocks are bookkeeping here: a cell knows its position and the ids that own it. So sharing is `seq_cp`, letting go is
`seq_rm`, and a copy on write needs nothing, for new tokens take new cells. There are never more cells in use than the
block manager counts, so that a step always finds room.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from velollm.engine.blocks import BLOCK_SIZE
from velollm.engine.events import Alias, Discard, Drop, Event, Export, Import
from velollm.engine.llama_cpp import Batch, load_library
from velollm.engine.runner import RunnerError, RunnerLimits
from velollm.engine.scheduler import Chunk
from velollm.engine.vocabulary import Vocabulary
from velollm.errors import ConfigError
from velollm.models.gguf import read_gguf

__all__ = ["KV_TYPES", "LlamaCppRunner", "LlamaModel"]

Floats = npt.NDArray[np.float32]

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
MAX_SLOTS = 256  # LLAMA_MAX_SEQ
LONE_SLOTS = 16  # where every slot costs memory of its own
GRAIN = 256  # llama.cpp rounds its memory up to this many cells
# From so many tokens on, attention on a CPU goes tile by tile, of 64 tokens and 64 cells. A tile with tokens of many
# sequences finds no cells to leave out: those that decode are computed by themselves, as long as they are fewer.
TILE = 64


class LlamaModel:
    """The model in the GGUF file at `path`, loaded. `library` stands in for the wheel's shared object. With
    `vocabulary_only` there are no weights: it tells tokens and text apart, and computes nothing.

    Raises `ConfigError` when the file is unusable, or llama.cpp cannot load it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        library: str | None = None,
        gpu_layers: int | None = None,
        vocabulary_only: bool = False,
    ) -> None:
        self.header = read_gguf(path)
        self.library = load_library(library) if library else load_library()
        params = self.library.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        params.vocab_only = vocabulary_only
        self.handle = self.library.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ConfigError(f"llama.cpp cannot load {path}; its log says why")
        self.vocabulary = Vocabulary(self.library, self.library.llama_model_get_vocab(self.handle))
        self.context: int = self.library.llama_model_n_ctx_train(self.handle)
        self.shares: bool = not (
            self.library.llama_model_is_recurrent(self.handle)
            or self.library.llama_model_is_hybrid(self.handle)
            or self.library.llama_model_n_swa(self.handle) > 0
        )
        self.generates: bool = self.library.llama_model_has_decoder(self.handle) and not self.header.get(
            "{arch}.pooling_type", int
        )

    def close(self) -> None:
        """Free the weights. May be called again."""
        handle, self.handle = self.handle, None
        if handle:
            self.library.llama_model_free(handle)


class LlamaCppRunner:
    """A context of `num_blocks` blocks over `model` (a `LlamaModel`, or the path of a GGUF file).

    `batch` is the largest step in tokens, `threads` what it is computed on. Raises `ConfigError` when the memory for it
    cannot be had.
    """

    def __init__(
        self,
        model: LlamaModel | str | Path,
        num_blocks: int = 512,
        *,
        batch: int = 256,
        threads: int = 2,
        kv_type: str = "f16",
        slots: int | None = None,
    ) -> None:
        if kv_type not in KV_TYPES:
            raise ConfigError(f"kv_type {kv_type!r} is none of {', '.join(KV_TYPES)}")
        self._own_model = not isinstance(model, LlamaModel)
        self.model = model if isinstance(model, LlamaModel) else LlamaModel(model)
        self._library: Any = self.model.library
        slots = min(slots or (MAX_SLOTS if self.model.shares else LONE_SLOTS), MAX_SLOTS)
        params = self._library.llama_context_default_params()
        params.n_ctx = -(-num_blocks * BLOCK_SIZE // GRAIN) * GRAIN
        params.n_batch = params.n_ubatch = max(batch, slots)  # llama.cpp reserves an output for every slot
        params.n_seq_max = slots
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.swa_full = False
        params.type_k = params.type_v = KV_TYPES[kv_type]
        self._context = self._library.llama_init_from_model(self.model.handle, params)
        if not self._context:
            raise ConfigError(f"llama.cpp finds no memory for {params.n_ctx} tokens of context; a smaller --ctx may do")
        self._memory = self._library.llama_get_memory(self._context)
        self._batch = _Arrays(batch)
        self._tiles = not self._library.llama_supports_gpu_offload()
        self._kept: dict[int, npt.NDArray[np.uint8]] = {}
        trained = self.model.context or num_blocks * BLOCK_SIZE
        self.limits = RunnerLimits(
            vocabulary=self.model.vocabulary.size,
            context=min(trained, num_blocks * BLOCK_SIZE),
            num_blocks=num_blocks,
            batch=batch,
            slots=slots,
            sharing=self.model.shares,
            idle_costs=self._tiles,
        )

    def apply(self, events: Sequence[Event]) -> None:
        """Change the owners of cells, and carry states away and back."""
        library, memory = self._library, self._memory
        for event in events:
            match event:
                case Alias(source, target, start, end):
                    library.llama_memory_seq_cp(memory, source, target, start, end)
                case Drop(slot, start, end):
                    library.llama_memory_seq_rm(memory, slot, start, end)
                case Export(key, slot, _, _):
                    self._kept[key] = self._export(slot)
                case Import(key, slot, _):
                    self._import(slot, self._kept.pop(key))
                case Discard(key):
                    self._kept.pop(key, None)
                case _:
                    pass  # a copy: its cells are owned already

    def execute(self, chunks: Sequence[Chunk]) -> Floats:
        """One `llama_decode`, or two: see `TILE`."""
        single = next((at for at, chunk in enumerate(chunks) if chunk.count > 1), 0)
        if not self._tiles or not 0 < single < TILE:
            return self._decode(chunks)
        first = self._decode(chunks[:single]).copy()
        return np.concatenate((first, self._decode(chunks[single:])))

    def _decode(self, chunks: Sequence[Chunk]) -> Floats:
        rows = self._batch.fill(chunks)
        code = self._library.llama_decode(self._context, self._batch.struct)
        if code != 0:
            raise RunnerError(f"llama_decode answered {code} to {self._batch.struct.n_tokens} tokens")
        if not rows:
            return np.empty((0, self.limits.vocabulary), np.float32)
        count = rows * self.limits.vocabulary
        logits = (c.c_float * count).from_address(self._library.llama_get_logits(self._context))
        return np.frombuffer(memoryview(logits), np.float32).reshape(rows, self.limits.vocabulary)

    def close(self) -> None:
        """Free the context, and the model where it was loaded here. May be called again."""
        self._kept.clear()
        context, self._context = self._context, None
        if context:
            self._library.llama_free(context)
            if self._own_model:
                self.model.close()

    def _export(self, slot: int) -> npt.NDArray[np.uint8]:
        size = self._library.llama_state_seq_get_size(self._context, slot)
        state = np.empty(size, np.uint8)
        written = self._library.llama_state_seq_get_data(self._context, state.ctypes.data, size, slot)
        if not written:
            raise RunnerError("llama.cpp could not export the state of a sequence")
        return state[:written]

    def _import(self, slot: int, state: npt.NDArray[np.uint8]) -> None:
        if not self._library.llama_state_seq_set_data(self._context, state.ctypes.data, len(state), slot):
            raise RunnerError("llama.cpp could not import the state of a sequence")


class _Arrays:
    """A `llama_batch` over arrays of ours, allocated once."""

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._slots = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._one = np.ones(size, np.int32)
        self._pointers = (self._slots.ctypes.data + 4 * np.arange(size)).astype(np.uintp)
        self.struct = Batch(
            n_tokens=0,
            token=self._tokens.ctypes.data,
            pos=self._positions.ctypes.data,
            n_seq_id=self._one.ctypes.data,
            seq_id=self._pointers.ctypes.data,
            logits=self._wanted.ctypes.data,
        )

    def fill(self, chunks: Sequence[Chunk]) -> int:
        """Put `chunks` in; the number of rows that are wanted."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted = []
        for chunk in chunks:
            slot, count = chunk.slot, chunk.count
            if count == 1:
                tokens.append(chunk.sequence.tokens[chunk.start])
                positions.append(chunk.start)
                slots.append(slot)
            else:
                tokens += chunk.tokens
                positions += range(chunk.start, chunk.start + count)
                slots += [slot] * count
            if chunk.sample:
                wanted.append(len(tokens) - 1)
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._slots[:count] = slots
        self._wanted[:count] = 0
        self._wanted[wanted] = 1
        self.struct.n_tokens = count
        return len(wanted)
