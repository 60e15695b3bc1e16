"""How much memory a model takes, and whether it fits: weights, caches, recurrent states and the buffers of a step.

Follows what llama.cpp allocates; `benchmarks/gguf_memory.py` compares the two for models from 135M to 80B.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import attrs

from velollm.errors import ConfigError
from velollm.hardware.machine import Machine
from velollm.hardware.shape import Shape, read_shape
from velollm.models.gguf import GGUF

__all__ = [
    "KV_BYTES",
    "SPARE",
    "Fit",
    "Need",
    "cache_bytes",
    "fits",
    "gpu_room",
    "kv_bytes_per_token",
    "largest_context",
    "memory_needed",
]

# Bytes that one number of the cache takes.
KV_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
        "q4_0": 18 / 32, "iq4_nl": 18 / 32,
    }
)  # fmt: skip
GRAIN = 256  # llama.cpp rounds contexts up to this
UBATCH = 512  # tokens computed at once, unless told otherwise
F16, F32 = 2, 4
HIDDEN = 5  # vectors of the model's width that live at the same time in a step, as measured
GPU_OVERHEAD = 450 << 20  # what a CUDA or ROCm context takes for itself
SPARE = 0.95  # of the system's memory, for a model that is to run in it


@attrs.frozen(kw_only=True)
class Need:
    """Bytes of each kind. `cache` grows with the context, `state` with the conversations, `compute` with the batch."""

    weights: int
    cache: int
    state: int
    compute: int
    output: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.state + self.compute + self.output


@attrs.frozen(kw_only=True)
class Fit:
    """Where a model would run: wholly on the `gpu`, `split` with so many blocks on it, on the `cpu`, or nowhere (`no`).

    `missing` is how many bytes too much it is for the best place; `largest_context` what would fit there, in tokens for
    each conversation, 0 for none.
    """

    need: Need
    where: Literal["gpu", "split", "cpu", "no"]
    gpu_blocks: int = 0
    blocks: int = 0
    missing: int = 0
    largest_context: int = 0


def kv_bytes_per_token(model: GGUF, kv_type: str = "f16") -> float:
    """Bytes that one token of context takes in all blocks together, those with a window as if they had none."""
    return sum(block.key + block.value for block in read_shape(model).blocks) * KV_BYTES[kv_type]


def cache_bytes(
    shape: Shape, context: int, slots: int = 1, *, kv_type: str = "f16", unified: bool = False, ubatch: int = UBATCH
) -> int:
    """Bytes of the caches for `slots` conversations of `context` tokens each, or `context` for all when `unified`."""
    _check(context, slots, kv_type)
    cells, pools = _padded(context), 1 if unified else slots
    total = 0.0
    for block in shape.blocks:
        held = _window_cells(block.window, cells, slots if unified else 1, ubatch) if block.window else cells
        total += (block.key + block.value) * held * pools
    return int(total * KV_BYTES[kv_type])


def memory_needed(
    model: GGUF | Shape,
    context: int,
    slots: int = 1,
    *,
    kv_type: str = "f16",
    unified: bool = False,
    flash_attention: bool = True,
    ubatch: int = UBATCH,
) -> Need:
    """What llama.cpp allocates for `slots` conversations of `context` tokens each (for all together when `unified`).

    Raises `ConfigError` for values that make no sense, `GGUFError` for an absurd model.
    """
    shape = model if isinstance(model, Shape) else read_shape(model)
    cache = cache_bytes(shape, context, slots, kv_type=kv_type, unified=unified, ubatch=ubatch)
    return Need(
        weights=shape.weights,
        cache=cache,
        state=sum(block.state for block in shape.blocks) * F32 * slots,
        compute=_compute(shape, _padded(context), slots, unified, flash_attention, ubatch),
        output=shape.vocabulary * F32 * slots,
    )


def largest_context(
    model: GGUF | Shape, room: int, slots: int = 1, *, kv_type: str = "f16", ubatch: int = UBATCH
) -> int:
    """The most tokens for each of `slots` conversations that fit into `room` bytes with the weights; 0 for none."""
    shape = model if isinstance(model, Shape) else read_shape(model)
    low, high = 0, max(shape.context, GRAIN) // GRAIN
    while low < high:
        middle = (low + high + 1) // 2
        need = memory_needed(shape, middle * GRAIN, slots, kv_type=kv_type, ubatch=ubatch)
        low, high = (middle, high) if need.total <= room else (low, middle - 1)
    return low * GRAIN


def fits(
    model: GGUF | Shape,
    context: int,
    slots: int,
    machine: Machine,
    *,
    kv_type: str = "f16",
    flash_attention: bool = True,
    ubatch: int = UBATCH,
) -> Fit:
    """Whether a model with `slots` conversations of `context` tokens each runs on `machine`, and where."""
    shape = model if isinstance(model, Shape) else read_shape(model)
    need = memory_needed(shape, context, slots, kv_type=kv_type, flash_attention=flash_attention, ubatch=ubatch)
    count = len(shape.blocks) or 1
    memory = int(machine.memory.usable * SPARE)
    room = gpu_room(machine)

    def largest(space: int) -> int:
        return largest_context(shape, space, slots, kv_type=kv_type, ubatch=ubatch)

    if room and need.total <= room:
        return Fit(need=need, where="gpu", gpu_blocks=count, blocks=count, largest_context=largest(room))
    unified = any(gpu.unified for gpu in machine.gpus if gpu.usable)
    if room and not unified:
        each = (need.weights + need.cache + need.state) / count
        blocks = max(min(int((room - need.compute - need.output) / each), count), 0)
        if blocks and need.total - blocks * each <= memory:
            return Fit(
                need=need,
                where="split",
                gpu_blocks=blocks,
                blocks=count,
                missing=need.total - room,
                largest_context=largest(room),
            )
    if need.total <= memory:
        return Fit(need=need, where="cpu", blocks=count, largest_context=largest(memory))
    best = max(room, memory)
    return Fit(need=need, where="no", blocks=count, missing=need.total - best, largest_context=largest(best))


def gpu_room(machine: Machine) -> int:
    """Bytes on the GPUs that engines compute on, less what their drivers take: dedicated ones, else Apple's."""
    own = [gpu.usable - GPU_OVERHEAD for gpu in machine.gpus if not gpu.unified]
    if not own:
        own = [gpu.usable for gpu in machine.gpus if gpu.vendor == "apple"]
    return sum(size for size in own if size > 0)


