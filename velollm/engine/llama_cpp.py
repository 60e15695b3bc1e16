"""The C API of llama.cpp and llguidance, as the shared object of the pinned wheel `xllamacpp` has it.

Layouts of structures change between builds of llama.cpp, and a wrong one shows as a crash much later. So the wheel is
pinned, and the library's own defaults are compared with known ones before anything is done with it.
Source: include/llama.h of b11549, in the wheel's source archive.
"""

from __future__ import annotations

import ctypes as c
import logging
import os
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from velollm.engine.native import find_native
from velollm.errors import ConfigError

__all__ = [
    "Batch",
    "ContextParams",
    "GrammarTokenizer",
    "ModelParams",
    "TokenData",
    "TokenDataArray",
    "find_wheel",
    "load_library",
    "open_library",
]

logger = logging.getLogger("velollm.engine.llama")

# A thread that sleeps at once is woken too late for what takes microseconds; one that turns until its neighbours come
# takes their cores from them where others compute as well. So they turn for a while before they sleep: that is twice
# as fast where cores are free, and costs a tenth where one is taken (benchmarks/waiting.py). Where cores are known to
# be taken, as `velollm tune` and `doctor` see, no turns are better. OpenMP looks once, when the library is loaded.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "200"}
WHEEL = "2026.10.11549"
POINTER, INT, UINT, FLOAT, BOOL, SIZE, TEXT = (
    c.c_void_p,
    c.c_int32,
    c.c_uint32,
    c.c_float,
    c.c_bool,
    c.c_size_t,
    c.c_char_p,
)
ERROR, CONTINUED = 4, 5  # ggml's log levels
GRAMMARS = "llg_"  # llguidance, which llama.cpp by itself does without


class ModelParams(c.Structure):
    """struct llama_model_params"""

    _fields_ = (
        ("devices", POINTER), ("tensor_buft_overrides", POINTER), ("n_gpu_layers", INT), ("split_mode", INT),
        ("load_mode", INT), ("lazy_mode", INT), ("main_gpu", INT), ("tensor_split", POINTER),
        ("progress_callback", POINTER), ("progress_callback_user_data", POINTER), ("kv_overrides", POINTER),
        ("vocab_only", BOOL), ("check_tensors", BOOL), ("use_extra_bufts", BOOL), ("no_host", BOOL), ("no_alloc", BOOL),
        ("load_mtp", BOOL),
    )  # fmt: skip


class ContextParams(c.Structure):
    """struct llama_context_params"""

    _fields_ = (
        ("n_ctx", UINT), ("n_batch", UINT), ("n_ubatch", UINT), ("n_seq_max", UINT), ("n_rs_seq", UINT),
        ("n_outputs_max", UINT), ("n_outputs_max_per_seq", UINT), ("n_threads", INT), ("n_threads_batch", INT),
        ("ctx_type", INT), ("rope_scaling_type", INT), ("pooling_type", INT), ("attention_type", INT),
        ("flash_attn_type", INT), ("rope_freq_base", FLOAT), ("rope_freq_scale", FLOAT), ("yarn_ext_factor", FLOAT),
        ("yarn_attn_factor", FLOAT), ("yarn_beta_fast", FLOAT), ("yarn_beta_slow", FLOAT), ("yarn_orig_ctx", UINT),
        ("defrag_thold", FLOAT), ("cb_eval", POINTER), ("cb_eval_user_data", POINTER), ("type_k", INT), ("type_v", INT),
        ("moe_cache_size", SIZE), ("abort_callback", POINTER), ("abort_callback_data", POINTER), ("embeddings", BOOL),
        ("offload_kqv", BOOL), ("no_perf", BOOL), ("op_offload", BOOL), ("swa_full", BOOL), ("kv_unified", BOOL),
        ("samplers", POINTER), ("n_samplers", SIZE), ("ctx_other", POINTER),
    )  # fmt: skip


class Batch(c.Structure):
    """struct llama_batch"""

    _fields_ = (
        ("n_tokens", INT), ("token", POINTER), ("embd", POINTER), ("pos", POINTER), ("n_seq_id", POINTER),
        ("seq_id", POINTER), ("logits", POINTER),
    )  # fmt: skip


