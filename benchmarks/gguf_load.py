"""Loads a model with llama.cpp's own C API, as `gguf_memory.py` asks, and ends: its log says what was allocated.

The layouts are those of the pinned wheel's llama.h; the defaults are checked before anything is loaded.
"""

from __future__ import annotations

import ctypes as c
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

KINDS = {"f32": 0, "f16": 1, "q8_0": 8}


def _fields(names: str, kind: type[object]) -> list[tuple[str, type[object]]]:
    return [(name, kind) for name in names.split()]


class ModelParams(c.Structure):
    _fields_ = [
        *_fields("devices overrides", c.c_void_p),
        *_fields("gpu_layers split_mode load_mode lazy_mode main_gpu", c.c_int32),
        *_fields("tensor_split callback callback_data kv_overrides", c.c_void_p),
        *_fields("vocab_only check_tensors extra_bufts no_host no_alloc load_mtp", c.c_bool),
    ]


class ContextParams(c.Structure):
    _fields_ = [
        *_fields("n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq", c.c_uint32),
        *_fields("threads threads_batch type rope_scaling pooling attention flash_attn", c.c_int32),
        *_fields("freq_base freq_scale ext_factor attn_factor beta_fast beta_slow", c.c_float),
        ("orig_ctx", c.c_uint32),
        ("defrag", c.c_float),
        *_fields("eval_callback eval_data", c.c_void_p),
        *_fields("type_k type_v", c.c_int32),
        ("moe_cache", c.c_size_t),
        *_fields("abort_callback abort_data", c.c_void_p),
        *_fields("embeddings offload_kqv no_perf op_offload swa_full kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("other", c.c_void_p),
    ]


def main() -> None:
    path, case = sys.argv[1], json.loads(sys.argv[2])
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    library = c.CDLL(str(Path(spec.origin).with_name("xllamacpp.abi3.so")))
    library.llama_model_default_params.restype = ModelParams
    library.llama_context_default_params.restype = ContextParams
    library.llama_model_load_from_file.argtypes = [c.c_char_p, ModelParams]
    library.llama_model_load_from_file.restype = c.c_void_p
    library.llama_init_from_model.argtypes = [c.c_void_p, ContextParams]
    library.llama_init_from_model.restype = c.c_void_p
    library.llama_backend_init()
    model, context = library.llama_model_default_params(), library.llama_context_default_params()
    if (context.n_ctx, context.n_batch, context.n_ubatch, context.type_k) != (512, 2048, 512, 1):
        sys.exit("this library lays its parameters out in another way")
    model.extra_bufts = False  # repacking would read the weights
    loaded = library.llama_model_load_from_file(path.encode(), model)
    slots, unified = case["slots"], case.get("unified", False)
    context.n_ctx = case["context"] * (1 if unified else slots)
    context.n_seq_max, context.kv_unified, context.swa_full = slots, unified, False
    context.n_ubatch = case.get("ubatch", 512)
    context.type_k = context.type_v = KINDS[case.get("kv_type", "f16")]
    context.flash_attn = int(case.get("flash_attention", True))
    ready = loaded and library.llama_init_from_model(loaded, context)
    sys.stderr.flush()
    os._exit(0 if ready else 1)


if __name__ == "__main__":
    main()
