"""What each kernel may take on each architecture: tests/kernels/registers.json, and how it is written anew.

    PYTHONPATH=tests python -m support.kernel_gates        compiles everything: minutes, where the cache is empty

The file has the registers of a thread by kernel and architecture, as ptxas reported them when they were last looked at.
There is no stack and no spilling anywhere, so that is not written down.
"""

from __future__ import annotations

import json
from pathlib import Path

from velollm.gpu.compiler import ARCHITECTURES, Compiled, Compiler, default_cache
from velollm.gpu.kernels import catalogue

__all__ = ["GATES", "SLACK", "load", "too_much"]

GATES = Path(__file__).parent.parent / "kernels" / "registers.json"
SLACK = 8  # registers: ptxas allots them in eights


def load() -> dict[str, dict[str, int]]:
    """Registers by kernel and architecture."""
    found: dict[str, dict[str, int]] = json.loads(GATES.read_text())
    return found


def too_much(compiled: Compiled, gates: dict[str, dict[str, int]]) -> list[str]:
    """What the kernel takes beyond its gates."""
    took, name = compiled.resources, f"{compiled.kernel.name} on {compiled.architecture}"
    most = gates[compiled.kernel.name][compiled.architecture] + SLACK
    return [
        f"{name}: {value} {what}, at most {limit}"
        for what, value, limit in (
            ("registers", took.registers, most),
            ("bytes of stack", took.stack_bytes, 0),
            ("bytes spilled", took.spill_bytes, 0),
        )
        if value > limit
    ]


def record() -> None:
    """Compile everything and write the file."""
    compiler = Compiler(default_cache())
    gates: dict[str, dict[str, int]] = {}
    for kernel in catalogue():
        for architecture in ARCHITECTURES:
            if int(architecture.removeprefix("sm_")) >= kernel.minimum:
                compiled = compiler.compile(kernel, architecture)
                gates.setdefault(kernel.name, {})[architecture] = compiled.resources.registers
                assert not [text for text in too_much(compiled, gates) if "stack" in text or "spilled" in text], (
                    compiled
                )
    lines = [f"  {json.dumps(name)}: {json.dumps(registers)}" for name, registers in gates.items()]
    GATES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record()
