"""How a model is loaded on this machine: context, slots, threads, memory. Measuring is apart from deciding.

Each slot has the whole context to itself: with one common pool, long conversations that together need more than there
is all fail at once (measured: 16 of 16), which no client can do anything about.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from velollm.errors import ConfigError
from velollm.models.gguf import GGUF

__all__ = ["KV_BYTES", "Machine", "Plan", "kv_bytes_per_token", "make_plan", "this_machine"]

# Bytes that one number of the KV cache takes.
KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
            "q4_0": 18 / 32, "iq4_nl": 18 / 32}  # fmt: skip
USUAL_CONTEXT = 8192
LEAST_CONTEXT = 2048
USUAL_SLOTS = 4
GRAIN = 256  # llama.cpp rounds contexts up to this
BATCH = 512
LARGEST_EMBEDDING = 2048
POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
MIB = 1024 * 1024


@attrs.frozen(kw_only=True)
class Machine:
    """What there is to use: whole cores, and free bytes of memory."""

    cores: int
    memory: int


@attrs.frozen(kw_only=True)
class Plan:
    """Tokens of context for each of `slots` conversations; `batch` in tokens; `cache_mib` for prompts laid aside."""

    context: int
    slots: int
    threads: int
    kv_type: str
    unified: bool
    cache_mib: int
    pooling: str
    batch: int


def make_plan(
    model: GGUF,
    machine: Machine,
    *,
    ctx: int | None = None,
    parallel: int | None = None,
    threads: int | None = None,
    kv_type: str = "f16",
    unified: bool = False,
) -> Plan:
    """What was asked for, and for the rest what suits the model and the machine: a quarter of its memory for context.

    Raises `ConfigError` for values that make no sense.
    """
    if kv_type not in KV_BYTES:
        raise ConfigError(f"kv_type {kv_type!r} is none of {', '.join(KV_BYTES)}")
    for name, value in (("ctx", ctx), ("parallel", parallel), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    trained = model.context_length or USUAL_CONTEXT
    tokens = int(machine.memory / 4 / max(kv_bytes_per_token(model, kv_type), 1))
    context = ctx or max(min(trained, USUAL_CONTEXT, tokens // GRAIN * GRAIN), min(trained, LEAST_CONTEXT))
    slots = parallel or max(1, min(USUAL_SLOTS, tokens // context))
    pooling = model.get("{arch}.pooling_type", int)
    embeds = pooling is not None and pooling != 0  # a model made for it: every input must fit into one batch
    return Plan(
        context=context,
        slots=slots,
        threads=threads or machine.cores,
        kv_type=kv_type,
        unified=unified,
        cache_mib=min(8192, machine.memory // 8 // MIB),
        pooling=POOLING.get(pooling, "") if embeds else "mean",
        batch=max(BATCH, min(context, LARGEST_EMBEDDING)) if embeds else BATCH,
    )


def kv_bytes_per_token(model: GGUF, kv_type: str = "f16") -> float:
    """Bytes that one token of context takes, in all layers (for recurrent layers too much)."""
    layers = model.get("{arch}.block_count", int) or 0
    heads = model.get("{arch}.attention.head_count", int) or 1
    width = (model.get("{arch}.embedding_length", int) or 0) / heads
    key = model.get("{arch}.attention.key_length", int) or width
    value = model.get("{arch}.attention.value_length", int) or width
    each = model.get("{arch}.attention.head_count_kv", list)
    kv_heads = model.get("{arch}.attention.head_count_kv", int) or heads
    total = sum(each) if each and all(type(count) is int for count in each) else layers * kv_heads
    return float(total * (key + value) * KV_BYTES[kv_type])


# ---- measuring -------------------------------------------------------------------------------------------------------


def this_machine() -> Machine:
    """The cores and the memory that this process may use, limits of its cgroup included."""
    return Machine(cores=_cores(), memory=_memory())


def _cores() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or cpu for cpu in allowed}
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        return max(1, min(len(siblings), int(quota) // int(period)))
    return max(1, len(siblings))


def _memory() -> int:
    free = 0
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    if not free:
        free = 4 * 1024 * MIB  # a system that does not say
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, max(int(limit) - int(used), 0))
    return free


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
