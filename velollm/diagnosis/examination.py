"""`doctor()`: every rule, on what was gathered."""

from __future__ import annotations

import time
from pathlib import Path

import attrs

from velollm.diagnosis import of_engines, of_machine, of_setup
from velollm.diagnosis.facts import Facts, gather
from velollm.diagnosis.finding import Finding
from velollm.hardware import Host, LocalHost, Machine, detect

__all__ = ["IDS", "doctor", "examine"]

ORDER = {"error": 0, "warning": 1, "info": 2}
# Every id there is; each has a section in docs/doctor.md.
IDS = (
    "busy-waiting", "cache-clock", "config-invalid", "context-reloads", "dead-variable", "disk-nearly-full",
    "engine-not-running", "exposed-without-keys", "governor-powersave", "gpu-driver-hangs", "gpu-memory-taken",
    "gpu-without-driver", "keep-alive-zero", "keys-readable", "kv-type-ignored", "memory-limit-small", "model-on-cpu",
    "narrow-build", "no-model", "old-version", "one-slot", "pcie-narrow", "port-taken", "power-limit", "prompts-cut",
    "swap-in-use", "thermal-limit", "threads-exceed-limit", "unknown-variable",
)  # fmt: skip


def doctor(
    *, host: Host | None = None, machine: Machine | None = None, config: Path | None = None
) -> list[dict[str, str]]:
    """What is wrong here: `{"id", "severity", "evidence", "remedy"}`, the worst first. An empty list is good news."""
    host = host or LocalHost()
    machine = machine or detect(host, bandwidth=False)
    return [attrs.asdict(finding) for finding in examine(gather(host, machine, config), now=time.time())]


def examine(facts: Facts, *, now: float) -> list[Finding]:
    """The findings of all rules, the worst first; `now` in seconds since 1970."""
    rules = (*of_engines.RULES, *of_machine.RULES, *of_setup.RULES)
    found = [finding for rule in rules for finding in rule(facts)]
    found += of_setup.clock(facts, now)
    return sorted(dict.fromkeys(found), key=lambda finding: ORDER[finding.severity])
