"""The figures of `velollm bench` against those of `vllm bench serve`, on the same server with the same questions.

    python benchmarks/bench_agreement.py --vllm PYTHON [--rounds 3]

PYTHON is that of an environment with vLLM's client (see vllm_client.py). The server is `simulated_engine.py`, whose
time is known, or with --url any other one. Both clients ask in turns; the figures are medians over the rounds. Writes
results/bench_agreement.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from harness import HERE, go_ahead, machine
from load_world import engine

from velollm.bench import benchmark
from velollm.bench.workload import questions

FIGURES = ("request_throughput", "output_throughput", "mean_ttft_ms", "median_ttft_ms", "mean_tpot_ms", "mean_itl_ms",
           "mean_e2el_ms", "p90_e2el_ms")  # fmt: skip
LIMIT = 0.03
CASES: dict[str, dict[str, Any]] = {
    "closed loop, 4 clients": {"max_concurrency": 4},
    "closed loop, 16 clients": {"max_concurrency": 16},
    "open loop, 5 a second": {"request_rate": 5.0},
}


def vllm(python: str, url: str, model: str, count: int, tokens: int, seed: int, case: dict[str, Any]) -> dict[str, Any]:
    asked = {
        "url": url, "model": model, "output_len": tokens,
        "prompts": [question.text for question in questions("chat", count, seed=seed, answer=tokens)],
        "max_concurrency": case.get("max_concurrency"), "request_rate": case.get("request_rate"), "seed": seed,
    }  # fmt: skip
    done = subprocess.run(
        [python, str(HERE / "vllm_client.py")], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def version(python: str) -> str:
    ask = "from importlib.metadata import version; print(version('vllm'))"
    return subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, metavar="PYTHON")
    parser.add_argument("--url", help="another server than the simulated one")
    parser.add_argument("--model", default="sim")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "bench_agreement.json")
    asked = parser.parse_args()
    go_ahead()
    rows, worst = [], 0.0
    for name, case in CASES.items():
        with nullcontext() if asked.url else engine("--slots", "16", "--cache", "0", "--prefill", "4") as port:
            url = asked.url or f"http://127.0.0.1:{port}"
            ours, theirs = [], []
            for turn in range(asked.rounds):
                count, tokens = asked.prompts, asked.tokens
                theirs.append(vllm(asked.vllm, url, asked.model, count, tokens, 2 * turn, case))
                ours.append(
                    benchmark(
                        url, model=asked.model, num_prompts=count, output_len=tokens, seed=2 * turn, **case
                    ).figures
                )
        for figure in FIGURES:
            one, other = (median(run[figure] for run in runs) for runs in (theirs, ours))
            worst = max(worst, abs(other / one - 1))
            rows.append({"case": name, "figure": figure, "vllm": round(one, 3), "velollm": round(other, 3),
                         "ratio": round(other / one, 4)})  # fmt: skip
            print(f"{name:<26}{figure:<22}{one:>10.3f}{other:>10.3f}{other / one:>9.4f}", file=sys.stderr)
    facts = {"machine": machine(), "vllm": version(asked.vllm), "rounds": asked.rounds, "worst": round(worst, 4),
             "goal": "within 3 %", "goal_met": worst <= LIMIT, "rows": rows}  # fmt: skip
    asked.out.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"furthest apart: {worst:.1%}", file=sys.stderr)


if __name__ == "__main__":
    main()
