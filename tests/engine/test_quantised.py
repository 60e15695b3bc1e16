"""Every quantised type that is read, against llama.cpp's own code, on blocks that llama.cpp made."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

import numpy as np
import pytest

from velollm.engine.quantised import QUANTISED, dequantised
from velollm.models.gguf_types import TENSOR_NAMES, TENSOR_TYPES

pytestmark = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the extra llamacpp is not installed")


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: TENSOR_NAMES[kind])
def test_weights_are_those_of_llama_cpp(kind: int) -> None:
    from velollm.engine.llama_cpp import load_library

    library = load_library()
    block, size = TENSOR_TYPES[kind]
    rows, width = 6, 1024
    weights = np.random.default_rng(kind).standard_normal((rows, width)).astype(np.float32)
    weights *= np.geomspace(1e-3, 10, rows)[:, None]
    data = np.zeros(rows * width // block * size, np.uint8)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    quantize = library.ggml_quantize_chunk
    quantize.restype, quantize.argtypes = (
        ctypes.c_size_t,
        [ctypes.c_int, pointer, pointer, count, count, count, pointer],
    )
    assert quantize(kind, weights.ctypes.data, data.ctypes.data, 0, rows, width, None) == data.nbytes
    expected = np.empty(rows * width, np.float32)
    widen = getattr(library, f"dequantize_row_{TENSOR_NAMES[kind].replace('Q', 'q')}")
    widen.restype, widen.argtypes = None, [pointer, pointer, count]
    widen(data.ctypes.data, expected.ctypes.data, rows * width)
    got = dequantised(kind, data)
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-9)
    lost = np.abs(got.reshape(rows, width) - weights).mean(axis=1) / np.abs(weights).mean(axis=1)
    assert lost.max() < 0.4, "and not far from what they were"
