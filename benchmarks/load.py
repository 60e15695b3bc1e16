"""What stands between many clients and few engines under load: VeloLLM against going straight to the engine.

    python benchmarks/load.py [--only priority,overload,...] [--seconds 12]

The engine is `simulated_engine.py`, whose time is known: slots, prefill and decode by the token. Every figure has a
goal beside it. Writes results/load.md and load.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import attrs
from harness import HERE, machine
from load_scenarios import SCENARIOS
from load_world import TIMES, Figure


def table(found: dict[str, list[Figure]]) -> str:
    """All figures in Markdown."""
    lines = ["| scenario | figure | direct | VeloLLM | goal | |", "|---|---|--:|--:|---|---|"]
    for name, figures in found.items():
        for figure in figures:
            direct = "" if figure.direct is None else f"{figure.direct:.3g}"
            mark = "met" if figure.met else "missed"
            lines.append(f"| {name} | {figure.name} | {direct} | {figure.value:.3g} | {figure.goal} | {mark} |")
    return "\n".join(lines)


def write(found: dict[str, list[Figure]], about: dict[str, str], folder: Path) -> None:
    """results/load.md and .json; scenarios that were not run keep their last figures."""
    folder.mkdir(parents=True, exist_ok=True)
    record_file = folder / "load.json"
    known = json.loads(record_file.read_text()) if record_file.exists() else {"scenarios": {}, "times": {}}
    every = {name: [Figure(**figure) for figure in figures] for name, figures in known["scenarios"].items()} | found
    times = known["times"] | dict.fromkeys(found, TIMES)
    words = "\n".join(f"- **{name}** (times {times[name]:g}): {about[name]}" for name in every)
    (folder / "load.md").write_text(f"{HEAD}\n\n{table(every)}\n\n{words}\n\nMeasured on {machine()}. {TAIL}\n")
    plain = {name: [attrs.asdict(figure) for figure in figures] for name, figures in every.items()}
    record_file.write_text(json.dumps({"machine": machine(), "times": times, "scenarios": plain}, indent=1) + "\n")


HEAD = "# Under load\n\nVeloLLM in front of an engine, against the same clients at the engine itself."
TAIL = (
    "Clients, proxy and engine shared the machine with other work; so all times, of the engine and of the goals, "
    "were so many times as long as said (`LOAD_TIMES`). Repeat with `python benchmarks/load.py`."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="scenarios, comma-separated: " + ", ".join(s.__name__ for s in SCENARIOS)
    )
    parser.add_argument("--seconds", type=float, default=12.0, help="of load in each part")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    asked = parser.parse_args()
    wanted = [name for name in asked.only.split(",") if name]
    found: dict[str, list[Figure]] = {}
    for scenario in SCENARIOS:
        if not wanted or scenario.__name__ in wanted:
            print(scenario.__name__, file=sys.stderr)
            found[scenario.__name__] = scenario(asked.seconds)
    print(table(found))
    write(found, {one.__name__: (one.__doc__ or "").strip() for one in SCENARIOS}, asked.out)
    return 0 if all(figure.met for figures in found.values() for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