def _compute(shape: Shape, cells: int, slots: int, unified: bool, flash: bool, ubatch: int) -> int:
    """The buffer of one step of `ubatch` tokens: masks, and the widest of output layer, feed-forward and attention."""
    tokens = min(ubatch, cells * (1 if unified else slots))
    number, sharing = F16 if flash else F32, slots if unified else 1
    mask = 0
    for window in {block.window for block in shape.blocks if block.key}:
        held = _window_cells(window, cells, sharing, ubatch) if window else cells
        mask += held * tokens * number  # a pool for each conversation holds fewer cells: those of its own tokens
    keys = max((block.key + block.value for block in shape.blocks), default=0)
    stages = [HIDDEN * shape.width + shape.vocabulary, shape.width + 2 * keys + 3 * shape.feed_forward]
    if not flash and shape.heads:
        stages.append(HIDDEN * shape.width + shape.heads * cells + shape.query + keys)
    return mask + max(stages) * tokens * F32


def _window_cells(window: int, cells: int, sharing: int, ubatch: int) -> int:
    return _padded(min(cells, window * sharing + ubatch))


def _padded(tokens: int) -> int:
    return -(-tokens // GRAIN) * GRAIN


def _check(context: int, slots: int, kv_type: str) -> None:
    if kv_type not in KV_BYTES:
        raise ConfigError(f"the cache type {kv_type!r} is none of {', '.join(KV_BYTES)}")
    if not 1 <= context <= 1 << 31 or not 1 <= slots <= 1 << 16:
        raise ConfigError(f"{slots} conversations of {context} tokens make no sense")
