"""A llama-like model on a GPU: its shape from the header of a GGUF file, its weights as the kernels want them.

Products that have the same input are one: queries, keys and values; gates and ups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from velollm.engine.weights import read_weights
from velollm.errors import ConfigError
from velollm.gpu.arrays import Array, rounded
from velollm.gpu.attention import MAX_GROUP
from velollm.gpu.executor import Executor
from velollm.gpu.kernels import HEAD_DIMS
from velollm.gpu.rope import RopeScaling, rotations
from velollm.models.gguf import GGUF, read_gguf

__all__ = ["CudaModel", "Layer", "ModelShape", "load_model"]

Floats = npt.NDArray[np.float32]

# By the architecture's name: whether RoPE turns halves of a head rather than neighbours.
HALVES = {"llama": False, "qwen2": True, "qwen3": True}
SCALINGS = ("none", "linear", "yarn", "longrope")


@attrs.frozen(kw_only=True)
class ModelShape:
    """The numbers that decide what is computed."""

    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    vocabulary: int
    context: int
    epsilon: float
    rope_base: float

    @property
    def halves(self) -> bool:
        """RoPE turns numbers half a head apart."""
        return HALVES[self.architecture]


@attrs.frozen(kw_only=True)
class Layer:
    """The weights of one layer. bias: [heads + 2 * kv_heads, head_dim] or None; q_norm, k_norm: [head_dim] or None."""

    attention_norm: Array
    qkv: Array
    bias: Array | None
    q_norm: Array | None
    k_norm: Array | None
    output: Array
    feed_forward_norm: Array
    gate_up: Array
    down: Array


@attrs.frozen(kw_only=True)
class CudaModel:
    """All of a model. rotations: [context, rotary / 2, 2] fp32."""

    shape: ModelShape
    embedding: Array
    layers: tuple[Layer, ...]
    output_norm: Array
    output: Array
    rotations: Array


def load_model(path: str | Path, on: Executor, scalar: str, context: int) -> CudaModel:
    """The model in the GGUF file at `path`, in numbers of type `scalar`, for sequences of up to `context` tokens.

    Raises `ConfigError` (`GGUFError` among them) for what the kernels cannot compute: other architectures, tensor
    types that are not read, heads of other widths.
    """
    header = read_gguf(path)
    weights = read_weights(path)
    shape = _shape(header, weights, path, context)

    def put(*names: str) -> Array:
        return on.array(rounded(np.concatenate([weights[name] for name in names]), scalar), scalar)

    def maybe(*names: str) -> Array | None:
        return put(*names) if names[0] in weights else None

    layers = []
    for number in range(shape.layers):
        block = f"blk.{number}."
        bias = maybe(*(f"{block}attn_{name}.bias" for name in "qkv"))
        layer = Layer(
            attention_norm=put(block + "attn_norm.weight"),
            qkv=put(*(f"{block}attn_{name}.weight" for name in "qkv")),
            bias=bias,
            q_norm=maybe(block + "attn_q_norm.weight"),
            k_norm=maybe(block + "attn_k_norm.weight"),
            output=put(block + "attn_output.weight"),
            feed_forward_norm=put(block + "ffn_norm.weight"),
            gate_up=put(block + "ffn_gate.weight", block + "ffn_up.weight"),
            down=put(block + "ffn_down.weight"),
        )
        layers.append(layer)
    embedding = put("token_embd.weight")
    return CudaModel(
        shape=shape,
        embedding=embedding,
        layers=tuple(layers),
        output_norm=put("output_norm.weight"),
        output=maybe("output.weight") or embedding,
        rotations=on.array(
            rotations(shape.context, shape.rotary, base=shape.rope_base, scaling=_scaling(header, weights))
        ),
    )


def _shape(header: GGUF, weights: dict[str, Floats], path: str | Path, context: int) -> ModelShape:
    if header.architecture not in HALVES:
        raise ConfigError(f"{path}: the CUDA runner knows {', '.join(HALVES)}, not {header.architecture!r}")
    vocabulary, width = weights["token_embd.weight"].shape
    heads = header.get("{arch}.attention.head_count", int)
    kv_heads = header.get("{arch}.attention.head_count_kv", int) or heads
    head_dim = header.get("{arch}.attention.key_length", int) or width // heads
    if head_dim not in HEAD_DIMS or heads % kv_heads or heads // kv_heads > MAX_GROUP:
        raise ConfigError(
            f"{path}: {heads} heads of {head_dim} over {kv_heads} are not supported; heads of "
            f"{', '.join(map(str, HEAD_DIMS))} are, up to {MAX_GROUP} over one"
        )
    if any("_exps" in name for name in weights):
        raise ConfigError(f"{path}: the CUDA runner knows no mixtures of experts")
    return ModelShape(
        architecture=header.architecture,
        layers=header.get("{arch}.block_count", int),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary=header.get("{arch}.rope.dimension_count", int) or head_dim,
        vocabulary=vocabulary,
        context=min(header.context_length or context, context),
        epsilon=header.get("{arch}.attention.layer_norm_rms_epsilon", float) or 1e-5,
        rope_base=header.get("{arch}.rope.freq_base", float) or 10_000.0,
    )


def _scaling(header: GGUF, weights: dict[str, Floats]) -> RopeScaling:
    """What the file says of a stretched context. Raises `ConfigError` for a kind that is unknown."""
    kind: Any = header.get("{arch}.rope.scaling.type", str) or "none"
    if "rope_factors_long.weight" in weights:
        kind = "longrope"
    if kind not in SCALINGS:
        raise ConfigError(f"the scaling {kind!r} of RoPE is none of {', '.join(SCALINGS)}")
    divisors = weights.get("rope_factors_long.weight", weights.get("rope_freqs.weight"))
    return RopeScaling(
        kind=kind,
        factor=header.get("{arch}.rope.scaling.factor", float) or 1.0,
        original_context=header.get("{arch}.rope.scaling.original_context_length", int) or header.context_length or 0,
        amplitude=header.get("{arch}.rope.scaling.attn_factor", float),
        divisors=divisors,
        short_divisors=weights.get("rope_factors_short.weight"),
    )
