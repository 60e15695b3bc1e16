"""Intel: from sysfs, with xpu-smi for the name and the memory where it is installed."""

from __future__ import annotations

import json
from typing import Any

from velollm.hardware.gpus.pci import Card, drm_cards, temperature_and_power
from velollm.hardware.host import Host
from velollm.hardware.machine import GPU

__all__ = ["read_intel"]

VENDOR = 0x8086
GIB = 1 << 30
# Device: name, GiB of its own memory, GB/s of it.
CARDS = {
    0x56A0: ("Arc A770", 16, 560), 0x56A1: ("Arc A750", 8, 512), 0x56A2: ("Arc A580", 8, 512),
    0x56A5: ("Arc A380", 6, 186), 0x56A6: ("Arc A310", 4, 124), 0x5690: ("Arc A770M", 16, 512),
    0xE20B: ("Arc B580", 12, 456), 0xE20C: ("Arc B570", 10, 380), 0xE211: ("Arc Pro B60", 24, 456),
    0xE212: ("Arc Pro B50", 16, 224), 0x56C0: ("Data Center GPU Flex 170", 16, 576),
    0x0BD5: ("Data Center GPU Max 1550", 128, 3277), 0x0BDA: ("Data Center GPU Max 1100", 48, 1229),
}  # fmt: skip
INTEGRATED = {
    0x64A0: "Arc 140V", 0x7D55: "Arc Graphics (Meteor Lake)", 0x7D51: "Arc 140T", 0x7D45: "Graphics (Meteor Lake)",
    0xA7A0: "Iris Xe (Raptor Lake)", 0xA7A1: "Iris Xe (Raptor Lake)", 0x46A6: "Iris Xe (Alder Lake)",
    0x46A8: "Iris Xe (Alder Lake)", 0x9A49: "Iris Xe (Tiger Lake)", 0xA780: "UHD Graphics 770",
    0x4680: "UHD Graphics 770", 0xB080: "Graphics (Panther Lake)",
}  # fmt: skip


def read_intel(host: Host, memory: int) -> list[GPU]:
    """The GPUs of Intel; `memory` is the system's, half of which an integrated one may use."""
    cards = [card for card in drm_cards(host, VENDOR) if card.driver in ("i915", "xe", "")]
    if not cards:
        return []
    told = _xpu_smi(host) if any(card.device not in INTEGRATED for card in cards) else {}
    return [_gpu(host, card, index, told.get(card.address, {}), memory) for index, card in enumerate(cards)]


def _gpu(host: Host, card: Card, index: int, told: dict[str, Any], memory: int) -> GPU:
    name, gib, rate = CARDS.get(card.device, ("", 0, 0))
    size = _whole(told.get("memory_physical_size_byte")) or _local_memory(host, card) or gib * GIB
    free = host.number(f"/sys/class/drm/{card.name}/lmem_avail_bytes")
    unified = not size
    title = str(told.get("device_name") or "").replace("(R)", "").replace("(TM)", "").strip()
    return GPU(
        vendor="intel",
        name=title or f"Intel {name or INTEGRATED.get(card.device) or f'GPU {card.device:#06x}'}",
        index=index,
        memory_total=size or memory // 2,
        memory_free=free if not unified else None,
        unified=unified,
        driver=str(told.get("driver_version") or card.driver),
        bandwidth=rate * 10**9 or None,
        pcie_width=None,
        pci=card.address,
        source="xpu-smi" if told else "sysfs",
        **temperature_and_power(host, card),  # type: ignore[arg-type]
    )


def _local_memory(host: Host, card: Card) -> int:
    """Bytes of a discrete card: as the driver says, or the size of its second window when that shows all of it."""
    told = host.number(f"/sys/class/drm/{card.name}/lmem_total_bytes")
    if told:
        return told
    if card.device in INTEGRATED:
        return 0
    lines = (host.read(f"{card.folder}/resource") or "").splitlines()
    words = lines[2].split() if len(lines) > 2 else []
    try:
        start, end = int(words[0], 16), int(words[1], 16)
    except (ValueError, IndexError):
        return 0
    size = end - start + 1 if end > start else 0
    return (
        size if size >= 2 * GIB else 0
    )  # 256 MiB: the window of a board without resizable BAR, or of an integrated one


def _xpu_smi(host: Host) -> dict[str, dict[str, Any]]:
    """What xpu-smi says, by PCI address: the list of devices, and the details of each of the first few."""
    found: dict[str, dict[str, Any]] = {}
    for device in _json(host, "xpu-smi", "discovery", "-j").get("device_list") or []:
        if isinstance(device, dict) and isinstance(device.get("device_id"), int) and len(found) < 4:
            details = _json(host, "xpu-smi", "discovery", "-d", str(device["device_id"]), "-j")
            found[str(device.get("pci_bdf_address"))] = {**device, **details}
    return found


def _json(host: Host, *command: str) -> dict[str, Any]:
    text = host.run(*command)
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        host.note(command[0], "printed no JSON")
        return {}
    return answer if isinstance(answer, dict) else {}


def _whole(value: Any) -> int:
    text = str(value)
    return int(text) if text.isdigit() and len(text) < 16 else 0
