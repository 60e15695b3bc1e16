"""What decides how a llama-like model is computed, as a GGUF header or a config.json says it."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from velollm.errors import ConfigError
from velollm.gpu.rope import RopeScaling, llama3_divisors
from velollm.models.gguf import GGUF

__all__ = ["ModelShape", "shape_of_config", "shape_of_gguf"]

Weights = Mapping[str, npt.NDArray[np.float32]]

# GGUF architectures: whether RoPE turns halves of a head rather than neighbours. In safetensors all turn halves.
GGUF_HALVES = {"llama": False, "qwen2": True, "qwen3": True}
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
GGUF_SCALINGS = ("none", "linear", "yarn", "longrope")


@attrs.frozen(kw_only=True)
class ModelShape:
    """The numbers of a model; `window` is how many tokens a token sees (0: all), `halves` how RoPE pairs numbers."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    context: int
    epsilon: float
    rope_base: float
    scaling: RopeScaling
    halves: bool
    window: int = 0

    def __attrs_post_init__(self) -> None:
        if min(self.layers, self.heads, self.kv_heads, self.head_dim, self.rotary, self.context) < 1:
            raise ValueError("a model has at least one layer, one head and one token of context")


def shape_of_gguf(header: GGUF, weights: Weights, path: str | Path, context: int) -> ModelShape:
    """What the header of the file at `path` says. Raises `ConfigError` for another architecture or scaling."""
    if header.architecture not in GGUF_HALVES:
        raise ConfigError(f"{path}: the CUDA runner knows {', '.join(GGUF_HALVES)}, not {header.architecture!r}")
    kind: Any = header.get("{arch}.rope.scaling.type", str) or "none"
    if "rope_factors_long.weight" in weights:
        kind = "longrope"
    if kind not in GGUF_SCALINGS:
        raise ConfigError(f"{path}: the scaling {kind!r} of RoPE is none of {', '.join(GGUF_SCALINGS)}")
    try:
        return _shape_of_gguf(header, weights, kind, context)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: the header does not say what is needed: {error}") from error


def _shape_of_gguf(header: GGUF, weights: Weights, kind: Any, context: int) -> ModelShape:
    trained = header.context_length or context
    heads = header.get("{arch}.attention.head_count", int)
    head_dim = header.get("{arch}.attention.key_length", int) or header.get("{arch}.embedding_length", int) // heads
    return ModelShape(
        layers=header.get("{arch}.block_count", int),
        heads=heads,
        kv_heads=header.get("{arch}.attention.head_count_kv", int) or heads,
        head_dim=head_dim,
        rotary=header.get("{arch}.rope.dimension_count", int) or head_dim,
        context=min(trained, context),
        epsilon=header.get("{arch}.attention.layer_norm_rms_epsilon", float) or 1e-5,
        rope_base=header.get("{arch}.rope.freq_base", float) or 10_000.0,
        halves=GGUF_HALVES[header.architecture],
        scaling=RopeScaling(
            kind=kind,
            factor=header.get("{arch}.rope.scaling.factor", float) or 1.0,
            original_context=header.get("{arch}.rope.scaling.original_context_length", int) or trained,
            amplitude=header.get("{arch}.rope.scaling.attn_factor", float),
            divisors=weights.get("rope_factors_long.weight", weights.get("rope_freqs.weight")),
            short_divisors=weights.get("rope_factors_short.weight"),
        ),
    )


def shape_of_config(config: Mapping[str, Any], path: str | Path, context: int) -> ModelShape:
    """What config.json says of the model at `path`. Raises `ConfigError` for another type of model or scaling."""
    if config.get("model_type") not in MODEL_TYPES:
        raise ConfigError(f"{path}: the CUDA runner knows {', '.join(MODEL_TYPES)}, not {config.get('model_type')!r}")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{path}: {config['hidden_act']!r} is computed in no runner")
    try:
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        trained = int(config.get("max_position_embeddings") or context)
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        base = float(config.get("rope_theta") or rope.get("rope_theta") or 10_000.0)
        windowed = config.get("use_sliding_window", config["model_type"] == "mistral")
        rotary = int(head_dim * float(config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1))
        return ModelShape(
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            rotary=rotary,
            context=min(trained, context),
            epsilon=float(config.get("rms_norm_eps") or 1e-6),
            rope_base=base,
            halves=True,
            scaling=_scaling_of_config(rope, rotary, base, trained, path),
            window=int(config.get("sliding_window") or 0) if windowed else 0,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: config.json does not say what is needed: {error!r}") from error


def _scaling_of_config(
    rope: Mapping[str, Any], rotary: int, base: float, trained: int, path: str | Path
) -> RopeScaling:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    factor, original = float(rope.get("factor") or 1.0), int(rope.get("original_max_position_embeddings") or trained)
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind == "llama3":
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        divisors = llama3_divisors(rotary, base=base, factor=factor, low=low, high=high, original_context=original)
        return RopeScaling(divisors=divisors)
    attention = rope.get("attention_factor")
    if kind == "yarn":
        fast, slow = float(rope.get("beta_fast") or 32), float(rope.get("beta_slow") or 1)
        # what is said of the amplitude takes the place of YaRN's own
        amplitude = float(attention) / (1 + 0.1 * log(factor)) if attention is not None else None
        return RopeScaling(
            kind="yarn",
            factor=factor,
            original_context=original,
            beta_fast=fast,
            beta_slow=slow,
            amplitude=amplitude,
        )
    if kind == "longrope":
        long, short = rope["long_factor"], rope["short_factor"]
        return RopeScaling(
            kind="longrope",
            factor=factor if "factor" in rope else trained / original,
            original_context=original,
            amplitude=float(attention) if attention is not None else None,
            divisors=long,
            short_divisors=short,
        )
    raise ConfigError(f"{path}: the scaling {kind!r} of RoPE is not known here")
