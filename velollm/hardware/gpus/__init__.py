"""Graphics processors, one file for each maker. Each reads through a `Host`, the best tool first."""

from __future__ import annotations

from velollm.hardware.gpus.amd import read_amd
from velollm.hardware.gpus.apple import read_apple
from velollm.hardware.gpus.intel import read_intel
from velollm.hardware.gpus.nvidia import read_nvidia
from velollm.hardware.host import Host
from velollm.hardware.machine import GPU

__all__ = ["read_gpus"]


def read_gpus(host: Host, memory: int) -> tuple[GPU, ...]:
    """Every GPU of the machine; `memory` is the system's, which integrated ones share."""
    if host.system == "darwin":
        return tuple(read_apple(host, memory))
    return (*read_nvidia(host, memory), *read_amd(host, memory), *read_intel(host, memory))
