"""Ollama's variables: what its defaults cost on this machine, and what to set instead."""

from __future__ import annotations

import math
from collections.abc import Collection
from types import MappingProxyType

from velollm.hardware.machine import Machine
from velollm.hardware.shape import Shape
from velollm.tuning.capacity import Capacity, plan_capacity
from velollm.tuning.values import Setting, Tuning, Workload
from velollm.tuning.variables import known_variables

__all__ = ["DEFAULTS", "tune_ollama"]

LEAST_QUEUE = 512
# What an Ollama without settings does; the trial against which a tuning has to prove itself.
DEFAULTS = MappingProxyType({"OLLAMA_NUM_PARALLEL": "1"})


def tune_ollama(
    machine: Machine,
    shape: Shape | None,
    workload: Workload,
    *,
    version: str = "",
    help_text: str = "",
    model: str = "",
) -> Tuning:
    """The variables for Ollama of `version` (its own `serve --help` as `help_text` is a better witness)."""
    known = known_variables(version, help_text)
    capacity = plan_capacity(machine, shape, workload)
    wanted = [
        *_parallel(capacity, workload),
        *_context(capacity),
        *_cache(machine, capacity),
        *_lifetime(machine),
        *_several_gpus(machine, capacity),
        *([*_threads(machine), *_waiting(machine)] if _runs_llama_server(known) else ()),
    ]
    settings = tuple(one for one in wanted if one.name in known or not one.name.startswith("OLLAMA_"))
    left_out = [one.name for one in wanted if one not in settings]
    notes = [f"this version does not read {', '.join(left_out)}"] if left_out else []
    if capacity.slots < workload.clients:
        notes.append(f"{workload.clients} clients share {capacity.slots} slots: the rest waits in the queue")
    if capacity.tight:
        notes.append("the memory is short for this model: a smaller one, or a stronger quantisation, would breathe")
    if shape is None:
        notes.append("no model is named or installed: say --model to have the memory computed")
    notes += [] if _runs_llama_server(known) else _unlimited_threads(machine)
    return Tuning(target="ollama", settings=settings, notes=tuple(notes), model=model, version=version)


def _parallel(capacity: Capacity, workload: Workload) -> list[Setting]:
    return [
        Setting(
            name="OLLAMA_NUM_PARALLEL",
            value=str(capacity.slots),
            why=f"the default is one request at a time; {workload.clients} clients would stand in line",
            memory=capacity.memory,
            effect="steps are shared: each weight read from memory serves every running request",
        )
    ]


def _context(capacity: Capacity) -> list[Setting]:
    return [
        Setting(
            name="OLLAMA_CONTEXT_LENGTH",
            value=str(capacity.context),
            why="the default goes by VRAM (4096 below 23 GiB, 262144 above 47), and longer prompts are cut silently",
            memory=f"each token costs its cache {capacity.slots} times, once a slot",
            effect="prompts up to this length are seen whole; one value for all keeps the model from being reloaded",
        )
    ]


def _cache(machine: Machine, capacity: Capacity) -> list[Setting]:
    settings = []
    if capacity.accelerated or capacity.kv_type != "f16":
        settings.append(
            Setting(
                name="OLLAMA_FLASH_ATTENTION",
                value="1",
                why="attention without the matrix of all scores; a quantised cache needs it",
                memory="the buffer of scores (heads x context x batch) is not allocated",
                effect="long contexts are faster on GPUs and take less memory",
            )
        )
    if capacity.kv_type != "f16":
        settings.append(
            Setting(
                name="OLLAMA_KV_CACHE_TYPE",
                value=capacity.kv_type,
                why="in 16 bits not enough slots would fit",
                memory="8.5 bits a number instead of 16: 53 % of the cache",
                effect="nearly no loss of quality at 8 bits; models with few heads feel 4 bits",
            )
        )
    return settings


def _lifetime(machine: Machine) -> list[Setting]:
    return [
        Setting(
            name="OLLAMA_KEEP_ALIVE",
            value="1h",
            why="after five idle minutes the model is thrown out, and the next request waits for it to load",
            memory="the model stays in memory while nobody asks",
            effect="no load time for whoever comes back within the hour",
        ),
        Setting(
            name="OLLAMA_MAX_QUEUE",
            value=str(LEAST_QUEUE),
            why="how many may wait before 503 is answered; the default, said so that it is seen",
        ),
    ]


def _several_gpus(machine: Machine, capacity: Capacity) -> list[Setting]:
    own = [gpu for gpu in machine.gpus if not gpu.unified and not gpu.mig]
    if len(own) < 2 or capacity.slots < 2 or len({gpu.name for gpu in own}) > 1:
        return []
    return [
        Setting(
            name="OLLAMA_SCHED_SPREAD",
            value="1",
            why=f"{len(own)} equal GPUs: a model that fits into one would leave the others idle",
            memory="the cache is spread with the layers, so more slots fit",
            effect="more room for slots; a single request is not faster",
        )
    ]


def _runs_llama_server(known: Collection[str]) -> bool:
    """Since 0.30 Ollama's models run in a llama-server, which inherits its variables, and uses OpenMP."""
    return "OLLAMA_GO_TEMPLATE" in known


def _threads(machine: Machine) -> list[Setting]:
    cpu = machine.cpu
    if machine.accelerated or cpu.usable_cores >= cpu.physical or (cpu.quota is None and cpu.affinity is None):
        return []
    return [
        Setting(
            name="LLAMA_ARG_THREADS",
            value=str(cpu.usable_cores),
            why=f"the llama-server below would start {cpu.physical} threads, one a core; the container may use "
            f"{cpu.usable_cores}",
            effect="threads without a core hold up all the others",
        )
    ]


def _waiting(machine: Machine) -> list[Setting]:
    """How threads wait for each other, where others compute on the same cores."""
    cpu = machine.cpu
    crowded = cpu.load is not None and cpu.load > 0.5 * cpu.physical
    if machine.accelerated or not (crowded or cpu.quota is not None):
        return []
    return [
        Setting(
            name="OMP_WAIT_POLICY",
            value="passive",
            why="others compute on these cores, and a thread that spins while it waits takes them from itself, too",
            effect="measured with a busy neighbour: 829 ms a step became 219 (llama.cpp built with OpenMP)",
        ),
        # Where cores are free, some turns before they sleep are better: velollm.engine.llama_cpp.WAITING.
        Setting(name="GOMP_SPINCOUNT", value="0", why="the same for GCC's OpenMP, which looks at this first"),
    ]


def _unlimited_threads(machine: Machine) -> list[str]:
    cpu = machine.cpu
    if cpu.quota is None or cpu.quota >= cpu.physical or machine.accelerated:
        return []
    threads = max(1, math.floor(cpu.quota))
    words = (
        f"Ollama starts a thread for each of {cpu.physical} cores, but the cgroup grants {cpu.quota:g}: no variable "
        f"changes that; put `PARAMETER num_thread {threads}` into the Modelfile"
    )
    return [words]
