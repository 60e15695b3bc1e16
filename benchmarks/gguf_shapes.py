"""Files with the header of a well-known model and no weights: real sizes, a few kilobytes on disk.

llama.cpp maps such a file and reports what it allocates for it without reading a weight, so that the arithmetic of
`velollm.hardware.gguf` can be compared with it for models of any size on a machine of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from velollm.models.gguf_writer import Tensor, pack_head

__all__ = ["SHAPES", "write_shape"]

F32, F16, Q8_0, Q4_K, Q6_K, MXFP4 = 0, 1, 8, 12, 14, 39

Shape: TypeAlias = tuple[dict[str, Any], list[Tensor]]


def write_shape(path: Path, name: str) -> Path:
    """Write the shape called `name`; the file has the size of the real one, and holes where its weights would be."""
    metadata, tensors = SHAPES[name]()
    vocabulary = metadata.pop("vocabulary")
    metadata |= {
        "general.name": name,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"t{number}" for number in range(vocabulary)],
        "tokenizer.ggml.token_type": [1] * vocabulary,
        "tokenizer.ggml.merges": ["t 0"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    head, _, size = pack_head(metadata, tensors)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


# ---- the shapes ------------------------------------------------------------------------------------------------------


def _head(arch: str, **facts: Any) -> dict[str, Any]:
    vocabulary = facts.pop("vocabulary")
    given = {f"{arch}.{key.replace('__', '.')}": value for key, value in facts.items()}
    return {
        "general.architecture": arch,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        **given,
        "vocabulary": vocabulary,
    }


def _ends(width: int, vocabulary: int, kind: int, *, tied: bool = False) -> list[Tensor]:
    ends: list[Tensor] = [("token_embd.weight", (width, vocabulary), kind), ("output_norm.weight", (width,), F32)]
    return ends if tied else [*ends, ("output.weight", (width, vocabulary), Q6_K if width % 256 == 0 else Q8_0)]


def _attention(block: str, width: int, q: int, kv: int, kind: int, *, norm: int = 0) -> Iterator[Tensor]:
    yield f"{block}.attn_norm.weight", (width,), F32
    for name, columns in (("q", q), ("k", kv), ("v", kv)):
        yield f"{block}.attn_{name}.weight", (width, columns), kind
    yield f"{block}.attn_output.weight", (q, width), kind
    if norm:
        yield f"{block}.attn_q_norm.weight", (norm,), F32
        yield f"{block}.attn_k_norm.weight", (norm,), F32


def _dense(block: str, width: int, feed: int, kind: int) -> Iterator[Tensor]:
    yield f"{block}.ffn_norm.weight", (width,), F32
    for name in ("gate", "up"):
        yield f"{block}.ffn_{name}.weight", (width, feed), kind
    yield f"{block}.ffn_down.weight", (feed, width), kind


def _experts(block: str, width: int, feed: int, count: int, kind: int) -> Iterator[Tensor]:
    yield f"{block}.ffn_gate_inp.weight", (width, count), F32
    for name in ("gate", "up"):
        yield f"{block}.ffn_{name}_exps.weight", (width, feed, count), kind
    yield f"{block}.ffn_down_exps.weight", (feed, width, count), kind


def _llama(layers: int, width: int, heads: int, kv: int, feed: int, vocabulary: int, kind: int = Q4_K) -> Shape:
    head = width // heads
    metadata = _head(
        "llama", vocabulary=vocabulary, context_length=131072, embedding_length=width, block_count=layers,
        feed_forward_length=feed, attention__head_count=heads, attention__head_count_kv=kv, rope__dimension_count=head,
    )  # fmt: skip
    tensors = _ends(width, vocabulary, kind)
    for layer in range(layers):
        tensors += _attention(f"blk.{layer}", width, width, head * kv, kind)
        tensors += _dense(f"blk.{layer}", width, feed, kind)
    return metadata, tensors


def _qwen3_8b() -> Shape:
    metadata = _head(
        "qwen3", vocabulary=151936, context_length=40960, embedding_length=4096, block_count=36,
        feed_forward_length=12288, attention__head_count=32, attention__head_count_kv=8,
        attention__key_length=128, attention__value_length=128,
    )  # fmt: skip
    tensors = _ends(4096, 151936, Q4_K)
    for layer in range(36):
        tensors += _attention(f"blk.{layer}", 4096, 4096, 1024, Q4_K, norm=128)
        tensors += _dense(f"blk.{layer}", 4096, 12288, Q4_K)
    return metadata, tensors


def _qwen3_30b_a3b() -> Shape:
    metadata = _head(
        "qwen3moe", vocabulary=151936, context_length=40960, embedding_length=2048, block_count=48,
        feed_forward_length=6144, attention__head_count=32, attention__head_count_kv=4, expert_count=128,
        expert_used_count=8, expert_feed_forward_length=768, attention__key_length=128, attention__value_length=128,
    )  # fmt: skip
    tensors = _ends(2048, 151936, Q4_K)
    for layer in range(48):
        block = f"blk.{layer}"
        tensors += _attention(block, 2048, 4096, 512, Q4_K, norm=128)
        tensors += [(f"{block}.ffn_norm.weight", (2048,), F32), *_experts(block, 2048, 768, 128, Q4_K)]
    return metadata, tensors


def _gemma3_12b() -> Shape:
    metadata = _head(
        "gemma3", vocabulary=262208, context_length=131072, embedding_length=3840, block_count=48,
        feed_forward_length=15360, attention__head_count=16, attention__head_count_kv=8,
        attention__key_length=256, attention__value_length=256, attention__sliding_window=1024,
    )  # fmt: skip
    tensors = _ends(3840, 262208, Q6_K, tied=True)
    for layer in range(48):
        block = f"blk.{layer}"
        tensors += _attention(block, 3840, 4096, 2048, Q4_K, norm=256)
        tensors += _dense(block, 3840, 15360, Q4_K)
        tensors += [(f"{block}.post_{name}_norm.weight", (3840,), F32) for name in ("attention", "ffw")]
    return metadata, tensors


def _gpt_oss_20b() -> Shape:
    width, count = 2880, 32
    metadata = _head(
        "gpt-oss", vocabulary=201088, context_length=131072, embedding_length=width, block_count=24,
        feed_forward_length=2880, expert_feed_forward_length=2880, attention__head_count=64,
        attention__head_count_kv=8, attention__key_length=64, attention__value_length=64, expert_count=count,
        expert_used_count=4, attention__sliding_window=128,
    )  # fmt: skip
    tensors = _ends(width, 201088, Q8_0)
    for layer in range(24):
        block = f"blk.{layer}"
        tensors += _attention(block, width, 4096, 512, Q8_0)
        tensors += [(f"{block}.attn_{name}.bias", (size,), F32) for name, size in (("q", 4096), ("k", 512), ("v", 512))]
        tensors += [
            (f"{block}.attn_output.bias", (width,), F32),
            (f"{block}.attn_sinks.weight", (64,), F32),
            (f"{block}.post_attention_norm.weight", (width,), F32),
            *_experts(block, width, 2880, count, MXFP4),
            (f"{block}.ffn_gate_inp.bias", (count,), F32),
        ]
        tensors += [(f"{block}.ffn_{name}_exps.bias", (2880, count), F32) for name in ("gate", "up", "down")]
    return metadata, tensors


def _deepseek_v2_lite() -> Shape:
    width, heads, lora, rope, vocabulary = 2048, 16, 512, 64, 102400
    metadata = _head(
        "deepseek2", vocabulary=vocabulary, context_length=163840, embedding_length=width, block_count=27,
        feed_forward_length=10944, attention__head_count=heads, attention__head_count_kv=1,
        attention__key_length=lora + rope, attention__value_length=lora, attention__key_length_mla=192,
        attention__value_length_mla=128, attention__kv_lora_rank=lora, rope__dimension_count=rope,
        leading_dense_block_count=1, expert_feed_forward_length=1408, expert_count=64, expert_used_count=6,
        expert_shared_count=2, expert_weights_scale=1.0, expert_weights_norm=False, expert_gating_func=1,
        vocab_size=vocabulary,
    )  # fmt: skip
    tensors = _ends(width, vocabulary, Q4_K)
    for layer in range(27):
        block = f"blk.{layer}"
        tensors += [
            (f"{block}.attn_norm.weight", (width,), F32),
            (f"{block}.attn_q.weight", (width, heads * 192), Q4_K),
            (f"{block}.attn_kv_a_mqa.weight", (width, lora + rope), Q4_K),
            (f"{block}.attn_kv_a_norm.weight", (lora,), F32),
            (f"{block}.attn_k_b.weight", (128, lora, heads), Q8_0),
            (f"{block}.attn_v_b.weight", (lora, 128, heads), Q8_0),
            (f"{block}.attn_output.weight", (heads * 128, width), Q4_K),
        ]
        if layer == 0:
            tensors += _dense(block, width, 10944, Q8_0)
            continue
        tensors += [(f"{block}.ffn_norm.weight", (width,), F32), *_experts(block, width, 1408, 64, Q8_0)]
        tensors += [
            (f"{block}.ffn_gate_shexp.weight", (width, 2816), Q4_K),
            (f"{block}.ffn_up_shexp.weight", (width, 2816), Q4_K),
            (f"{block}.ffn_down_shexp.weight", (2816, width), Q4_K),
        ]
    return metadata, tensors


def _mamba_2_8b() -> Shape:
    width, inner, state, conv, rank = 2560, 5120, 16, 4, 160
    metadata = _head(
        "mamba", vocabulary=50280, context_length=1048576, embedding_length=width, block_count=64,
        feed_forward_length=0, attention__head_count=0, ssm__conv_kernel=conv, ssm__inner_size=inner,
        ssm__state_size=state, ssm__time_step_rank=rank,
    )  # fmt: skip
    tensors = _ends(width, 50280, Q8_0)
    for layer in range(64):
        block = f"blk.{layer}"
        tensors += [
            (f"{block}.attn_norm.weight", (width,), F32),
            (f"{block}.ssm_in.weight", (width, 2 * inner), Q8_0),
            (f"{block}.ssm_conv1d.weight", (conv, inner), F32),
            (f"{block}.ssm_conv1d.bias", (inner,), F32),
            (f"{block}.ssm_x.weight", (inner, rank + 2 * state), Q8_0),
            (f"{block}.ssm_dt.weight", (rank, inner), Q8_0),
            (f"{block}.ssm_dt.bias", (inner,), F32),
            (f"{block}.ssm_a", (state, inner), F32),
            (f"{block}.ssm_d", (inner,), F32),
            (f"{block}.ssm_out.weight", (inner, width), Q8_0),
        ]
    return metadata, tensors


def _lfm2_1_2b() -> Shape:
    width, feed, vocabulary = 2048, 8192, 65536
    attends = {2, 5, 8, 10, 12, 14}
    metadata = _head(
        "lfm2", vocabulary=vocabulary, context_length=128000, embedding_length=width, block_count=16,
        feed_forward_length=feed, attention__head_count=32,
        attention__head_count_kv=[8 if layer in attends else 0 for layer in range(16)],
        shortconv__l_cache=3, vocab_size=vocabulary,
    )  # fmt: skip
    tensors: list[Tensor] = [
        ("token_embd.weight", (width, vocabulary), Q8_0),
        ("token_embd_norm.weight", (width,), F32),
    ]
    for layer in range(16):
        block = f"blk.{layer}"
        tensors += _dense(block, width, feed, Q8_0)
        if layer in attends:
            tensors += _attention(block, width, width, 512, Q8_0, norm=64)
        else:
            tensors += [
                (f"{block}.attn_norm.weight", (width,), F32),
                (f"{block}.shortconv.conv.weight", (3, width), F32),
                (f"{block}.shortconv.in_proj.weight", (width, 3 * width), Q8_0),
                (f"{block}.shortconv.out_proj.weight", (width, width), Q8_0),
            ]
    return metadata, tensors


def _qwen3_next_80b() -> Shape:
    width, vocabulary, experts, feed = 2048, 151936, 512, 512
    metadata = _head(
        "qwen3next", vocabulary=vocabulary, context_length=262144, embedding_length=width, block_count=48,
        feed_forward_length=5120, attention__head_count=16, attention__head_count_kv=2, attention__key_length=256,
        attention__value_length=256, rope__dimension_count=64, expert_count=experts, expert_used_count=10,
        expert_feed_forward_length=feed, expert_shared_feed_forward_length=feed, ssm__conv_kernel=4,
        ssm__state_size=128, ssm__group_count=16, ssm__time_step_rank=32, ssm__inner_size=4096,
        full_attention_interval=4,
    )  # fmt: skip
    tensors = _ends(width, vocabulary, Q4_K)
    for layer in range(48):
        block = f"blk.{layer}"
        if (layer + 1) % 4 == 0:
            tensors += [
                (f"{block}.attn_q.weight", (width, 2 * 4096), Q4_K),
                (f"{block}.attn_k.weight", (width, 512), Q4_K),
                (f"{block}.attn_v.weight", (width, 512), Q4_K),
                (f"{block}.attn_output.weight", (4096, width), Q4_K),
                (f"{block}.attn_q_norm.weight", (256,), F32),
                (f"{block}.attn_k_norm.weight", (256,), F32),
            ]
        else:
            tensors += [
                (f"{block}.attn_qkv.weight", (width, 8192), Q4_K),
                (f"{block}.attn_gate.weight", (width, 4096), Q4_K),
                (f"{block}.ssm_conv1d.weight", (4, 8192), F32),
                (f"{block}.ssm_dt.bias", (32,), F32),
                (f"{block}.ssm_a", (32,), F32),
                (f"{block}.ssm_ba.weight", (width, 64), Q4_K),
                (f"{block}.ssm_norm.weight", (128,), F32),
                (f"{block}.ssm_out.weight", (4096, width), Q4_K),
            ]
        tensors += [
            (f"{block}.attn_norm.weight", (width,), F32),
            (f"{block}.post_attention_norm.weight", (width,), F32),
            *_experts(block, width, feed, experts, Q4_K),
            (f"{block}.ffn_gate_inp_shexp.weight", (width,), F32),
            (f"{block}.ffn_gate_shexp.weight", (width, feed), Q4_K),
            (f"{block}.ffn_up_shexp.weight", (width, feed), Q4_K),
            (f"{block}.ffn_down_shexp.weight", (feed, width), Q4_K),
        ]
    return metadata, tensors


SHAPES: Mapping[str, Callable[[], Shape]] = {
    "llama-3.2-1b": lambda: _llama(16, 2048, 32, 8, 8192, 128256),
    "llama-3.1-8b": lambda: _llama(32, 4096, 32, 8, 14336, 128256),
    "llama-3.3-70b": lambda: _llama(80, 8192, 64, 8, 28672, 128256),
    "llama-2-7b": lambda: _llama(32, 4096, 32, 32, 11008, 32000),
    "qwen3-8b": _qwen3_8b,
    "qwen3-30b-a3b": _qwen3_30b_a3b,
    "gemma3-12b": _gemma3_12b,
    "gpt-oss-20b": _gpt_oss_20b,
    "deepseek-v2-lite": _deepseek_v2_lite,
    "mamba-2.8b": _mamba_2_8b,
    "lfm2-1.2b": _lfm2_1_2b,
    "qwen3-next-80b-a3b": _qwen3_next_80b,
}
