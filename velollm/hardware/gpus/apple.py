"""Apple: the GPU computes in the memory of the system; ioreg knows its cores, the chip's name its bandwidth."""

from __future__ import annotations

import re

from velollm.hardware.cpu import sysctl
from velollm.hardware.host import Host
from velollm.hardware.machine import GPU

__all__ = ["read_apple"]

MIB = 1 << 20
SMALL = 36 << 30
# GB/s by chip, from Apple's technical specifications. Three numbers: the rate below so many GPU cores, the rate from
# there on, and how many.
BANDWIDTH: dict[str, int | tuple[int, int, int]] = {
    "M1": 68, "M1 Pro": 200, "M1 Max": 400, "M1 Ultra": 800,
    "M2": 100, "M2 Pro": 200, "M2 Max": 400, "M2 Ultra": 800,
    "M3": 102, "M3 Pro": 153, "M3 Max": (300, 400, 40), "M3 Ultra": 819,
    "M4": 120, "M4 Pro": 273, "M4 Max": (410, 546, 40),
    "M5": 153, "M5 Pro": 307, "M5 Max": (460, 614, 40),
}  # fmt: skip


def read_apple(host: Host, memory: int) -> list[GPU]:
    """The GPU of an Apple chip; Intel Macs have none that engines use."""
    values = sysctl(host)
    chip = values.get("machdep.cpu.brand_string", "")
    if not chip.startswith("Apple "):
        return []
    text = host.run("ioreg", "-rc", "IOAccelerator", "-d", "1") or ""
    cores = re.search(r'"gpu-core-count" = (\d{1,4})\b', text)
    rate = BANDWIDTH.get(chip.removeprefix("Apple "))
    if isinstance(rate, tuple):
        rate = rate[0] if cores and int(cores[1]) < rate[2] else rate[1]
    wired = values.get("iogpu.wired_limit_mb", "0")
    usable = int(wired) * MIB if wired.isdigit() and int(wired) else _working_set(memory)
    used = re.search(r'"In use system memory"=(\d{1,15})\b', text)
    return [
        GPU(
            vendor="apple",
            name=chip,
            memory_total=min(usable, memory),
            memory_free=max(min(usable, memory) - int(used[1]), 0) if used else None,
            unified=True,
            driver="Metal",
            compute=f"{cores[1]} cores" if cores else "",
            bandwidth=rate * 10**9 if rate else None,
            source="ioreg" if text else "sysctl",
        )
    ]


def _working_set(memory: int) -> int:
    """The most that Metal recommends to keep on the GPU: two thirds of a small memory, three quarters of others."""
    return memory * 2 // 3 if memory <= SMALL else memory * 3 // 4
