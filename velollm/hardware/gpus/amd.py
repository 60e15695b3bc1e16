"""AMD: from sysfs, which the amdgpu driver fills without any tool; rocm-smi only for a name that is not known here."""

from __future__ import annotations

import json
from typing import Any

from velollm.hardware.gpus.pci import Card, drm_cards, pci_display, temperature_and_power
from velollm.hardware.host import Host
from velollm.hardware.machine import GPU

__all__ = ["read_amd"]

VENDOR = 0x1002
KFD = "/sys/class/kfd/kfd/topology/nodes"
INTEGRATED_LIMIT = (
    4 << 30
)  # a carve-out of system memory for an APU is rarely larger, a card's own memory rarely smaller
APUS = {
    0x1586: "Radeon 8060S", 0x150E: "Radeon 890M", 0x15BF: "Radeon 780M", 0x15C8: "Radeon 740M", 0x1900: "Radeon 780M",
    0x1681: "Radeon 680M", 0x164E: "Radeon Graphics (Raphael)", 0x1638: "Radeon Vega (Cezanne)",
    0x1636: "Radeon Vega (Renoir)", 0x15D8: "Radeon Vega (Picasso)", 0x13C0: "Radeon Graphics (Granite Ridge)",
}  # fmt: skip
CARDS = {
    0x744C: "Radeon RX 7900 XT/XTX", 0x747E: "Radeon RX 7700/7800 XT", 0x7480: "Radeon RX 7600",
    0x7448: "Radeon Pro W7900", 0x7550: "Radeon RX 9070", 0x7590: "Radeon RX 9060 XT",
    0x73BF: "Radeon RX 6800/6900 XT", 0x73DF: "Radeon RX 6700 XT",
    0x73FF: "Radeon RX 6600", 0x740C: "Instinct MI250X", 0x740F: "Instinct MI210", 0x74A1: "Instinct MI300X",
    0x74A0: "Instinct MI300A", 0x738C: "Instinct MI100", 0x66AF: "Radeon VII",
}  # fmt: skip
# GDDR6 moves 16 bits a pin and clock as the driver counts it; HBM's rate is listed, for the driver's clock varies.
GDDR6_RATE = 16
HBM = {0x740C: 3277, 0x740F: 1638, 0x74A1: 5300, 0x74A0: 5300, 0x738C: 1229, 0x66AF: 1024}  # GB/s


def read_amd(host: Host, memory: int) -> list[GPU]:
    """The GPUs of AMD; `memory` is the system's, which APUs share."""
    cards = [card for card in drm_cards(host, VENDOR) if card.driver in ("amdgpu", "")]
    if not cards:
        if pci_display(host, VENDOR) and host.system == "linux":
            host.note("amdgpu", "an AMD GPU is on the bus, but the amdgpu driver does not run it")
        return []
    topology = _topology(host)
    known = all(card.device in APUS or card.device in CARDS for card in cards)
    names = {} if known else _rocm_names(host)
    return [_gpu(host, card, index, topology, names, memory) for index, card in enumerate(cards)]


def _gpu(
    host: Host, card: Card, index: int, topology: dict[int, dict[str, int]], names: dict[str, str], memory: int
) -> GPU:
    total, used = (host.number(f"{card.folder}/mem_info_vram_{word}") for word in ("total", "used"))
    shared, shared_used = (host.number(f"{card.folder}/mem_info_gtt_{word}") for word in ("total", "used"))
    unified = card.device in APUS or (card.device not in CARDS and total is not None and total < INTEGRATED_LIMIT)
    if unified:  # the carve-out and what the driver may map of the rest
        total = min((total or 0) + (shared or 0), memory + (total or 0)) or None
        used = (used or 0) + (shared_used or 0)
    facts = topology.get(host.number(f"{card.folder}/drm_render_minor") or _render_minor(host, card), {})
    if not facts and len(topology) == 1:
        facts = next(iter(topology.values()))
    target = facts.get("gfx_target_version", 0)
    width, clock = facts.get("width"), facts.get("mem_clk_max")
    bandwidth = HBM[card.device] * 10**9 if card.device in HBM else None
    if bandwidth is None and not unified and width and clock:
        bandwidth = width * clock * 1_000_000 * GDDR6_RATE // 8
    if not topology:
        host.note(
            "/dev/kfd", "the compute part of amdgpu (KFD) is missing or may not be read, so ROCm cannot use the GPU"
        )
    return GPU(
        vendor="amd",
        name=APUS.get(card.device) or CARDS.get(card.device) or names.get(card.name) or f"AMD GPU {card.device:#06x}",
        index=index,
        memory_total=total,
        memory_free=max(total - (used or 0), 0) if total is not None else None,
        unified=unified,
        driver=host.read("/sys/module/amdgpu/version") or "amdgpu",
        compute=_target(target),
        bandwidth=bandwidth,
        pcie_width=host.number(f"{card.folder}/current_link_width") if not unified else None,
        pcie_width_max=host.number(f"{card.folder}/max_link_width") if not unified else None,
        pci=card.address,
        source="sysfs",
        **temperature_and_power(host, card),  # type: ignore[arg-type]
    )


def _target(version: int) -> str:
    """`gfx1100` of 110000, `gfx90a` of 90010: major, minor and stepping, the last two in hexadecimal."""
    if not 0 < version < 1_000_000:
        return ""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _render_minor(host: Host, card: Card) -> int:
    for name in host.names(f"{card.folder}/drm"):
        if name.startswith("renderD") and name[7:].isdigit():
            return int(name[7:])
    return -1


def _topology(host: Host) -> dict[int, dict[str, int]]:
    """What KFD says of each GPU, by its render node: target, and the bus and clock of its memory."""
    found = {}
    for node in host.names(KFD):
        facts = _properties(host.read(f"{KFD}/{node}/properties"))
        if facts.get("simd_count"):
            bank = _properties(host.read(f"{KFD}/{node}/mem_banks/0/properties"))
            found[facts.get("drm_render_minor", -1)] = {**facts, **bank}
    return found


def _properties(text: str | None) -> dict[str, int]:
    pairs = (line.split() for line in (text or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit() and len(pair[1]) < 19}


def _rocm_names(host: Host) -> dict[str, str]:
    text = host.run("rocm-smi", "--showproductname", "--json")
    try:
        answer: Any = json.loads(text) if text else {}
    except ValueError:
        host.note("rocm-smi", "printed no JSON")
        return {}
    found = {}
    for card, facts in answer.items() if isinstance(answer, dict) else ():
        name = (facts.get("Card Series") or facts.get("Card series")) if isinstance(facts, dict) else None
        if isinstance(name, str) and name and not name.startswith("0x"):
            found[card] = name
    return found