class TokenData(c.Structure):
    """struct llama_token_data"""

    _fields_ = (("id", INT), ("logit", FLOAT), ("p", FLOAT))


class TokenDataArray(c.Structure):
    """struct llama_token_data_array"""

    _fields_ = (("data", POINTER), ("size", SIZE), ("selected", c.c_int64), ("sorted", BOOL))


class GrammarTokenizer(c.Structure):
    """struct LlgTokenizerInit (llguidance.h)"""

    _fields_ = (
        ("vocab_size", UINT), ("tok_eos", UINT), ("token_lens", POINTER), ("token_bytes", TEXT),
        ("tokenizer_json", TEXT), ("tokenize_assumes_string", BOOL), ("tokenize_fn", POINTER),
        ("use_approximate_greedy_tokenize_fn", BOOL), ("tokenize_user_data", POINTER), ("slices", POINTER),
    )  # fmt: skip


FUNCTIONS: dict[str, tuple[Any, ...]] = {  # name: result, arguments
    "llama_backend_init": (None,),
    "llama_supports_gpu_offload": (BOOL,),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (POINTER, TEXT, ModelParams),
    "llama_model_free": (None, POINTER),
    "llama_init_from_model": (POINTER, POINTER, ContextParams),
    "llama_free": (None, POINTER),
    "llama_model_get_vocab": (POINTER, POINTER),
    "llama_model_n_ctx_train": (INT, POINTER),
    "llama_model_n_embd_out": (INT, POINTER),
    "llama_model_n_swa": (INT, POINTER),
    "llama_model_is_recurrent": (BOOL, POINTER),
    "llama_model_is_hybrid": (BOOL, POINTER),
    "llama_model_has_encoder": (BOOL, POINTER),
    "llama_model_has_decoder": (BOOL, POINTER),
    "llama_vocab_n_tokens": (INT, POINTER),
    "llama_vocab_bos": (INT, POINTER),
    "llama_vocab_eos": (INT, POINTER),
    "llama_vocab_eot": (INT, POINTER),
    "llama_vocab_get_add_bos": (BOOL, POINTER),
    "llama_vocab_is_eog": (BOOL, POINTER, INT),
    "llama_vocab_fim_pre": (INT, POINTER),
    "llama_vocab_fim_suf": (INT, POINTER),
    "llama_vocab_fim_mid": (INT, POINTER),
    "llama_tokenize": (INT, POINTER, TEXT, INT, POINTER, INT, BOOL, BOOL),
    "llama_token_to_piece": (INT, POINTER, INT, TEXT, INT, INT, BOOL),
    "llama_detokenize": (INT, POINTER, POINTER, INT, TEXT, INT, BOOL, BOOL),
    "llama_n_ctx": (UINT, POINTER),
    "llama_get_memory": (POINTER, POINTER),
    "llama_memory_clear": (None, POINTER, BOOL),
    "llama_memory_seq_rm": (BOOL, POINTER, INT, INT, INT),
    "llama_memory_seq_cp": (None, POINTER, INT, INT, INT, INT),
    "llama_memory_seq_keep": (None, POINTER, INT),
    "llama_memory_seq_add": (None, POINTER, INT, INT, INT, INT),
    "llama_memory_seq_div": (None, POINTER, INT, INT, INT, INT),
    "llama_memory_seq_pos_min": (INT, POINTER, INT),
    "llama_memory_seq_pos_max": (INT, POINTER, INT),
    "llama_memory_can_shift": (BOOL, POINTER),
    "llama_decode": (INT, POINTER, Batch),
    "llama_encode": (INT, POINTER, Batch),
    "llama_get_logits": (POINTER, POINTER),
    "llama_get_embeddings_seq": (POINTER, POINTER, INT),
    "llama_state_seq_get_size": (SIZE, POINTER, INT),
    "llama_state_seq_get_data": (SIZE, POINTER, POINTER, SIZE, INT),
    "llama_state_seq_set_data": (SIZE, POINTER, POINTER, SIZE, INT),
    "llama_log_set": (None, POINTER, POINTER),
    "llama_sampler_init_grammar": (POINTER, POINTER, TEXT, TEXT),
    "llama_sampler_apply": (None, POINTER, POINTER),
    "llama_sampler_accept": (None, POINTER, INT),
    "llama_sampler_clone": (POINTER, POINTER),
    "llama_sampler_free": (None, POINTER),
    "llg_new_tokenizer": (POINTER, c.POINTER(GrammarTokenizer), TEXT, SIZE),
    "llg_free_tokenizer": (None, POINTER),
    "llg_constraint_init_set_defaults": (None, POINTER, POINTER),
    "llg_new_matcher": (POINTER, POINTER, TEXT, TEXT),
    "llg_clone_matcher": (POINTER, POINTER),
    "llg_free_matcher": (None, POINTER),
    "llg_matcher_get_error": (TEXT, POINTER),
    "llg_matcher_compute_mask": (INT, POINTER),
    "llg_matcher_get_mask": (POINTER, POINTER),
    "llg_matcher_consume_token": (INT, POINTER, UINT),
    "llg_matcher_is_stopped": (BOOL, POINTER),
}

