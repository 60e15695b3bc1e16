"""all-MiniLM-L6-v2 on onnxruntime: one thread, no padding, a millisecond or two for a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]
from tokenizers import Tokenizer

from velollm.cache.embedder import MODEL_FILE, TOKENIZER_FILE

__all__ = ["MiniLM"]

MOST_TOKENS = 128


class MiniLM:
    """Call it with a text; it answers 384 numbers of length 1. Safe to call from any thread."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.no_padding()  # the file asks for 128 tokens always
        self._tokenizer.enable_truncation(MOST_TOKENS)
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, text: str) -> list[float]:
        ids = np.array(self._tokenizer.encode(text).ids, "int64")
        vector = self._session.run(None, {"ids": ids})[0]
        unit: list[float] = (vector / max(float(np.linalg.norm(vector)), 1e-12)).tolist()
        return unit
