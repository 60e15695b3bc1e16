"""The operating system, and what stands between it and the metal: containers, WSL, virtual machines."""

from __future__ import annotations

import re

from velollm.hardware.host import Host
from velollm.hardware.machine import Disk, System

__all__ = ["read_disk", "read_system"]

MARKS = (
    ("docker", "docker"),
    ("kubepods", "kubernetes"),
    ("libpod", "podman"),
    ("containerd", "docker"),
    ("/lxc", "lxc"),
)


def read_system(host: Host) -> System:
    """What runs here."""
    if host.system == "linux":
        return _linux(host)
    if host.system == "darwin":
        words = dict(line.split(":\t", 1) for line in (host.run("sw_vers") or "").splitlines() if ":\t" in line)
        name = f"{words.get('ProductName', 'macOS').strip()} {words.get('ProductVersion', '').strip()}".strip()
        return System(name=name, kernel=host.run("uname", "-r") or "", arch=host.arch)
    return System(name=(host.run("cmd", "/c", "ver") or host.system.capitalize()).strip(), arch=host.arch)


def read_disk(host: Host, path: str) -> Disk | None:
    """The space where models are kept."""
    space = host.disk(path)
    return Disk(path=path, total=space[0], free=space[1]) if space else None


def _linux(host: Host) -> System:
    release = dict(line.split("=", 1) for line in (host.read("/etc/os-release") or "").splitlines() if "=" in line)
    version = host.read("/proc/version") or ""
    kernel = host.read("/proc/sys/kernel/osrelease") or (re.findall(r"Linux version (\S+)", version) or [""])[0]
    wsl = 0
    if "microsoft" in kernel.lower() or "microsoft" in version.lower():
        wsl = 2 if "wsl2" in kernel.lower() or "microsoft-standard" in kernel.lower() else 1
    return System(
        name=release.get("PRETTY_NAME", "Linux").strip("\"'"),
        kernel=kernel,
        arch=host.arch,
        board=host.read("/proc/device-tree/model") or _dmi(host),
        container=_container(host),
        wsl=wsl,
        virtual=_virtual(host) if not wsl else "",
    )


def _container(host: Host) -> str:
    if host.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if host.read("/run/.containerenv") is not None:
        return "podman"
    groups = host.read("/proc/self/cgroup") or ""
    for mark, name in MARKS:
        if mark in groups:
            return name
    if host.read("/.dockerenv") is not None:
        return "docker"
    return "lxc" if "container=lxc" in (host.read("/proc/1/environ") or "").split("\0") else ""


def _dmi(host: Host) -> str:
    return " ".join(word for key in ("sys_vendor", "product_name") if (word := host.read(f"/sys/class/dmi/id/{key}")))


def _virtual(host: Host) -> str:
    info = host.read("/proc/cpuinfo") or ""
    if not re.search(r"^flags\s*:.*\bhypervisor\b", info, re.MULTILINE):
        return ""
    vendor = (host.read("/sys/class/dmi/id/sys_vendor") or "").lower()
    names = {"qemu": "KVM", "amazon": "KVM", "google": "KVM", "microsoft": "Hyper-V", "vmware": "VMware", "xen": "Xen"}
    return next((name for word, name in names.items() if word in vendor), "virtual machine")
