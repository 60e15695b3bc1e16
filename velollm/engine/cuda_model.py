"""A llama-like model on a GPU, its weights as the kernels want them.

Products that have the same input are one: queries, keys and values; gates and ups.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt

from velollm.engine.model_shape import ModelShape, shape_of_config, shape_of_gguf
from velollm.engine.safetensors import is_safetensors, read_config, read_tensors
from velollm.engine.weights import read_weights
from velollm.errors import ConfigError
from velollm.gpu.arrays import Array, rounded, widened
from velollm.gpu.attention import MAX_GROUP
from velollm.gpu.executor import Executor
from velollm.gpu.kernels import HEAD_DIMS
from velollm.gpu.rope import rotations
from velollm.models.gguf import read_gguf

__all__ = ["CudaModel", "Layer", "load_model"]

Floats = npt.NDArray[np.float32]


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
    """The model at `path`, a GGUF file or safetensors, in numbers of type `scalar`, for up to `context` tokens.

    Raises `ConfigError` (`GGUFError` among them) for what the kernels cannot compute: other architectures, tensor
    types that are not read, heads of other widths.
    """
    path = Path(path)
    if is_safetensors(path):
        weights = read_tensors(path)
        shape = shape_of_config(read_config(path), path, context)
    else:
        weights = read_weights(path)
        shape = shape_of_gguf(read_gguf(path), weights, path, context)
    _check(shape, weights, path)

    def put(*names: str) -> Array:
        if missing := [name for name in names if name not in weights]:
            raise ConfigError(f"{path} has no {missing[0]}")
        parts = [weights.stored(name) for name in names]
        if all(kind == scalar for kind, _ in parts):
            values = np.concatenate([part for _, part in parts])
        else:
            values = rounded(np.concatenate([widened(part, kind) for kind, part in parts]), scalar)
        return on.array(values, scalar)

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
        rotations=on.array(rotations(shape.context, shape.rotary, base=shape.rope_base, scaling=shape.scaling)),
    )


def _check(shape: ModelShape, weights: Mapping[str, Floats], path: Path) -> None:
    group = shape.heads // shape.kv_heads
    if shape.head_dim not in HEAD_DIMS or shape.heads % shape.kv_heads or group > MAX_GROUP:
        raise ConfigError(
            f"{path}: {shape.heads} heads of {shape.head_dim} over {shape.kv_heads} are not supported; heads of "
            f"{', '.join(map(str, HEAD_DIMS))} are, up to {MAX_GROUP} over one"
        )
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for name, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
        found = weights.get(f"blk.0.attn_{name}.weight")
        if found is not None and len(found) != rows:
            raise ConfigError(f"{path}: its heads take {rows} rows of attn_{name}, and it has {len(found)}")
    if any("_exps" in name for name in weights):
        raise ConfigError(f"{path}: the CUDA runner knows no mixtures of experts")
