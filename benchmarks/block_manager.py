"""What our block manager costs a request, beside vLLM's KVCacheManager, in turns in one run.

    python benchmarks/block_manager.py --vllm VENV/bin/python [--rounds 5] [--save]

A request has a prompt of 1,024 tokens and an answer of 64: hashed, matched, allocated, published, grown token by token,
freed. `unique` prompts have nothing in common, `shared` ones are the same. Both do their bookkeeping only; vLLM as its
scheduler calls it, with SHA-256, which is its default, in a Python of its own. Both sides make their own objects for a
request. With --save results go to benchmarks/results/block_manager.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
from pathlib import Path
from time import perf_counter
from typing import Any

from velollm.engine import BlockManager, Sequence
from velollm.engine.blocks import root_hash

RESULTS = Path(__file__).parent / "results" / "block_manager.json"
OTHER = Path(__file__).with_name("vllm_blocks.py")
PROMPT, OUTPUT = 1024, 64
GOAL = 0.5  # of vLLM's time

Requests = list[dict[str, list[int]]]


def requests(name: str, count: int) -> Requests:
    """`count` of them; token ids are below 100,000."""
    made = []
    for number in range(count):
        first = 0 if name == "shared" else number * PROMPT
        prompt = [(first + at) * 7919 % 99_991 for at in range(PROMPT)]
        made.append({"prompt": prompt, "output": [(number * OUTPUT + at) * 104_729 % 99_991 for at in range(OUTPUT)]})
    return made


def ours(given: Requests) -> list[float]:
    """Microseconds for each."""
    blocks = BlockManager(8192)
    return [_request(blocks, number, one) for number, one in enumerate(given)]


def _request(blocks: BlockManager, number: int, given: dict[str, list[int]]) -> float:
    begin = perf_counter()
    size = blocks.block_size
    sequence = Sequence(number, given["prompt"], root=root_hash("", "tenant"))
    hashes = sequence.hash_to(size)
    hits = blocks.match(hashes[: (PROMPT - 1) // size])
    table = blocks.open(hits)
    if table is None or not blocks.grow(table, len(hits) * size, PROMPT):
        raise RuntimeError("there are blocks for it")
    published = PROMPT // size
    blocks.publish(table, hashes, len(hits), published)
    blocks.take_events()
    for at, token in enumerate(given["output"], PROMPT):
        sequence.tokens.append(token)
        if not blocks.grow(table, at, at + 1):
            raise RuntimeError("there are blocks for it")
        if (at + 1) % size == 0:
            blocks.publish(table, sequence.hash_to(size), published, published + 1)
            published += 1
        blocks.take_events()
    blocks.close(table)
    blocks.take_events()
    return 1e6 * (perf_counter() - begin)


def theirs(python: Path, given: dict[str, Requests]) -> dict[str, Any]:
    """The same by vLLM."""
    done = subprocess.run([python, "-P", OTHER], input=json.dumps(given).encode(), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", type=Path, required=True, help="the Python of an environment with vLLM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200, help="requests in a round")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    given = {name: requests(name, args.count) for name in ("unique", "shared")}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in given}
    for _ in range(args.rounds):
        mine, other = {name: ours(some) for name, some in given.items()}, theirs(args.vllm, given)
        for name, pairs in rounds.items():
            pairs.append((statistics.median(mine[name]), statistics.median(other["microseconds"][name])))
    result = {"machine": platform.machine(), "requests": args.count, "rounds": args.rounds, "vllm": other["version"]}
    for name, pairs in rounds.items():
        first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(mine / other for mine, other in pairs)
        result[name] = {"velollm_us": first, "vllm_us": second, "ratio": ratio, "goal": GOAL, "met": ratio <= GOAL}
        said = "met" if ratio <= GOAL else "missed"
        print(f"{name}: {first:.0f} µs, vLLM {second:.0f} µs, {ratio:.2f} x (goal {GOAL}: {said})")
    if args.save:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
