"""How a model is loaded on this machine: context, slots, threads, memory. Measuring is apart from deciding.

Each slot has the whole context to itself: with one common pool, long conversations that together need more than there
is all fail at once (measured: 16 of 16), which no client can do anything about.
"""

from __future__ import annotations

import attrs

from velollm.errors import ConfigError
from velollm.hardware import LocalHost
from velollm.hardware.cgroup import read_limits
from velollm.hardware.cpu import read_cpu
from velollm.hardware.gguf import KV_BYTES, kv_bytes_per_token
from velollm.hardware.memory import read_memory
from velollm.models.gguf import GGUF

__all__ = ["Machine", "Plan", "make_plan", "this_machine"]

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

    def __str__(self) -> str:
        slots = 1 if self.unified else self.slots
        return f"{slots} conversations at once, {self.context} tokens of context each, {self.threads} threads"


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


def this_machine() -> Machine:
    """The cores and the memory that this process may use, limits of its cgroup included."""
    host = LocalHost()
    limits = read_limits(host)
    return Machine(cores=read_cpu(host, limits).usable_cores, memory=read_memory(host, limits).usable)