# What this build's defaults are, one field from each part of the structures.
MODEL_DEFAULTS: dict[str, Any] = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "use_extra_bufts": True,
}
CONTEXT_DEFAULTS: dict[str, Any] = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "pooling_type": -1,
    "flash_attn_type": -1, "yarn_ext_factor": -1.0, "yarn_beta_slow": -1.0, "defrag_thold": -1.0, "type_k": 1,
    "type_v": 1, "moe_cache_size": 0, "embeddings": False, "offload_kqv": True, "no_perf": True, "op_offload": True,
    "swa_full": True, "kv_unified": False, "n_samplers": 0,
}  # fmt: skip


@cache
def load_library(path: str | None = None) -> Any:
    """The library with its functions declared: the one built for this CPU, else the wheel's; or the one at `path`.

    Raises `ConfigError` when it is missing, or not the build that this code was written for.
    """
    if path is not None:
        return open_library(path)
    wheel = find_wheel()
    native = find_native(WHEEL, Path(wheel))
    if native is not None:
        try:
            return open_library(str(native))
        except ConfigError as error:
            logger.warning("the native build is left aside: %s", error.message)
    return open_library(wheel)


def open_library(where: str) -> Any:
    """The library at `where`. Raises `ConfigError`."""
    for variable, way in WAITING.items():
        os.environ.setdefault(variable, way)
    try:
        library = c.CDLL(where)
        for name, (result, *arguments) in FUNCTIONS.items():
            if name.startswith(GRAMMARS) and not hasattr(library, name):  # a build of llama.cpp alone
                setattr(library, name, getattr(c.CDLL(find_wheel()), name))
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise _wrong_build(where, str(error)) from error
    checks: tuple[tuple[Any, dict[str, Any]], ...] = (
        (library.llama_model_default_params(), MODEL_DEFAULTS),
        (library.llama_context_default_params(), CONTEXT_DEFAULTS),
    )
    for given, known in checks:
        for name, value in known.items():
            found = getattr(given, name)
            if found != value:
                raise _wrong_build(where, f"the default of {name} is {found!r} there, not {value!r}")
    library.llama_log_set(LOG, None)
    library.llama_backend_init()
    return library


def find_wheel() -> str:
    """The wheel's shared object. Raises `ConfigError` where there is none, or another version."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ConfigError('a GGUF file needs llama.cpp to run: pip install "velollm[llamacpp]"')
    found_version = version("xllamacpp")
    if found_version != WHEEL:  # said before anything is called with structures that may not be its own
        raise _wrong_build(spec.origin, f"it is version {found_version}")
    found = sorted(Path(spec.origin).parent.glob("xllamacpp*.abi3.so")) or sorted(
        Path(spec.origin).parent.glob("xllamacpp*.pyd")
    )
    if not found:
        raise _wrong_build(spec.origin, "the package has no shared library of that name")
    return str(found[0])


def _wrong_build(where: str, why: str) -> ConfigError:
    return ConfigError(f"{where} is not the llama.cpp that this engine is made for (xllamacpp {WHEEL}): {why}")


def _log(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's own log: its errors are shown, the rest for whoever looks closely."""
    words = text.decode("utf-8", "replace").strip()
    if words and level != CONTINUED:
        logger.log(logging.ERROR if level == ERROR else logging.DEBUG, "%s", words)


LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(_log)  # kept here for as long as the library may call it
