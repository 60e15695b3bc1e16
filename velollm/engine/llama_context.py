"""A context of llama.cpp: its KV memory, and the batches that it computes."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from velollm.engine.llama_cpp import Batch
from velollm.engine.runner import RunnerError
from velollm.engine.scheduler import Chunk
from velollm.errors import ConfigError

if TYPE_CHECKING:
    from velollm.engine.llama_runner import LlamaModel

__all__ = ["GRAIN", "KV_TYPES", "LlamaContext"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
GRAIN = 256  # llama.cpp rounds its memory up to this many cells
FLASH_ATTENTION = 1


class LlamaContext:
    """A context of `cells` cells for `sequences` sequences, all in one memory, or with `streams` each in its own part.

    With `flash` attention must be the kind that does not transpose values. Raises `ConfigError` when it cannot be had.
    """

    def __init__(
        self,
        model: LlamaModel,
        cells: int,
        *,
        sequences: int,
        batch: int,
        threads: int,
        kv_type: str,
        streams: bool = False,
        flash: bool = False,
    ) -> None:
        self._library: Any = model.library
        self._vocabulary = model.vocabulary.size
        params = self._library.llama_context_default_params()
        params.n_ctx = -(-cells // GRAIN) * GRAIN
        params.n_batch = params.n_ubatch = max(batch, sequences)  # llama.cpp reserves an output for every sequence
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = not streams
        params.swa_full = False
        params.type_k = params.type_v = KV_TYPES[kv_type]
        if flash:
            params.flash_attn_type = FLASH_ATTENTION
        self._handle = self._library.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ConfigError(f"llama.cpp finds no memory for {params.n_ctx} tokens of context; a smaller --ctx may do")
        self._memory = self._library.llama_get_memory(self._handle)
        self._batch = _Arrays(batch)

    def decode(self, chunks: Sequence[Chunk], sequences: Sequence[int]) -> Floats:
        """Compute `chunks`, each in its one of `sequences`: a row of logits for each that wants a sample, in order.

        The rows are valid until the next call. Raises `RunnerError`.
        """
        rows = self._batch.fill(chunks, sequences)
        code = self._library.llama_decode(self._handle, self._batch.struct)
        if code != 0:
            raise RunnerError(f"llama_decode answered {code} to {self._batch.struct.n_tokens} tokens")
        if not rows:
            return np.empty((0, self._vocabulary), np.float32)
        logits = (c.c_float * (rows * self._vocabulary)).from_address(self._library.llama_get_logits(self._handle))
        return np.frombuffer(memoryview(logits), np.float32).reshape(rows, self._vocabulary)

    def alias(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` own the cells of `source` from `start` up to `end` as well; in one memory only."""
        self._library.llama_memory_seq_cp(self._memory, source, target, start, end)

    def drop(self, sequence: int, start: int = 0, end: int = -1) -> None:
        """Let the sequence own its cells from `start` up to `end` (-1: to the last) no longer."""
        self._library.llama_memory_seq_rm(self._memory, sequence, start, end)

    def read(self, sequence: int) -> Bytes:
        """The state of a sequence. Raises `RunnerError`."""
        size = self._library.llama_state_seq_get_size(self._handle, sequence)
        state = np.empty(size, np.uint8)
        written = self._library.llama_state_seq_get_data(self._handle, state.ctypes.data, size, sequence)
        if not written:
            raise RunnerError("llama.cpp could not export the state of a sequence")
        return state[:written]

    def write(self, sequence: int, state: Bytes) -> None:
        """Replace the state of a sequence. Raises `RunnerError`."""
        if not self._library.llama_state_seq_set_data(self._handle, state.ctypes.data, len(state), sequence):
            raise RunnerError("llama.cpp could not import the state of a sequence")

    def close(self) -> None:
        """Free the memory. May be called again."""
        handle, self._handle = self._handle, None
        if handle:
            self._library.llama_free(handle)


class _Arrays:
    """A `llama_batch` over arrays of ours, allocated once."""

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._sequences = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._one = np.ones(size, np.int32)
        self._pointers = (self._sequences.ctypes.data + 4 * np.arange(size)).astype(np.uintp)
        self.struct = Batch(
            n_tokens=0,
            token=self._tokens.ctypes.data,
            pos=self._positions.ctypes.data,
            n_seq_id=self._one.ctypes.data,
            seq_id=self._pointers.ctypes.data,
            logits=self._wanted.ctypes.data,
        )

    def fill(self, chunks: Sequence[Chunk], sequences: Sequence[int]) -> int:
        """Put `chunks` in; the number of rows that are wanted."""
        tokens: list[int] = []
        positions: list[int] = []
        ids: list[int] = []
        wanted = []
        for chunk, sequence in zip(chunks, sequences, strict=True):
            count = chunk.count
            if count == 1:
                tokens.append(chunk.sequence.tokens[chunk.start])
                positions.append(chunk.start)
                ids.append(sequence)
            else:
                tokens += chunk.tokens
                positions += range(chunk.start, chunk.start + count)
                ids += [sequence] * count
            if chunk.sample:
                wanted.append(len(tokens) - 1)
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._sequences[:count] = ids
        self._wanted[:count] = 0
        self._wanted[wanted] = 1
        self.struct.n_tokens = count
        return len(wanted)
