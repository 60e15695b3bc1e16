"""The processor: cores of each kind, vector units, caches, NUMA, clocks, and how much of it this process may use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from velollm.hardware.cgroup import Limits
from velollm.hardware.host import Host
from velollm.hardware.isa import ARM_CORES, isa_of_linux, isa_of_mac
from velollm.hardware.machine import CPU, Cache

__all__ = ["cpu_list", "read_cpu", "sysctl"]

SYSFS = "/sys/devices/system/cpu"
MOST_CPUS = 8192
SIZE = re.compile(r"(\d+)([KMG]?)")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_cpu(host: Host, limits: Limits) -> CPU:
    """The processor of any system; what a system does not tell stays unknown."""
    if host.system == "linux":
        return _linux(host, limits)
    if host.system == "darwin":
        return _mac(host)
    return _other(host)


def cpu_list(text: str) -> list[int]:
    """The numbers in `0-3,8`; empty for what is none, or absurd."""
    numbers: list[int] = []
    for part in text.split(","):
        first, sep, last = part.strip().partition("-")
        last = last if sep else first
        if not first.isdigit() or not last.isdigit() or int(last[:9]) >= MOST_CPUS:
            return []
        numbers.extend(range(int(first), int(last) + 1))
    return numbers


def usable(physical: int, quota: float | None) -> int:
    """Cores within a quota: a fraction of a core is one that computes slowly."""
    return max(1, physical if quota is None else min(physical, math.floor(quota)))


# ---- Linux -----------------------------------------------------------------------------------------------------------


def _linux(host: Host, limits: Limits) -> CPU:
    info = _cpuinfo(host)
    online = cpu_list(host.read(f"{SYSFS}/online") or "") or list(range(max(len(info), 1)))
    allowed = [cpu for cpu in _allowed(host) if cpu in set(online)] or online
    first = info[0] if info else {}
    cores = {cpu: _core(host, cpu) for cpu in online}
    fast, slow = _kinds(host, online)
    mine = {cores[cpu] for cpu in allowed if not slow or cpu in fast} or {cores[cpu] for cpu in allowed}
    folder = f"{SYSFS}/cpu{online[0]}/cpufreq"
    clocks = [host.number(f"{SYSFS}/cpu{cpu}/cpufreq/cpuinfo_max_freq") for cpu in (online[0], online[-1])]
    load = (host.read("/proc/loadavg") or "").partition(" ")[0]
    return CPU(
        model=_model(first),
        vendor=first.get("vendor_id", ""),
        sockets=len({core[0] for core in cores.values()}),
        physical=len(set(cores.values())),
        logical=len(online),
        performance=len({cores[cpu] for cpu in fast}),
        efficiency=len({cores[cpu] for cpu in slow}),
        usable_cores=usable(len(mine), limits.cpus),
        affinity=len(allowed) if len(allowed) < len(online) else None,
        quota=limits.cpus,
        isa=isa_of_linux(set((first.get("flags") or first.get("Features") or "").split())),
        caches=_caches(host, online),
        numa_nodes=max(
            1, sum(name.startswith("node") and name[4:].isdigit() for name in host.names("/sys/devices/system/node"))
        ),
        max_clock=max((clock * 1000 for clock in clocks if clock), default=None),
        governor=host.read(f"{folder}/scaling_governor") or "",
        load=_decimal(load),
        throttle_count=host.number(f"{SYSFS}/cpu{online[0]}/thermal_throttle/package_throttle_count"),
    )


def _cpuinfo(host: Host) -> list[dict[str, str]]:
    """One dictionary a processor; on Arm the common facts of the last paragraph are in the first, too."""
    blocks: list[dict[str, str]] = []
    common: dict[str, str] = {}
    for paragraph in (host.read("/proc/cpuinfo") or "").split("\n\n"):
        values = {}
        for line in paragraph.splitlines():
            key, sep, value = line.partition(":")
            if sep:
                values[key.strip()] = value.strip()
        if "processor" in values:
            blocks.append(values)
        else:
            common.update(values)
    if blocks:
        blocks[0] = {**common, **blocks[0]}
    return blocks


def _model(first: dict[str, str]) -> str:
    name = first.get("model name") or first.get("cpu model") or first.get("uarch") or ""
    try:
        known = ARM_CORES.get((int(first.get("CPU implementer", ""), 0), int(first.get("CPU part", ""), 0)))
    except ValueError:
        known = None
    name = name if name and not (known and name.startswith("ARM")) else known or name
    return re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)| CPU @.*| \d+-Core Processor", "", name)).strip() or "unknown"


def _core(host: Host, cpu: int) -> tuple[int, int]:
    """The socket and the core that a logical processor belongs to."""
    folder = f"{SYSFS}/cpu{cpu}/topology"
    package, core = host.number(f"{folder}/physical_package_id"), host.number(f"{folder}/core_id")
    siblings = cpu_list(host.read(f"{folder}/thread_siblings_list") or "")
    if siblings:  # core_id repeats between the clusters of some Arm chips
        return max(package or 0, 0), min(siblings)
    return max(package or 0, 0), cpu if core is None else core


def _kinds(host: Host, online: list[int]) -> tuple[set[int], set[int]]:
    """The fast and the slow processors of a hybrid, both empty where all are alike."""
    fast = cpu_list(host.read("/sys/devices/cpu_core/cpus") or "")
    slow = cpu_list(host.read("/sys/devices/cpu_atom/cpus") or "")
    if fast and slow:
        return set(fast) & set(online), set(slow) & set(online)
    capacity = {cpu: host.number(f"{SYSFS}/cpu{cpu}/cpu_capacity") or 0 for cpu in online}
    most = max(capacity.values(), default=0)
    little = {cpu for cpu, value in capacity.items() if 0 < value < 0.75 * most}
    return (set(online) - little, little) if little else (set(), set())


def _caches(host: Host, online: Iterable[int]) -> tuple[Cache, ...]:
    """Data and unified caches, each counted once however many processors share it."""
    found: dict[int, dict[str, int]] = {}
    for cpu in online:
        for name in host.names(f"{SYSFS}/cpu{cpu}/cache"):
            folder = f"{SYSFS}/cpu{cpu}/cache/{name}"
            size, level = SIZE.fullmatch(host.read(f"{folder}/size") or ""), host.number(f"{folder}/level")
            if size and level and host.read(f"{folder}/type") != "Instruction":
                shared = host.read(f"{folder}/shared_cpu_list") or str(cpu)
                found.setdefault(level, {})[shared] = int(size[1]) * UNITS[size[2]]
    return tuple(
        Cache(level=level, size=sum(sizes.values()), instances=len(sizes)) for level, sizes in sorted(found.items())
    )


def _allowed(host: Host) -> list[int]:
    for line in (host.read("/proc/self/status") or "").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return cpu_list(line.partition(":")[2])
    return []


# ---- macOS and others ------------------------------------------------------------------------------------------------


def sysctl(host: Host) -> dict[str, str]:
    """What macOS says of its hardware."""
    words = ("hw", "machdep.cpu", "vm.swapusage", "vm.loadavg")
    text = host.run("sysctl", "-i", *words, "iogpu") or host.run("sysctl", *words) or ""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, sep, value in pairs if sep}


def _mac(host: Host) -> CPU:
    values = sysctl(host)

    def number(key: str, default: int = 0) -> int:
        return int(values[key]) if values.get(key, "").isdigit() else default

    physical = number("hw.physicalcpu", 1)
    fast, slow = number("hw.perflevel0.physicalcpu"), number("hw.perflevel1.physicalcpu")
    cores = fast or physical
    caches = [
        Cache(level=1, size=number("hw.perflevel0.l1dcachesize", number("hw.l1dcachesize")) * cores, instances=cores),
        Cache(level=2, size=number("hw.perflevel0.l2cachesize", number("hw.l2cachesize")), instances=1),
        Cache(level=3, size=number("hw.l3cachesize"), instances=1),
    ]
    load = values.get("vm.loadavg", "").strip("{ }").partition(" ")[0]
    return CPU(
        model=values.get("machdep.cpu.brand_string", "unknown"),
        vendor="Apple"
        if "Apple" in values.get("machdep.cpu.brand_string", "")
        else values.get("machdep.cpu.vendor", ""),
        physical=physical,
        logical=number("hw.logicalcpu", physical),
        performance=fast if slow else 0,
        efficiency=slow,
        usable_cores=cores,
        isa=isa_of_mac(values),
        caches=tuple(cache for cache in caches if cache.size),
        max_clock=number("hw.cpufrequency_max") or None,
        load=_decimal(load),
    )


def _other(host: Host) -> CPU:
    psutil = host.library("psutil")
    logical = int(host.environ.get("NUMBER_OF_PROCESSORS", "0") or 0)
    physical = 0
    if psutil is not None:
        logical, physical = psutil.cpu_count() or logical, psutil.cpu_count(logical=False) or 0
    else:
        host.note("psutil", 'is not installed, so the cores are a guess: pip install "velollm[hardware]"')
    logical = max(logical, 1)
    physical = physical or max(1, logical // 2 if logical > 2 else logical)
    return CPU(
        model=_windows_name(host) or host.environ.get("PROCESSOR_IDENTIFIER", "unknown"),
        physical=physical,
        logical=logical,
        usable_cores=physical,
    )


def _windows_name(host: Host) -> str:
    text = host.run("reg", "query", r"HKLM\HARDWARE\DESCRIPTION\System\CentralProcessor\0", "/v", "ProcessorNameString")
    match = re.search(r"REG_SZ\s+(.+)", text or "")
    return match[1].strip() if match else ""


def _decimal(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
