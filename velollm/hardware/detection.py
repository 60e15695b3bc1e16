"""`detect()`: every probe, side by side where they wait, within a second."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from velollm.hardware.cgroup import read_limits
from velollm.hardware.cpu import read_cpu
from velollm.hardware.engines import find_running
from velollm.hardware.gpus import read_gpus
from velollm.hardware.host import Host, LocalHost
from velollm.hardware.machine import Machine
from velollm.hardware.memory import measure_bandwidth, read_memory
from velollm.hardware.system import read_disk, read_system
from velollm.models.folder import default_folder
from velollm.models.lookup import list_installed

__all__ = ["detect", "models_folder", "read_machine"]

BANDWIDTH_SECONDS = 0.2
MOST_READERS = 32  # that many cores saturate the memory of any machine


def detect(
    host: Host | None = None, *, bandwidth: bool = True, engines: bool = True, urls: Iterable[str] = ()
) -> Machine:
    """What this machine is: GPUs, processor, memory, limits, running engines, installed models. Never raises.

    `bandwidth` measures the memory (a quarter of a second); `engines` asks the ports where engines listen, and `urls`.
    What could not be found out is in `notes`.
    """
    began = time.perf_counter()
    host = host or LocalHost()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(find_running, host, tuple(urls)) if engines else None
        machine = read_machine(host)
        found = running.result() if running is not None else ()
    if bandwidth:
        cpu, memory = machine.cpu, machine.memory
        last = max((cache.size for cache in cpu.caches), default=0)
        threads = min(cpu.usable_cores, MOST_READERS)
        rate = measure_bandwidth(threads, memory.usable, seconds=BANDWIDTH_SECONDS, cache=last)
        machine = attrs.evolve(machine, memory=attrs.evolve(memory, bandwidth=rate))
    return attrs.evolve(
        machine,
        engines=found,
        installed=_installed(host),
        notes=tuple(host.notes),
        seconds=round(time.perf_counter() - began, 3),
    )


def read_machine(host: Host) -> Machine:
    """The hardware alone, as `host` tells it: nothing is measured, no engine asked."""
    limits = read_limits(host)
    memory = read_memory(host, limits)
    return Machine(
        system=read_system(host),
        cpu=read_cpu(host, limits),
        memory=memory,
        gpus=read_gpus(host, memory.total),
        disk=read_disk(host, models_folder(host)),
        notes=tuple(host.notes),
    )


def models_folder(host: Host) -> str:
    """Where the user of `host` keeps models: what VELOLLM_MODELS_DIR says, else the usual folder."""
    return host.environ.get("VELOLLM_MODELS_DIR") or str(default_folder(host.environ))


def _installed(host: Host) -> tuple[str, ...]:
    if not isinstance(host, LocalHost):
        return ()
    try:
        return tuple(model.name for model in list_installed(Path(models_folder(host)).expanduser()))
    except OSError as error:
        host.note("models", error.strerror or str(error))
        return ()
