"""The settings of VeloLLM's own engine: keys of `velollm.toml`, named `section.key`."""

from __future__ import annotations

from velollm.hardware.machine import Machine
from velollm.hardware.shape import Shape
from velollm.tuning.capacity import plan_capacity
from velollm.tuning.values import Setting, Tuning, Workload

__all__ = ["tune_velo"]


def tune_velo(machine: Machine, shape: Shape | None, workload: Workload, *, model: str = "") -> Tuning:
    """The keys of the section [engine]."""
    capacity = plan_capacity(machine, shape, workload)
    cores = machine.cpu.usable_cores
    settings = [
        Setting(
            name="engine.ctx",
            value=str(capacity.context),
            why="tokens of context for each conversation",
            memory=capacity.memory,
            effect="a conversation of that length is never cut",
        ),
        Setting(
            name="engine.threads",
            value=str(cores),
            why=f"one for each of {cores} physical cores that may be used, of {machine.cpu.physical}",
            effect="more threads than cores wait for each other in every step",
        ),
    ]
    if capacity.kv_type != "f16":
        settings.append(
            Setting(
                name="engine.kv_type",
                value=capacity.kv_type,
                why="in 16 bits not enough conversations would fit",
                memory="8.5 bits a number instead of 16: 53 % of the cache",
            )
        )
    return Tuning(target="velo", settings=tuple(settings), model=model)
