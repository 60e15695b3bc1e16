"""Display controllers as Linux lists them: `/sys/class/drm/cardN` with a driver, `/sys/bus/pci/devices` without."""

from __future__ import annotations

import re

import attrs

from velollm.hardware.host import Host

__all__ = ["Card", "drm_cards", "pci_display", "temperature_and_power"]

DRM = "/sys/class/drm"
PCI = "/sys/bus/pci/devices"
CARD = re.compile(r"card\d{1,3}")


@attrs.frozen(kw_only=True)
class Card:
    """One card: `folder` is its device's, `address` such as `0000:03:00.0`."""

    name: str
    folder: str
    vendor: int
    device: int
    driver: str
    address: str


def drm_cards(host: Host, vendor: int) -> list[Card]:
    """The cards of a maker that a kernel driver has taken."""
    found = []
    for name in host.names(DRM):
        folder = f"{DRM}/{name}/device"
        if not CARD.fullmatch(name) or host.number(f"{folder}/vendor") != vendor:
            continue
        event = dict(line.split("=", 1) for line in (host.read(f"{folder}/uevent") or "").splitlines() if "=" in line)
        found.append(
            Card(
                name=name,
                folder=folder,
                vendor=vendor,
                device=host.number(f"{folder}/device") or 0,
                driver=event.get("DRIVER", ""),
                address=event.get("PCI_SLOT_NAME", ""),
            )
        )
    return found


def pci_display(host: Host, vendor: int) -> list[str]:
    """The addresses of a maker's display controllers, whether or not a driver has them."""
    found = []
    for address in host.names(PCI):
        kind = host.number(f"{PCI}/{address}/class") or 0
        if kind >> 16 == 0x03 and host.number(f"{PCI}/{address}/vendor") == vendor:
            found.append(address)
    return found


def temperature_and_power(host: Host, card: Card) -> dict[str, float | None]:
    """What the card's hwmon says, in degrees and watts."""
    for name in host.names(f"{card.folder}/hwmon"):
        folder = f"{card.folder}/hwmon/{name}"
        raw = {
            "temperature": (host.number(f"{folder}/temp1_input"), 1e3),
            "power": (host.number(f"{folder}/power1_average") or host.number(f"{folder}/power1_input"), 1e6),
            "power_limit": (host.number(f"{folder}/power1_cap") or host.number(f"{folder}/power1_max"), 1e6),
            "power_default": (host.number(f"{folder}/power1_cap_default"), 1e6),
        }
        return {key: value / unit if value else None for key, (value, unit) in raw.items()}
    return {}
