"""What the cache tells and what it holds: times that could betray another tenant's entries, and memory under a flood.

    python benchmarks/cache_safety.py [--probes 200] [--requests 100000]      writes results/cache_safety.md and .json

Times: one key asks prompts, another one asks the same prompts and as many that nobody has asked, in random order, each
for the first time. The AUC is the chance that a prompt of the first key takes less time than a fresh one; 0.5 tells
nothing. As a control, the second key then asks the same prompts again, which are now in its own cache.
Memory: requests with a prompt, a session and a user of their own each, in front of an engine that answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
from harness import HERE, MARK, http_request, machine, press, raw_upstream, velollm_serve

JSON = dict[str, Any]
ANN, BOB = "sk-ann-0123456789abcdef", "sk-bob-0123456789abcdef"
MODES = {
    "memory": "",
    "memory, semantic tier on": "--semantic-cache on",
    "SQLite": "--cache-store sqlite:{folder}/answers.db",
}
WORDS = ("river", "bridge", "garden", "window", "teacher", "engine", "castle", "island", "market", "violin", "camera")
VERBS = ("clean", "paint", "move", "build", "repair", "choose", "sell", "store", "carry", "draw", "wash", "pack")


@contextmanager
def server(upstream: int, folder: Path, options: str) -> Iterator[tuple[int, int]]:
    """`velollm serve` with two keys: its port and process."""
    keys = folder / "keys.toml"
    keys.write_text(
        "".join(f'[[keys]]\nname = "{name}"\nkey = "{key}"\n' for name, key in (("ann", ANN), ("bob", BOB)))
    )
    backend = f"openai+http://127.0.0.1:{upstream}/v1"
    given = options.format(folder=folder, keys=keys).split()
    with velollm_serve("--backend", backend, "--concurrency", "256", *given) as served:
        yield served


# ---- times -----------------------------------------------------------------------------------------------------------


def timing(probes: int, rng: random.Random) -> dict[str, JSON]:
    """The AUC of each way to keep answers."""
    found = {}
    with raw_upstream() as upstream:
        for name, options in MODES.items():
            with (
                tempfile.TemporaryDirectory() as folder,
                server(upstream, Path(folder), f"--keys {{keys}} {options}") as (port, _),
                httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
            ):
                found[name] = _timing(client, probes, rng)
    return found


def _timing(client: httpx.Client, probes: int, rng: random.Random) -> JSON:
    for number in range(100):  # so that nothing is slow because it is new
        for key in (ANN, BOB):
            _ask(client, key, f"Warm-up number {number}: {_question(rng, 10**6 + number)}")
    kept, fresh, newer = ([_question(rng, 10**4 * part + n) for n in range(probes)] for part in (1, 2, 3))
    for prompt in kept:
        _ask(client, ANN, prompt)
    theirs, none = _mixed(client, kept, fresh, "miss", rng)
    own, still_none = _mixed(client, kept, newer, "hit-exact", rng)
    return {"auc": auc(theirs, none), "auc_of_own": auc(own, still_none), "probes": probes}


def _mixed(
    client: httpx.Client, one: list[str], fresh: list[str], expected: str, rng: random.Random
) -> tuple[list[float], list[float]]:
    """Seconds of the prompts of `one`, about which the cache says what is expected, and of fresh ones, taking turns."""
    order = [(prompt, False) for prompt in one] + [(prompt, True) for prompt in fresh]
    rng.shuffle(order)
    times: tuple[list[float], list[float]] = [], []
    for prompt, is_fresh in order:
        seconds, said = _ask(client, BOB, prompt)
        if said != ("miss" if is_fresh else expected):
            raise RuntimeError(f"not {expected}, but {said}")
        times[is_fresh].append(seconds)
    return times


def _question(rng: random.Random, number: int) -> str:
    return f"How do I {rng.choice(VERBS)} a {rng.choice(WORDS)} near {rng.choice(WORDS)} number {number}?"


def _ask(client: httpx.Client, key: str, prompt: str) -> tuple[float, str]:
    body = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
    headers = {"authorization": f"Bearer {key}"}
    began = perf_counter()
    answer = client.post("/v1/chat/completions", json=body, headers=headers)
    return perf_counter() - began, answer.raise_for_status().headers["x-velollm-cache"]


def auc(one: Sequence[float], other: Sequence[float]) -> float:
    """The chance that a value of `one` is below a value of `other`: Mann and Whitney's U over all pairs."""
    below = sum((a < b) + 0.5 * (a == b) for a in one for b in other)
    return below / (len(one) * len(other))


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(requests: int) -> dict[str, JSON]:
    """Megabytes that the server grows by, for some sizes of the cache."""
    found = {}
    with raw_upstream() as upstream:
        for size in ("off", "1MiB", "64MiB"):
            options = "--cache off" if size == "off" else f"--cache-size {size}"
            with tempfile.TemporaryDirectory() as folder, server(upstream, Path(folder), options) as (port, pid):
                _flood(port, 1000)
                before = _resident(pid)
                asked = _flood(port, requests)
                found[size] = {"requests": asked, "grown_mib": round(_resident(pid) - before, 1)}
    return found


def _flood(port: int, requests: int) -> int:
    prompt = f"How do I {VERBS[0]} the {WORDS[0]} number {MARK.decode()}?"
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "user": MARK.decode()}
    request = http_request(port, "/v1/chat/completions", json.dumps(body).encode())
    request = request.replace(b"\r\n", b"\r\nx-velollm-session: " + MARK + b"\r\n", 1)
    asked = 0
    while asked < requests:
        asked += asyncio.run(press(port, request, frames=0, concurrency=32, seconds=min(2.0, requests / 1000))).requests
    return asked


def _resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# ---- the report ------------------------------------------------------------------------------------------------------


def render(result: JSON) -> str:
    """The results as a page."""
    lines = [f"# What the cache tells and what it holds\n\n{result['machine']}\n"]
    lines += ["| kept in | AUC, another key's prompts | AUC, its own again (control) |", "|---|--:|--:|"]
    lines += [f"| {name} | {row['auc']:.3f} | {row['auc_of_own']:.3f} |" for name, row in result["timing"].items()]
    lines += ["", "| cache size | different requests | the process grew by |", "|---|--:|--:|"]
    lines += [f"| {size} | {row['requests']} | {row['grown_mib']} MiB |" for size, row in result["memory"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the tables are written")
    args = parser.parse_args()
    rng = random.Random(1)
    result = {"machine": machine(), "timing": timing(args.probes, rng), "memory": memory(args.requests)}
    (args.out / "cache_safety.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.out / "cache_safety.md").write_text(render(result))
    print(render(result))


if __name__ == "__main__":
    main()
