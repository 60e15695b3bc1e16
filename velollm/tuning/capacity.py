"""How many conversations of which length fit: the arithmetic behind every target's settings."""

from __future__ import annotations

import attrs

from velollm.hardware.gguf import SPARE, gpu_room, largest_context, memory_needed
from velollm.hardware.machine import Machine
from velollm.hardware.report import gigabytes
from velollm.hardware.shape import Shape
from velollm.tuning.values import Workload

__all__ = ["Capacity", "plan_capacity"]

USUAL_CONTEXT = 8192
LEAST_CONTEXT = 4096
MOST_SLOTS = 16
GRAIN = 1024
UNKNOWN_MODEL = 6 << 30  # an 8B of four bits with some context, for machines of which no model is known


@attrs.frozen(kw_only=True)
class Capacity:
    """`slots` conversations of `context` tokens each with caches of `kv_type`, and the sum that shows they fit."""

    slots: int
    context: int
    kv_type: str
    accelerated: bool
    memory: str
    tight: bool = False


def plan_capacity(machine: Machine, shape: Shape | None, workload: Workload) -> Capacity:
    """As many slots as there are clients, with the context asked for (or a usual one), as far as the memory goes.

    First the cache is quantised, then slots are given up, then context: a long prompt that is cut is worse than a wait.
    """
    room = gpu_room(machine)
    accelerated = room > 0 and (shape is None or memory_needed(shape, LEAST_CONTEXT).total <= room)
    if not accelerated:
        room = int(machine.memory.usable * SPARE)
    wanted = max(1, min(workload.clients, MOST_SLOTS))
    if shape is None:
        return _without_model(room, wanted, workload, accelerated)
    trained = shape.context or USUAL_CONTEXT
    context = min(workload.context or USUAL_CONTEXT, trained)
    slots, kv_type = wanted, "f16"
    for kv_type in ("f16", "q8_0") if shape.blocks and not shape.recurrent else ("f16",):
        slots = wanted
        while slots > 1 and largest_context(shape, room, slots, kv_type=kv_type) < context:
            slots -= 1
        if slots == wanted or kv_type == "q8_0" or slots >= wanted / 2:
            break
    fitting = largest_context(shape, room, slots, kv_type=kv_type) // GRAIN * GRAIN
    tight = fitting < context
    context = max(min(context, fitting), min(LEAST_CONTEXT, trained, context))
    need = memory_needed(shape, context, slots, kv_type=kv_type)
    text = (
        f"{slots} x {context} tokens of {kv_type} cache take {gigabytes(need.cache + need.state)}, with "
        f"{gigabytes(need.weights)} of weights and {gigabytes(need.compute + need.output)} of buffers "
        f"{gigabytes(need.total)} of {gigabytes(room)}"
    )
    return Capacity(slots=slots, context=context, kv_type=kv_type, accelerated=accelerated, memory=text, tight=tight)


def _without_model(room: int, wanted: int, workload: Workload, accelerated: bool) -> Capacity:
    slots = wanted if room >= 2 * UNKNOWN_MODEL else max(1, min(wanted, 2))
    text = f"no model is known, so nothing could be computed; {gigabytes(room)} are there"
    context = workload.context or (USUAL_CONTEXT if room >= 2 * UNKNOWN_MODEL else LEAST_CONTEXT)
    return Capacity(slots=slots, context=context, kv_type="f16", accelerated=accelerated, memory=text)
