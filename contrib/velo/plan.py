"""How the engine is set up for a model on this machine, or on a GPU of it. Deciding only; `this_machine` measures."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from velollm.contrib.llamacpp.plan import USUAL_CONTEXT, Machine
from velollm.engine.blocks import BLOCK_SIZE
from velollm.errors import ConfigError
from velollm.hardware.gguf import KV_BYTES, kv_bytes_per_token
from velollm.models.gguf import GGUF

__all__ = ["GPU_TYPES", "EnginePlan", "KVLayout", "make_plan"]

KVLayout: TypeAlias = Literal["auto", "unified"]

GRAIN = 256  # llama.cpp rounds contexts up to this
POOL = 4  # so many full contexts, where memory allows
MIB = 1024 * 1024
GPU_TYPES = {"f16": "fp16", "bf16": "bf16", "f32": "fp32"}  # by the names that kernels are called by
GPU_RUNNING, GPU_BATCH = 64, 512


@attrs.frozen(kw_only=True)
class EnginePlan:
    """`context` is the longest conversation, `batch` the largest step, in tokens; on the host may lie `swap_tokens` of
    conversations that wait, and `host_tokens` of what is cached. With `streams` each conversation's may lie apart. On
    the GPU number `device` there are as many blocks as fit where `num_blocks` is 0; with None, llama.cpp computes.
    """

    context: int
    num_blocks: int
    max_running: int
    batch: int
    threads: int
    kv_type: str
    swap_tokens: int
    host_tokens: int
    device: int | None = None
    streams: bool = False

    def __str__(self) -> str:
        pool = f"{self.num_blocks * BLOCK_SIZE} tokens" if self.num_blocks else "as many tokens as fit"
        where = f"{self.threads} threads" if self.device is None else f"GPU {self.device}"
        return (
            f"conversations of up to {self.context} tokens, {pool} for all of them together, {self.max_running} at "
            f"once, {where}"
        )


def make_plan(
    model: GGUF,
    machine: Machine,
    *,
    ctx: int | None = None,
    parallel: int | None = None,
    threads: int | None = None,
    kv_type: str = "f16",
    num_blocks: int | None = None,
    batch: int | None = None,
    kv_layout: KVLayout = "auto",
    device: int | None = None,
) -> EnginePlan:
    """What was asked for; for the rest, a quarter of the free memory for the pool, and an eighth each for what is
    swapped and what is cached. The cache may be parted where there is room to carry all of it to the host meanwhile.
    With a `device`, weights and pool lie on that GPU, whose memory whoever opens it sees.

    Raises `ConfigError` for values that make no sense, and when model and pool do not fit into memory.
    """
    if kv_type not in KV_BYTES:
        raise ConfigError(f"kv_type {kv_type!r} is none of {', '.join(KV_BYTES)}")
    if kv_layout not in ("auto", "unified"):
        raise ConfigError(f"kv_layout {kv_layout!r} is none of auto, unified")
    asked = {"ctx": ctx, "parallel": parallel, "threads": threads, "num_blocks": num_blocks, "batch": batch}
    for name, value in asked.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    trained = model.context_length or USUAL_CONTEXT
    each = max(kv_bytes_per_token(model, kv_type), 1.0)
    host_tokens = int(machine.memory / 8 / each)
    if device is not None:
        if kv_type not in GPU_TYPES:
            raise ConfigError(f"kv_type {kv_type!r} is not computed on a GPU: {', '.join(GPU_TYPES)} are")
        return EnginePlan(
            context=min(ctx or USUAL_CONTEXT, trained, (num_blocks or trained) * BLOCK_SIZE),
            num_blocks=num_blocks or 0,
            max_running=parallel or GPU_RUNNING,
            batch=batch or GPU_BATCH,
            threads=threads or machine.cores,
            kv_type=kv_type,
            swap_tokens=host_tokens,
            host_tokens=host_tokens,
            device=device,
        )
    context, pool = _pool(min(machine.memory / 4, machine.memory - model.size) / each, trained, ctx, num_blocks)
    needed = model.size + int(pool * each)
    if needed > machine.memory:
        raise ConfigError(
            f"{model.name or 'the model'} needs {needed // MIB} MiB ({model.size // MIB} for its weights, the rest for "
            f"{pool} tokens of context), and {machine.memory // MIB} MiB are free: a smaller --ctx or --kv-type may do"
        )
    carried = needed + int((pool + host_tokens) * each)
    return EnginePlan(
        context=min(context, pool),
        num_blocks=-(-pool // BLOCK_SIZE),
        max_running=parallel or 32,
        batch=batch or 256,
        threads=threads or machine.cores,
        kv_type=kv_type,
        swap_tokens=host_tokens,
        host_tokens=host_tokens,
        streams=kv_layout == "auto" and carried <= machine.memory,
    )


def _pool(room: float, trained: int, ctx: int | None, num_blocks: int | None) -> tuple[int, int]:
    """Tokens of the longest conversation, and of all together, where there is `room` for so many."""
    affordable = int(max(room, 0)) // GRAIN * GRAIN
    context = min(ctx or max(min(trained, USUAL_CONTEXT, affordable), GRAIN), trained)
    return context, num_blocks * BLOCK_SIZE if num_blocks else max(context, min(POOL * context, affordable))
