"""What this machine is: `detect()` looks at it, `gguf` says what fits, `Machine` is the answer."""

from __future__ import annotations

from velollm.hardware.host import Host, LocalHost, Note
from velollm.hardware.machine import CPU, GPU, Cache, Disk, Engine, LoadedModel, Machine, Memory, MigSlice, System

__all__ = [
    "CPU",
    "GPU",
    "Cache",
    "Disk",
    "Engine",
    "Host",
    "LoadedModel",
    "LocalHost",
    "Machine",
    "Memory",
    "MigSlice",
    "Note",
    "System",
    "detect",
    "read_machine",
]
from velollm.hardware.detection import detect, read_machine
