"""llama.cpp as a runner: a model, and a KV memory in one piece or in streams (see `velollm.engine.llama_memory`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from velollm.engine.blocks import BLOCK_SIZE
from velollm.engine.events import Alias, Discard, Drop, Event, Export, Import
from velollm.engine.llama_context import GRAIN, KV_TYPES, LlamaContext
from velollm.engine.llama_cpp import load_library
from velollm.engine.llama_memory import ElasticMemory, UnifiedMemory
from velollm.engine.runner import RunnerLimits
from velollm.engine.scheduler import Chunk
from velollm.engine.vocabulary import Vocabulary
from velollm.errors import ConfigError
from velollm.models.gguf import read_gguf

__all__ = ["LlamaCppRunner", "LlamaModel"]

logger = logging.getLogger("velollm.engine.llama")

Floats = npt.NDArray[np.float32]

MAX_SLOTS = 256  # LLAMA_MAX_SEQ
LONE_SLOTS = 16  # where every slot costs memory of its own
MOST_STREAMS = 32


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

    `batch` is the largest step in tokens, `threads` what it is computed on. With `streams` sequences lie apart while
    they fit, where that is faster: on a CPU, with models that can share. Raises `ConfigError` when the memory for it
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
        streams: bool = True,
    ) -> None:
        if kv_type not in KV_TYPES:
            raise ConfigError(f"kv_type {kv_type!r} is none of {', '.join(KV_TYPES)}")
        self._own_model = not isinstance(model, LlamaModel)
        self.model = model if isinstance(model, LlamaModel) else LlamaModel(model)
        self._options: dict[str, Any] = {"batch": batch, "threads": threads, "kv_type": kv_type}
        self._cells = -(-num_blocks * BLOCK_SIZE // GRAIN) * GRAIN
        self._slots = min(slots or (MAX_SLOTS if self.model.shares else LONE_SLOTS), MAX_SLOTS)
        on_cpu = not self.model.library.llama_supports_gpu_offload()
        elastic = streams and on_cpu and self.model.shares and self.model.generates
        self._memory = (self._elastic() if elastic else None) or UnifiedMemory(self._context(0), tiles=on_cpu)
        self._kept: dict[int, Any] = {}
        trained = self.model.context or num_blocks * BLOCK_SIZE
        self.limits = RunnerLimits(
            vocabulary=self.model.vocabulary.size,
            context=min(trained, num_blocks * BLOCK_SIZE),
            num_blocks=num_blocks,
            batch=batch,
            slots=self._slots,
            sharing=self.model.shares,
            idle_costs=on_cpu,
        )

    @property
    def streams(self) -> int:
        """How many streams there are now; 0 where all lies in one memory."""
        return self._memory.streams

    def apply(self, events: Sequence[Event]) -> None:
        """Change the owners of cells, and carry states away and back."""
        memory = self._memory
        for event in events:
            match event:
                case Alias(source, target, start, end):
                    memory.alias(source, target, start, end)
                case Drop(slot, start, end):
                    memory.drop(slot, start, end)
                case Export(key, slot, _, _):
                    self._kept[key] = memory.read(slot)
                case Import(key, slot, _):
                    memory.write(slot, self._kept.pop(key))
                case Discard(key):
                    self._kept.pop(key, None)
                case _:
                    pass  # a copy: its cells are owned already

    def execute(self, chunks: Sequence[Chunk]) -> Floats:
        """One step."""
        return self._memory.execute(chunks)

    def check_integrity(self) -> None:
        """Raise `AssertionError` when memory is not what the books say."""
        self._memory.check_integrity()

    def close(self) -> None:
        """Free the context, and the model where it was loaded here. May be called again."""
        self._kept.clear()
        self._memory.close()
        if self._own_model:
            self.model.close()

    def _context(self, streams: int, *, flash: bool = False) -> LlamaContext:
        sequences = streams or self._slots
        cells = self._cells // streams // GRAIN * GRAIN * streams if streams else self._cells
        return LlamaContext(self.model, cells, sequences=sequences, streams=streams > 0, flash=flash, **self._options)

    def _elastic(self) -> ElasticMemory | None:
        """None where llama.cpp will not have it, or its states cannot be taken apart."""
        try:
            memory = ElasticMemory(lambda streams: self._context(streams, flash=True), self._cells, MOST_STREAMS)
        except ConfigError as error:
            logger.debug("one KV memory for all: %s", error.message)
            return None
        if memory.works():
            return memory
        memory.close()
        return None
