"""What llama.cpp says it allocates at load, against the arithmetic of `velollm.hardware.gguf`.

    python benchmarks/gguf_memory.py [NAME ...]          needs the extra llamacpp; a minute, and 10 GB of free memory

Each model is a file with a real header and holes for weights (`gguf_shapes.py`), or a real one given by its path.
Writes benchmarks/results/gguf_memory.json, which the tests compare with the arithmetic as it is today.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf_shapes import SHAPES, write_shape

from velollm.hardware.gguf import memory_needed
from velollm.models.gguf import read_gguf

RESULTS = Path(__file__).parent / "results" / "gguf_memory.json"
LOADER = Path(__file__).with_name("gguf_load.py")
CASES: list[dict[str, Any]] = [
    {"context": 4096, "slots": 1},
    {"context": 4096, "slots": 4},
    {"context": 8192, "slots": 4, "unified": True},
    {"context": 8192, "slots": 1, "kv_type": "q8_0"},
    {"context": 8192, "slots": 1, "flash_attention": False},
    {"context": 8192, "slots": 1, "ubatch": 2048},
]
MIB = 1 << 20


def reported(path: Path, case: dict[str, Any]) -> dict[str, float]:
    """MiB of each buffer that llama.cpp reports for a model."""
    done = subprocess.run(
        [sys.executable, str(LOADER), str(path), json.dumps(case)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{path.name} {case}: {done.stderr[-2000:]}")
    names = {"weights": "model", "cache": "KV", "state": "RS", "compute": "compute", "output": "output"}
    return {
        key: round(sum(map(float, re.findall(rf"{word} buffer size = +([\d.]+) MiB", done.stderr))), 2)
        for key, word in names.items()
    }


def main() -> None:
    wanted = sys.argv[1:] or list(SHAPES)
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            path = Path(name) if name.endswith(".gguf") else write_shape(Path(folder) / f"{name}.gguf", name)
            model = read_gguf(path)
            for case in CASES:
                said = reported(path, case)
                need = memory_needed(model, **case)
                ours = {key: round(getattr(need, key) / MIB, 2) for key in said}
                total = sum(ours.values()) / sum(said.values()) - 1
                worst = max(worst, abs(total))
                rows.append({"model": path.stem, "case": case, "reported": said})
                parts = "  ".join(f"{key} {ours[key]:.1f}/{said[key]:.1f}" for key in said if said[key])
                print(f"{path.stem:<20} {case!s:<60} {total:+.1%}  {parts}")
            if not name.endswith(".gguf"):
                path.unlink()
    print(f"largest difference of a total: {worst:.2%}")
    if wanted == list(SHAPES):
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"xllamacpp": version("xllamacpp"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
