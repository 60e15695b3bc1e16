"""Rules about the machine itself."""

from __future__ import annotations

from collections.abc import Iterator

from velollm.diagnosis.facts import Facts
from velollm.diagnosis.finding import Finding
from velollm.hardware.report import gigabytes

__all__ = ["RULES"]

MIB, GIB = 1 << 20, 1 << 30
MODERN_DRIVERS = ("intel_pstate", "amd-pstate-epp", "amd-pstate")  # where "powersave" is the normal, dynamic policy
DRIVER_TOOLS = ("nvidia-smi", "amdgpu", "pynvml")


def swap(facts: Facts) -> Iterator[Finding]:
    """Weights in swap are read from the disk for every token."""
    memory = facts.machine.memory
    if memory.swap_used > max(512 * MIB, memory.total // 32):
        yield Finding(
            "swap-in-use",
            "warning",
            f"{gigabytes(memory.swap_used)} of swap are in use, {gigabytes(memory.available)} of memory are free",
            "load fewer or smaller models, or close what else takes memory; `velollm tune` computes what fits. "
            "`sudo swapoff -a && sudo swapon -a` brings back what fits again",
        )


def disk(facts: Facts) -> Iterator[Finding]:
    """A download that fills the disk fails at its end."""
    space = facts.machine.disk
    if space is not None and (space.free < 5 * GIB or space.free < space.total // 50):
        yield Finding(
            "disk-nearly-full",
            "warning",
            f"{gigabytes(space.free)} of {gigabytes(space.total)} are free at {space.path}",
            "`velollm models list` shows what takes the space, `velollm models remove NAME` (or "
            "`ollama rm NAME`) frees it",
        )


def governor(facts: Facts) -> Iterator[Finding]:
    """Clocks held low on purpose."""
    cpu = facts.machine.cpu
    saving = cpu.governor == "powersave" and facts.scaling_driver not in MODERN_DRIVERS
    if saving or facts.energy_preference == "power":
        seen = f"the governor is {cpu.governor}" if saving else "the energy preference is `power`"
        yield Finding(
            "governor-powersave",
            "warning",
            f"{seen} (driver {facts.scaling_driver or 'unknown'}): the cores stay at a low clock",
            "`sudo cpupower frequency-set -g performance`"
            if saving
            else "`echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference`",
        )


def heat(facts: Facts) -> Iterator[Finding]:
    """Clocks held down by heat."""
    for gpu in facts.machine.gpus:
        hot = [reason for reason in gpu.throttled if reason != "power cap"]
        if hot:
            degrees = f" at {gpu.temperature:.0f} °C" if gpu.temperature else ""
            yield Finding(
                "thermal-limit",
                "warning",
                f"{gpu.name} is held down by {' and '.join(hot)}{degrees}",
                "clean or improve the cooling; a lower power limit (`sudo nvidia-smi -pl WATTS`) costs less than "
                "throttling",
            )
    count = facts.machine.cpu.throttle_count
    if count:
        yield Finding(
            "thermal-limit",
            "info",
            f"the processor was throttled by heat {count} times since it started",
            "see whether `velollm detect` reports it rising under load; if so, improve the cooling",
        )


def power(facts: Facts) -> Iterator[Finding]:
    """Power limits below what the board is made for."""
    for gpu in facts.machine.gpus:
        lowered = gpu.power_limit and gpu.power_default and gpu.power_limit < 0.9 * gpu.power_default
        if lowered or "power cap" in gpu.throttled:
            limit = f"{gpu.power_limit:.0f} W" if gpu.power_limit else "its limit"
            usual = f" instead of {gpu.power_default:.0f} W" if lowered else ""
            yield Finding(
                "power-limit",
                "info",
                f"{gpu.name} runs at "
                f"{limit}{usual}{', and the limit is reached' if 'power cap' in gpu.throttled else ''}",
                f"`sudo nvidia-smi -i {gpu.index} -pl {gpu.power_default or gpu.power_limit or 0:.0f}` if the "
                f"cooling allows "
                "it (prompts gain; the speed of generation depends on memory)",
            )


def link(facts: Facts) -> Iterator[Finding]:
    """A card in a slot with fewer lanes than it has."""
    for gpu in facts.machine.gpus:
        if gpu.pcie_width and gpu.pcie_width_max and gpu.pcie_width * 4 <= gpu.pcie_width_max:
            yield Finding(
                "pcie-narrow",
                "info",
                f"{gpu.name} is connected by {gpu.pcie_width} of {gpu.pcie_width_max} lanes",
                "loading, and models split between GPU and CPU, are slower: put it into the first slot, without "
                "a riser",
            )


def driver(facts: Facts) -> Iterator[Finding]:
    """A GPU that is there but cannot be used."""
    for note in facts.machine.notes:
        if note.about in DRIVER_TOOLS and "did not answer" in note.problem:
            yield Finding(
                "gpu-driver-hangs",
                "error",
                f"{note.about} {note.problem}",
                "the driver hangs: `sudo dmesg | grep -i nvrm` says why; a restart of the machine mends it for now",
            )
        elif note.about in DRIVER_TOOLS and not facts.machine.accelerated:
            yield Finding(
                "gpu-without-driver",
                "error",
                f"{note.about}: {note.problem}",
                "install the maker's driver, or restart after its update; until then models run on the CPU",
            )
        elif note.about == "/dev/kfd":
            yield Finding(
                "gpu-without-driver",
                "warning",
                note.problem,
                "`sudo usermod -aG render,video $USER`, then log in again; in a container pass --device /dev/kfd "
                "--device /dev/dri",
            )


def crowded(facts: Facts) -> Iterator[Finding]:
    """GPU memory that something else has."""
    loaded = any(engine.loaded for engine in facts.machine.engines)
    for gpu in facts.machine.gpus:
        if gpu.unified or not gpu.memory_total or gpu.memory_free is None or loaded:
            continue
        if gpu.memory_free < gpu.memory_total // 2:
            taken = gpu.memory_total - gpu.memory_free
            yield Finding(
                "gpu-memory-taken",
                "warning",
                f"{gigabytes(taken)} of {gigabytes(gpu.memory_total)} on {gpu.name} are taken, and no engine has "
                f"a model loaded",
                "`nvidia-smi` (or `rocm-smi --showpids`) names the programs; end them, or they will push the "
                "model to the CPU",
            )


RULES = (swap, disk, governor, heat, power, link, driver, crowded)
