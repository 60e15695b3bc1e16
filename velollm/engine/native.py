"""The llama.cpp that was built for this very CPU, where there is one: see `velollm.tuning.native`.

It lies beside the models, with a manifest of what it was built from and for. It has no grammars: those come from the
wheel, as before.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from velollm.models.folder import default_folder

__all__ = ["LIBRARY", "MANIFEST", "cpu_key", "find_native", "manifest_for", "native_folder"]

LIBRARY = "libllama.so"
MANIFEST = "native.json"
CPUINFO = Path("/proc/cpuinfo")


def native_folder() -> Path:
    """Where it is kept."""
    return default_folder().parent / "native"


def cpu_key(cpuinfo: Path = CPUINFO) -> str:
    """What tells CPUs apart that do not run each other's code; empty where that is not known."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16] if flags.strip() else ""


def manifest_for(version: str, wheel: Path) -> dict[str, Any]:
    """What must be as it was when it was built: version and file of the wheel that it stands in for, and the CPU."""
    return {"version": version, "wheel_size": wheel.stat().st_size, "cpu": cpu_key()}


def find_native(version: str, wheel: Path, folder: Path | None = None) -> Path | None:
    """The library that stands in for the shared object `wheel` of that version on this CPU."""
    folder = folder or native_folder()
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        wanted = manifest_for(version, wheel)
    except (OSError, ValueError):
        return None
    fits = isinstance(manifest, dict) and all(manifest.get(key) == value for key, value in wanted.items())
    return folder / LIBRARY if fits and wanted["cpu"] and (folder / LIBRARY).is_file() else None
