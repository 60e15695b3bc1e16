"""llama-server's flags: only those that its own `--help` knows."""

from __future__ import annotations

import re

from velollm.hardware.gguf import gpu_room, memory_needed
from velollm.hardware.machine import Machine
from velollm.hardware.report import gigabytes
from velollm.hardware.shape import Shape
from velollm.tuning.capacity import plan_capacity
from velollm.tuning.values import Setting, Tuning, Workload

__all__ = ["parse_flags", "tune_llama_server"]

MIB = 1 << 20
MOST_CACHE = 8192
FLAGS = re.compile(r"^\s*((?:--?[A-Za-z][\w-]*(?:,\s*)?)+)(?:\s+(?P<value>[^\s-][^\s]*))?", re.MULTILINE)
VARIABLE = re.compile(r"\(env: (LLAMA_ARG_\w+)\)")


def parse_flags(help_text: str) -> dict[str, str]:
    """Every spelling of every flag in a `--help`, with the variable that does the same (or an empty text)."""
    found: dict[str, str] = {}
    starts = list(FLAGS.finditer(help_text))
    ends = [match.start() for match in starts[1:]] + [len(help_text)]
    for match, end in zip(starts, ends, strict=False):
        body = help_text[match.end() : end]
        variable = VARIABLE.search(body)
        for flag in re.findall(r"--?[A-Za-z][\w-]*", match[1]):
            found[flag] = variable[1] if variable else ""
    return found


def tune_llama_server(
    machine: Machine, shape: Shape | None, workload: Workload, *, help_text: str = "", model: str = ""
) -> Tuning:
    """The flags for llama-server; without a `help_text` those that all recent versions know."""
    flags = parse_flags(help_text)
    capacity = plan_capacity(machine, shape, workload)
    total = capacity.context * capacity.slots
    cpu = machine.cpu
    cores = cpu.usable_cores
    wanted = [
        Setting(
            name="--parallel", value=str(capacity.slots), memory=capacity.memory,
            why=f"one slot for each of {workload.clients} clients, as far as the memory goes",
            effect="steps are shared by all running requests; said explicitly, each slot has a cache of its own",
        ),
        Setting(
            name="--ctx-size", value=str(total),
            why=f"{capacity.slots} slots of {capacity.context} tokens: this flag counts all slots together",
            effect="a conversation of that length is never cut",
        ),
        Setting(
            name="--flash-attn", value="on" if capacity.kv_type != "f16" else "auto",
            why="less memory for scores; a quantised cache of values needs it",
        ),
        *_cache_types(capacity.kv_type),
        *_threads(machine, capacity.accelerated, cores),
        Setting(
            name="--cache-ram", value=str(min(MOST_CACHE, machine.memory.usable // 8 // MIB)),
            why="prompts that lost their slot wait in the system's memory: an eighth of it, in MiB",
            effect="a conversation that comes back is not computed again",
        ),
        Setting(name="--metrics", value="", why="off by default; without it nobody sees what the server does"),
        *_layers(machine, shape, capacity.accelerated),
    ]  # fmt: skip
    settings = tuple(one for one in wanted if not flags or one.name in flags)
    notes = [f"this llama-server does not know {one.name}" for one in wanted if one not in settings]
    if capacity.slots < workload.clients:
        notes.append(f"{workload.clients} clients share {capacity.slots} slots: the rest waits in the queue")
    return Tuning(target="llama-server", settings=settings, notes=tuple(notes), model=model)


def _cache_types(kv_type: str) -> list[Setting]:
    if kv_type == "f16":
        return []
    why = "in 16 bits not enough slots would fit"
    return [
        Setting(name=f"--cache-type-{part}", value=kv_type, why=why, memory="8.5 bits a number: 53 % of the cache")
        for part in ("k", "v")
    ]


def _threads(machine: Machine, accelerated: bool, cores: int) -> list[Setting]:
    cpu = machine.cpu
    if accelerated:
        return []
    reason = f"one for each of {cores} physical cores"
    if cpu.quota is not None or cpu.affinity is not None:
        reason += f" that the container may use, of {cpu.physical}"
    elif cpu.efficiency:
        reason += ": the fast ones, since every step waits for the slowest thread"
    return [
        Setting(
            name="--threads", value=str(cores), why=reason,
            effect="threads of one core only share its memory port: they add nothing to generation",
        ),
        Setting(name="--threads-batch", value=str(cores), why="the same for prompts"),
    ]  # fmt: skip


def _layers(machine: Machine, shape: Shape | None, accelerated: bool) -> list[Setting]:
    if not gpu_room(machine):
        return []
    room = gpu_room(machine)
    memory = ""
    if shape is not None:
        need = memory_needed(shape, 4096)
        memory = f"{gigabytes(need.weights)} of weights in {gigabytes(room)} of GPU memory"
    layers = "999" if accelerated or shape is None else str(_blocks_that_fit(shape, room))
    why = "every layer on the GPU" if layers == "999" else "as many layers as fit; the rest computes on the CPU"
    return [Setting(name="--n-gpu-layers", value=layers, why=why, memory=memory)]


def _blocks_that_fit(shape: Shape, room: int) -> int:
    need, count = memory_needed(shape, 4096), len(shape.blocks) or 1
    each = (need.weights + need.cache + need.state) / count
    return max(0, min(count, int((room - need.compute - need.output) / each)))
