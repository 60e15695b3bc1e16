"""NVIDIA: by NVML where its Python module is there, else by nvidia-smi, else a word about what is missing."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from typing import Any

import attrs

from velollm.hardware.gpus.pci import pci_display
from velollm.hardware.host import Host
from velollm.hardware.machine import GPU, MigSlice

__all__ = ["read_nvidia"]

VENDOR = 0x10DE
MOST = 64
MIB = 1 << 20
SMI_SECONDS = 0.7
FIELDS = (
    "index", "name", "uuid", "memory.total", "memory.free", "driver_version", "compute_cap", "power.limit",
    "power.default_limit", "power.draw", "temperature.gpu", "clocks.max.memory", "clocks_throttle_reasons.active",
    "pcie.link.width.current", "pcie.link.width.max", "mig.mode.current", "pci.bus_id",
)  # fmt: skip
OLD_FIELDS = FIELDS[:6]  # what drivers of every age know
MIG_LINE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (\S+)\)")
MIG_SIZE = re.compile(r"\.(\d+)gb")
# Bits of nvml.h that hold clocks down for a reason a person can do something about.
THROTTLE = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal", 0x40: "hardware thermal", 0x80: "power brake"}
# Width of the memory bus in bits, for nvidia-smi does not tell it. Longest name first.
BUS = {
    "RTX 4090 Laptop": 256, "RTX 4080 Laptop": 192, "RTX 4070 Laptop": 128, "RTX 4060 Laptop": 128,
    "RTX 4050 Laptop": 96, "RTX 5090 Laptop": 256, "RTX 5080 Laptop": 256, "RTX 5070 Ti Laptop": 192,
    "RTX 5070 Laptop": 128,
    "RTX 3080 Laptop": 256, "RTX 3070 Laptop": 256, "RTX 3060 Laptop": 192, "RTX 3050": 128,
    "RTX 5090": 512, "RTX 5080": 256, "RTX 5070 Ti": 256, "RTX 5070": 192, "RTX 5060": 128,
    "RTX 4090": 384, "RTX 4080": 256, "RTX 4070 Ti SUPER": 256, "RTX 4070": 192, "RTX 4060": 128,
    "RTX 3090": 384, "RTX 3080 Ti": 384, "RTX 3080": 320, "RTX 3070": 256, "RTX 3060 Ti": 256, "RTX 3060": 192,
    "RTX 2080 Ti": 352, "RTX 2080": 256, "RTX 2070": 256, "RTX 2060": 192, "GTX 1080 Ti": 352, "GTX 1080": 256,
    "RTX A6000": 384, "RTX 6000 Ada": 384, "H200": 6144, "H100": 5120, "A100": 5120, "V100": 4096, "L40": 384,
    "A10": 384, "A40": 384, "L4": 192, "Tesla T4": 256, "Tesla P40": 384, "B200": 8192,
}  # fmt: skip


def read_nvidia(host: Host, memory: int) -> list[GPU]:
    """The GPUs of NVIDIA, `memory` being the system's (Jetson and Grace-Blackwell desktops compute in it)."""
    found = _by_nvml(host)
    if found is None:
        found = _by_smi(host)
    if found is None:
        found = []
        cards = pci_display(host, VENDOR)
        if cards:
            count = f"{len(cards)} NVIDIA GPUs are" if len(cards) > 1 else "an NVIDIA GPU is"
            host.note("nvidia-smi", f"{count} on the bus, but there is no working driver")
    return [_share(gpu, memory) for gpu in found]


def _share(gpu: GPU, memory: int) -> GPU:
    """Those without memory of their own (NVML does not support the question there)."""
    if gpu.memory_total is not None:
        return gpu
    return attrs.evolve(gpu, memory_total=memory, unified=True)


# ---- NVML ------------------------------------------------------------------------------------------------------------


def _by_nvml(host: Host) -> list[GPU] | None:
    nvml = host.library("pynvml")
    if nvml is None:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None  # no driver; nvidia-smi, or its absence, tells more
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        count = min(nvml.nvmlDeviceGetCount(), MOST)
        return [_nvml_gpu(nvml, index, driver) for index in range(count)]
    except nvml.NVMLError as error:
        host.note("pynvml", str(error))
        return None
    finally:
        nvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, index: int, driver: str) -> GPU:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(name: str, *arguments: Any) -> Any:
        """The answer to a question that this GPU, driver or module may not know."""
        function: Callable[..., Any] | None = getattr(nvml, name, None)
        try:
            return function(handle, *arguments) if function is not None else None
        except nvml.NVMLError:
            return None

    memory = ask("nvmlDeviceGetMemoryInfo")
    capability = ask("nvmlDeviceGetCudaComputeCapability")
    clock, width = ask("nvmlDeviceGetMaxClockInfo", 2), ask("nvmlDeviceGetMemoryBusWidth")
    limit, default = ask("nvmlDeviceGetEnforcedPowerLimit"), ask("nvmlDeviceGetPowerManagementDefaultLimit")
    power = ask("nvmlDeviceGetPowerUsage")
    reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    mode = ask("nvmlDeviceGetMigMode")
    pci = ask("nvmlDeviceGetPciInfo")
    return GPU(
        vendor="nvidia",
        name=_text(ask("nvmlDeviceGetName") or "NVIDIA GPU"),
        index=index,
        memory_total=memory.total if memory else None,
        memory_free=memory.free if memory else None,
        driver=driver,
        compute=f"{capability[0]}.{capability[1]}" if capability else "",
        bandwidth=_bandwidth(clock, width),
        power_limit=limit / 1000 if limit else None,
        power_default=default / 1000 if default else None,
        power=power / 1000 if power else None,
        temperature=ask("nvmlDeviceGetTemperature", 0),
        throttled=_reasons(reasons),
        pcie_width=ask("nvmlDeviceGetCurrPcieLinkWidth"),
        pcie_width_max=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        mig=_nvml_mig(nvml, ask) if mode and mode[0] == 1 else (),
        pci=_text(pci.busId).lower() if pci else "",
        source="pynvml",
    )


