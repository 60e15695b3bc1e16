"""How much memory there is, how much of it may be used, and how fast it is read."""

from __future__ import annotations

import ctypes
import re
import sys
import threading
import time
from mmap import mmap
from typing import Any

from velollm.hardware.cgroup import Limits
from velollm.hardware.cpu import sysctl
from velollm.hardware.host import Host
from velollm.hardware.machine import Memory

__all__ = ["measure_bandwidth", "read_memory"]

SWAP = re.compile(r"total = ([\d.]+)M\s+used = ([\d.]+)M")
PAGES = re.compile(r"^Pages (free|inactive|speculative|purgeable):\s+(\d+)\.", re.MULTILINE)
MIB = 1 << 20
UNKNOWN_TOTAL = 4 << 30  # a system that does not say


def read_memory(host: Host, limits: Limits) -> Memory:
    """The memory of any system."""
    if host.system == "linux":
        total, available, swap_total, swap_used = _linux(host)
    elif host.system == "darwin":
        total, available, swap_total, swap_used = _mac(host)
    else:
        total, available, swap_total, swap_used = _other(host)
    if not total:
        host.note("memory", "its size could not be read; 4 GiB are assumed")
        total = available = UNKNOWN_TOTAL
    available = min(available, total)
    usable = available
    if limits.memory is not None:
        usable = min(available, max(limits.memory - limits.memory_used, 0))
    return Memory(
        total=total,
        available=available,
        usable=usable,
        limit=limits.memory if limits.memory is not None and limits.memory < total else None,
        swap_total=swap_total,
        swap_used=swap_used,
    )


def _linux(host: Host) -> tuple[int, int, int, int]:
    values: dict[str, int] = {}
    for line in (host.read("/proc/meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            values[key] = int(words[0]) * 1024
    total, swap = values.get("MemTotal", 0), values.get("SwapTotal", 0)
    available = values.get("MemAvailable", values.get("MemFree", 0) + values.get("Cached", 0))
    return total, available, swap, max(swap - values.get("SwapFree", 0), 0)


def _mac(host: Host) -> tuple[int, int, int, int]:
    values = sysctl(host)
    total = int(values["hw.memsize"]) if values.get("hw.memsize", "").isdigit() else 0
    text = host.run("vm_stat") or ""
    page = re.search(r"page size of (\d+) bytes", text)
    free = sum(int(count) for _, count in PAGES.findall(text)) * (int(page[1]) if page else 16384)
    swap = SWAP.search(values.get("vm.swapusage", ""))
    sizes = [int(float(size) * MIB) for size in swap.groups()] if swap else [0, 0]
    return total, free or total // 2, sizes[0], sizes[1]


def _other(host: Host) -> tuple[int, int, int, int]:
    psutil = host.library("psutil")
    if psutil is not None:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        return memory.total, memory.available, swap.total, swap.used
    text = host.run("systeminfo", seconds=0.1) or ""  # slow on most systems, and then not worth waiting for
    total = re.search(r"Total Physical Memory:\s+([\d.,]+) MB", text)
    free = re.search(r"Available Physical Memory:\s+([\d.,]+) MB", text)
    sizes = [int(re.sub(r"\D", "", match[1])) * MIB if match else 0 for match in (total, free)]
    return sizes[0], sizes[1] or sizes[0] // 2, 0, 0


# ---- speed -----------------------------------------------------------------------------------------------------------


def measure_bandwidth(threads: int, room: int, *, seconds: float = 0.25, cache: int = 0) -> int | None:
    """Bytes a second that `threads` read together: what bounds the generation of tokens on a CPU.

    Reads a block larger than the last-level `cache` with the C library's `memchr`, which finds nothing in it. `room` is
    how much memory there is to spare; None when that is too little, or there is no C library.
    """
    size = min(max(4 * cache, 64 * MIB), 512 * MIB, room // 8) // max(threads, 1) // 4096 * 4096
    memchr = _memchr()
    if memchr is None or size < 4 * MIB:
        return None
    try:
        blocks = [mmap(-1, size) for _ in range(threads)]
    except OSError:
        return None
    rates: list[float] = []
    ready = threading.Barrier(threads)
    workers = [threading.Thread(target=_read, args=(memchr, block, size, seconds, ready, rates)) for block in blocks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for block in blocks:
        block.close()
    return int(sum(rates))


def _read(memchr: Any, block: mmap, size: int, seconds: float, ready: threading.Barrier, rates: list[float]) -> None:
    place = ctypes.c_char.from_buffer(block)
    address = ctypes.addressof(place)
    ctypes.memset(address, 1, size)  # pages that were never written are all the same one
    ready.wait()
    began = now = time.perf_counter()
    rounds = 0
    while now - began < seconds:
        memchr(address, 0, size)
        rounds += 1
        now = time.perf_counter()
    rates.append(rounds * size / (now - began))


def _memchr() -> Any:
    try:
        library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        memchr = library.memchr
    except (OSError, AttributeError):
        return None
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memchr.restype = ctypes.c_void_p
    return memchr
