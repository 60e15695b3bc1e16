"""Vectors of texts, from a second context over the same weights. Needs NumPy."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from velollm.engine.llama_cpp import Batch
from velollm.engine.llama_runner import LlamaModel
from velollm.errors import BackendError, ContextLengthExceeded

__all__ = ["Embedder"]

MEAN = 1  # LLAMA_POOLING_TYPE_MEAN, for models that were not made for it
LONGEST = 2048


class Embedder:
    """Embeds with `model` on `threads` threads: by the pooling it was trained for, else the mean over the tokens.

    Used by one thread.
    """

    def __init__(self, model: LlamaModel, *, threads: int) -> None:
        self._library = library = model.library
        self._encodes = library.llama_model_has_encoder(model.handle) and not library.llama_model_has_decoder(
            model.handle
        )
        self.longest = min(model.context or LONGEST, LONGEST)
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.longest
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        if not model.header.get("{arch}.pooling_type", int):
            params.pooling_type = MEAN
        self._context = library.llama_init_from_model(model.handle, params)
        if not self._context:
            raise BackendError("there is no memory left to embed with", status=503)
        self._memory = library.llama_get_memory(self._context)
        self._width: int = library.llama_model_n_embd_out(model.handle)

    def embed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The vector [width] of one input, of length 1. Raises `ContextLengthExceeded`."""
        count = len(tokens)
        if count > self.longest:
            raise ContextLengthExceeded(f"an input has {count} tokens; {self.longest} can be embedded", param="input")
        ids = np.asarray(tokens, np.int32)
        places = np.arange(count, dtype=np.int32)
        ones, zero = np.ones(count, np.int32), np.zeros(1, np.int32)
        slots = np.full(count, zero.ctypes.data, np.uintp)
        wanted = np.ones(count, np.int8)
        batch = Batch(
            count, ids.ctypes.data, None, places.ctypes.data, ones.ctypes.data, slots.ctypes.data, wanted.ctypes.data
        )
        if self._memory:
            self._library.llama_memory_clear(self._memory, False)
        compute = self._library.llama_encode if self._encodes else self._library.llama_decode
        code = compute(self._context, batch)
        found = self._library.llama_get_embeddings_seq(self._context, 0) if code == 0 else None
        if not found:
            raise BackendError(f"the engine could not embed: llama.cpp answered {code}")
        vector = np.frombuffer(memoryview((c.c_float * self._width).from_address(found)), np.float32).copy()
        length = float(np.linalg.norm(vector))
        return vector / np.float32(length) if length else vector

    def close(self) -> None:
        """Free its memory. May be called again."""
        context, self._context = self._context, None
        if context:
            self._library.llama_free(context)