def _nvml_mig(nvml: Any, ask: Callable[..., Any]) -> tuple[MigSlice, ...]:
    slices = []
    for index in range(min(ask("nvmlDeviceGetMaxMigDeviceCount") or 0, MOST)):
        part = ask("nvmlDeviceGetMigDeviceHandleByIndex", index)
        if part is None:
            continue
        try:
            name = _text(nvml.nvmlDeviceGetName(part))
            slices.append(
                MigSlice(
                    profile=name.rpartition("MIG ")[2],
                    uuid=_text(nvml.nvmlDeviceGetUUID(part)),
                    memory_total=nvml.nvmlDeviceGetMemoryInfo(part).total,
                )
            )
        except nvml.NVMLError:
            continue
    return tuple(slices)


# ---- nvidia-smi ------------------------------------------------------------------------------------------------------


def _by_smi(host: Host) -> list[GPU] | None:
    fields: tuple[str, ...] = FIELDS
    text = _query(host, fields)
    if text is None and any("not a valid field" in note.problem for note in host.notes):
        fields = OLD_FIELDS
        text = _query(host, fields)
    if text is None:
        return None
    rows = [row for row in csv.reader(text.splitlines()[:MOST], skipinitialspace=True) if len(row) == len(fields)]
    told = [{**dict.fromkeys(FIELDS, ""), **dict(zip(fields, row, strict=True))} for row in rows]
    found = [_smi_gpu(row) for row in told]
    if any(row["mig.mode.current"] == "Enabled" for row in told):
        found = _with_mig(found, host.run("nvidia-smi", "-L", seconds=SMI_SECONDS) or "")
    if not found:
        host.note("nvidia-smi", (text.splitlines() or ["printed nothing"])[0][:200])
        return None
    return found


def _query(host: Host, fields: tuple[str, ...]) -> str | None:
    return host.run(
        "nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", seconds=SMI_SECONDS
    )


def _smi_gpu(row: dict[str, str]) -> GPU:
    def number(key: str, unit: float = 1) -> float | None:
        try:
            value = float(row[key])
        except ValueError:  # [N/A], [Not Supported], [Insufficient Permissions]
            return None
        return value * unit if 0 <= value < 1e9 else None

    def whole(key: str, unit: int = 1) -> int | None:
        value = number(key)
        return int(value) * unit if value is not None else None

    mask = row["clocks_throttle_reasons.active"]
    width = next((BUS[name] for name in sorted(BUS, key=len, reverse=True) if name in row["name"]), None)
    return GPU(
        vendor="nvidia",
        name=row["name"],
        index=whole("index") or 0,
        memory_total=whole("memory.total", MIB),
        memory_free=whole("memory.free", MIB),
        driver=row["driver_version"],
        compute=row["compute_cap"] if number("compute_cap") is not None else "",
        bandwidth=_bandwidth(number("clocks.max.memory"), width),
        power_limit=number("power.limit"),
        power_default=number("power.default_limit"),
        power=number("power.draw"),
        temperature=number("temperature.gpu"),
        throttled=_reasons(int(mask, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", mask) else 0),
        pcie_width=whole("pcie.link.width.current"),
        pcie_width_max=whole("pcie.link.width.max"),
        pci=row["pci.bus_id"].lower(),
        source="nvidia-smi",
    )


def _with_mig(found: list[GPU], listing: str) -> list[GPU]:
    """The GPUs with the parts that `nvidia-smi -L` lists below each."""
    parts: dict[int, list[MigSlice]] = {}
    current = -1
    for line in listing.splitlines():
        head = re.match(r"GPU (\d+):", line)
        if head:
            current = int(head[1])
        match = MIG_LINE.match(line)
        if match:
            size = MIG_SIZE.search(match[1])
            parts.setdefault(current, []).append(
                MigSlice(
                    profile=match[1],
                    uuid=match[2],
                    memory_total=int(size[1]) << 30 if size and int(size[1]) < 100_000 else None,
                )
            )
    return [attrs.evolve(gpu, mig=tuple(parts.get(gpu.index, ()))) for gpu in found]


def _bandwidth(clock_mhz: float | None, bits: int | None) -> int | None:
    """Two transfers a clock, as NVML counts the clock of GDDR and HBM alike."""
    return int(clock_mhz * 1_000_000 * 2 * bits / 8) if clock_mhz and bits else None


def _reasons(mask: int) -> tuple[str, ...]:
    return tuple(name for bit, name in THROTTLE.items() if mask & bit)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
