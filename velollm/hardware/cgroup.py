"""What a control group allows: the numbers that count inside Docker, Kubernetes, LXC and systemd units."""

from __future__ import annotations

import attrs

from velollm.hardware.host import Host

__all__ = ["Limits", "read_limits"]

ROOT = "/sys/fs/cgroup"
UNLIMITED = 1 << 60  # version 1 says "no limit" with a number just below 2**63
DEEPEST = 32


@attrs.frozen(kw_only=True)
class Limits:
    """`cpus` may be a fraction; `memory` in bytes with `memory_used` of it, page cache that can go not counted."""

    cpus: float | None = None
    memory: int | None = None
    memory_used: int = 0


def read_limits(host: Host) -> Limits:
    """The tightest limits on the way from this process's group to the root."""
    groups: dict[str, str] = {}
    for line in (host.read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in controllers.split(","):
            groups[name] = path
    if host.read(f"{ROOT}/cgroup.controllers") is not None or "cpu" not in groups:
        return _version_2(host, groups.get("", "/"))
    return _version_1(host, groups)


def _version_2(host: Host, path: str) -> Limits:
    limits = Limits()
    for folder in _upwards(ROOT, path):
        quota, _, period = (host.read(f"{folder}/cpu.max") or "").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            limits = _tighter(limits, cpus=int(quota) / int(period))
        limit = host.read(f"{folder}/memory.max") or ""
        if limit.isdigit():
            used = host.number(f"{folder}/memory.current") or 0
            reclaimable = _stat(host, f"{folder}/memory.stat", "inactive_file")
            limits = _tighter(limits, memory=int(limit), used=max(used - reclaimable, 0))
    return limits


def _version_1(host: Host, groups: dict[str, str]) -> Limits:
    limits = Limits()
    for mount in ("cpu", "cpu,cpuacct"):
        for folder in _upwards(f"{ROOT}/{mount}", groups.get("cpu", "/")):
            quota, period = host.number(f"{folder}/cpu.cfs_quota_us"), host.number(f"{folder}/cpu.cfs_period_us")
            if quota and period and quota > 0 and period > 0:
                limits = _tighter(limits, cpus=quota / period)
    for folder in _upwards(f"{ROOT}/memory", groups.get("memory", "/")):
        limit = host.number(f"{folder}/memory.limit_in_bytes")
        if limit is not None and 0 < limit < UNLIMITED:
            used = host.number(f"{folder}/memory.usage_in_bytes") or 0
            reclaimable = _stat(host, f"{folder}/memory.stat", "total_inactive_file")
            limits = _tighter(limits, memory=limit, used=max(used - reclaimable, 0))
    return limits


def _tighter(limits: Limits, *, cpus: float | None = None, memory: int | None = None, used: int = 0) -> Limits:
    if cpus is not None and cpus > 0 and (limits.cpus is None or cpus < limits.cpus):
        limits = attrs.evolve(limits, cpus=cpus)
    if memory is not None and (limits.memory is None or memory - used < limits.memory - limits.memory_used):
        limits = attrs.evolve(limits, memory=memory, memory_used=used)
    return limits


def _upwards(root: str, path: str) -> list[str]:
    """The group's folder and its parents. In a container the path may be the host's, and only the root is there."""
    parts = [part for part in path.split("/") if part and part != ".."][:DEEPEST]
    return ["/".join([root, *parts[:length]]) for length in range(len(parts), -1, -1)]


def _stat(host: Host, path: str, key: str) -> int:
    for line in (host.read(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0
