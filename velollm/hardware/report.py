"""`detect()`'s answer as a page for people: the figures that decide, in the order in which they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from velollm.hardware.machine import CPU, GPU, Engine, Machine

__all__ = ["gigabytes", "render"]

GIB = 1 << 30
MIB = 1 << 20
KIB = 1 << 10
LABEL = 9
NOTE = 140


def render(machine: Machine) -> str:
    """Plain text, one subject a paragraph, ready for a terminal of 100 columns."""
    lines: list[str] = []
    for label, rows in _sections(machine):
        for number, row in enumerate(rows):
            lines.append(f"{label if number == 0 else '':<{LABEL}} {row}".rstrip())
    return "\n".join(lines) + "\n"


def gigabytes(size: int | None) -> str:
    """`23.9 GiB`, `512 MiB`; a question mark for what is unknown."""
    if size is None:
        return "?"
    return (
        f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB" if size >= MIB else f"{size / KIB:.0f} KiB"
    )


def _sections(machine: Machine) -> Iterator[tuple[str, list[str]]]:
    yield "System", [_system(machine)]
    yield "CPU", list(_cpu(machine.cpu))
    yield "Memory", list(_memory(machine))
    for gpu in machine.gpus:
        yield "GPU", list(_gpu(gpu))
    if not machine.gpus:
        yield "GPU", ["none that an engine could use: models run on the CPU"]
    if machine.disk:
        yield (
            "Disk",
            [f"{gigabytes(machine.disk.free)} free of {gigabytes(machine.disk.total)}, at {machine.disk.path}"],
        )
    yield (
        "Models",
        [", ".join(machine.installed) or "none installed: `velollm models install smollm2` gets a small one"],
    )
    for engine in machine.engines:
        yield "Engine", list(_engine(engine, machine.accelerated))
    if not machine.engines:
        yield "Engine", ["none is running: `velollm serve` brings one"]
    if machine.notes:
        yield "Notes", [f"{note.about}: {note.problem}"[:NOTE] for note in machine.notes]


def _system(machine: Machine) -> str:
    system = machine.system
    parts = [system.name, system.board, f"in {system.container}" if system.container else ""]
    parts += [f"WSL {system.wsl}" if system.wsl else "", system.virtual, system.arch, system.kernel]
    return _joined(parts)


def _cpu(cpu: CPU) -> Iterator[str]:
    sockets = f"{cpu.sockets} x " if cpu.sockets > 1 else ""
    yield f"{sockets}{cpu.model}"
    cores = f"{cpu.physical} cores"
    if cpu.efficiency:
        cores += f" ({cpu.performance} performance, {cpu.efficiency} efficiency)"
    if cpu.logical != cpu.physical:
        cores += f", {cpu.logical} threads"
    clock = f"up to {cpu.max_clock / 1e9:.1f} GHz" if cpu.max_clock else ""
    numa = f"{cpu.numa_nodes} NUMA nodes" if cpu.numa_nodes > 1 else ""
    yield _joined([cores, clock, numa, f"governor {cpu.governor}" if cpu.governor else ""])
    if cpu.quota is not None or cpu.affinity is not None:
        limits = [f"{cpu.quota:g} CPUs by cgroup" if cpu.quota is not None else ""]
        limits.append(f"{cpu.affinity} by affinity" if cpu.affinity is not None else "")
        yield f"limited to {_joined(limits)}: {cpu.usable_cores} to compute on"
    if cpu.isa:
        yield " ".join(cpu.isa)
    if cpu.caches:
        yield _joined(f"L{cache.level} {gigabytes(cache.size)}" for cache in cpu.caches)


def _memory(machine: Machine) -> Iterator[str]:
    memory, load = machine.memory, machine.cpu.load or 0.0
    yield f"{gigabytes(memory.total)}, {gigabytes(memory.available)} available"
    if memory.limit is not None:
        yield f"limited to {gigabytes(memory.limit)} by cgroup: {gigabytes(memory.usable)} usable"
    if memory.bandwidth:
        beside = f", beside a load of {load:.0f}" if load > machine.cpu.usable_cores else ""
        yield f"read at {memory.bandwidth / 1e9:.0f} GB/s (measured{beside}): what bounds tokens a second on the CPU"
    if memory.swap_used:
        yield f"{gigabytes(memory.swap_used)} of {gigabytes(memory.swap_total)} swap in use"


def _gpu(gpu: GPU) -> Iterator[str]:
    yield _joined([gpu.name, gpu.compute, f"driver {gpu.driver}" if gpu.driver else ""])
    kind = " of the system's memory" if gpu.unified else ""
    free = f", {gigabytes(gpu.memory_free)} free" if gpu.memory_free is not None else ""
    rate = f", {gpu.bandwidth / 1e9:.0f} GB/s" if gpu.bandwidth else ""
    yield f"{gigabytes(gpu.memory_total)}{kind}{free}{rate}"
    parts = [f"{gpu.power_limit:.0f} W limit" if gpu.power_limit else ""]
    parts.append(f"{gpu.temperature:.0f} °C" if gpu.temperature else "")
    parts.append(f"PCIe x{gpu.pcie_width} of x{gpu.pcie_width_max}" if gpu.pcie_width and gpu.pcie_width_max else "")
    parts.append(f"held down by {' and '.join(gpu.throttled)}" if gpu.throttled else "")
    if any(parts):
        yield _joined(parts)
    for part in gpu.mig:
        yield f"MIG {part.profile}, {gigabytes(part.memory_total)}"


def _engine(engine: Engine, accelerated: bool) -> Iterator[str]:
    slots = f"{engine.slots} slot{'s' if engine.slots != 1 else ''}" if engine.slots else ""
    yield _joined([f"{engine.kind} {engine.version}".strip(), engine.url, slots, f"{len(engine.models)} models"])
    for model in engine.loaded:
        share = f"{model.gpu_share:.0%} on the GPU" if accelerated and model.gpu_share is not None else ""
        context = f"context {model.context}" if model.context else ""
        yield _joined([f"loaded: {model.name}", gigabytes(model.size) if model.size else "", share, context])
    told = [f"{key}={value}" for key, value in engine.settings.items() if key.isupper() and key != "OLLAMA_MODELS"]
    if told:
        yield " ".join(told)


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)
