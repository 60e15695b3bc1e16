"""How long threads that wait for each other turn before they sleep: our engines' children with one setting and another.

    python benchmarks/waiting.py [--model smollm2] [--rounds 4] [--turns 0 --turns 200] [--save]

Both engines are measured with every number of turns (GOMP_SPINCOUNT), interleaved, with one client and with eight, on a
quiet machine and beside a process that takes a core. Figures are tokens a second, and their ratio to those of the first
setting: medians over the rounds. A run in which others computed besides is repeated. Results go to
benchmarks/results/waiting.json with --save.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from engine import Peer, load, words
from harness import machine, publish

from velollm.contrib.gguf import Engine, open_gguf

SPINS = "GOMP_SPINCOUNT"
ENGINES: tuple[Engine, ...] = ("velo", "llama-server")
CLIENTS = (1, 8)
PROMPT, OUTPUT = 32, 48  # tokens
DISTURBED, TRIES = 0.1, 100
NEIGHBOURS = {"quiet": 0, "one core taken": 1}


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that always compute."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@asynccontextmanager
async def loaded(model: str, engine: Engine, turns: int) -> AsyncIterator[Peer]:
    """`engine` in a child process whose threads turn `turns` times, warm."""
    os.environ[SPINS] = str(turns)
    async with open_gguf(model, engine=engine, ctx=1024, parallel=max(CLIENTS)) as backend:
        peer = Peer(f"{engine}, {turns} turns", backend)
        await load(peer, [await words(backend, PROMPT, -1)], 4, 1)
        yield peer


async def measure(model: str, rounds: int, settings: list[int]) -> list[dict[str, Any]]:
    rows = []
    async with AsyncExitStack() as stack:
        peers = {
            (engine, turns): await stack.enter_async_context(loaded(model, engine, turns))
            for engine in ENGINES
            for turns in settings
        }
        for about, count in NEIGHBOURS.items():
            with neighbours(count):
                for clients in CLIENTS:
                    await interleaved(list(peers.values()), f"{about}, {clients}", clients, rounds)
        for about in NEIGHBOURS:
            for clients in CLIENTS:
                for engine in ENGINES:
                    speeds = {turns: speed(peers[engine, turns], f"{about}, {clients}") for turns in settings}
                    ratios = {turns: round(value / speeds[settings[0]], 3) for turns, value in speeds.items()}
                    found = {turns: round(value, 1) for turns, value in speeds.items()}
                    rows.append({"machine is": about, "clients": clients, "engine": engine,
                                 "tokens_per_second": found, "ratio": ratios})  # fmt: skip
    return rows


async def interleaved(peers: list[Peer], name: str, clients: int, rounds: int) -> None:
    for number in range(rounds):
        prompts = [await words(peers[0].backend, PROMPT, 1000 * number + client) for client in range(clients)]
        for peer in peers if number % 2 == 0 else peers[::-1]:
            peer.runs.setdefault(name, []).append(await undisturbed(peer, prompts))
            print(f"{name:20} {peer.name:24} {peer.runs[name][-1]['tokens_per_second']:.1f}", file=sys.stderr)


async def undisturbed(peer: Peer, prompts: list[list[int]]) -> dict[str, float]:
    """All prompts at once; again where others took more than a tenth of a core meanwhile."""
    for _ in range(TRIES):
        before = busy_seconds()
        found = await load(peer, prompts, OUTPUT, len(prompts))
        others = busy_seconds() - before - found["cpu_seconds"]
        if others < DISTURBED * found["seconds"]:
            return found
        await asyncio.sleep(1)
    raise RuntimeError("the machine is not quiet: others compute on it")


def busy_seconds() -> float:
    """What all cores have computed since the machine started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def speed(peer: Peer, name: str) -> float:
    return statistics.median(run["tokens_per_second"] for run in peer.runs[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--turns", type=int, action="append", help="a setting; repeatable (default: 0 and 200)")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    rows = asyncio.run(measure(args.model, args.rounds, args.turns or [0, 200]))
    publish({"machine": machine(), "model": args.model, "rounds": args.rounds, "rows": rows}, "waiting", save=args.save)


if __name__ == "__main__":
    main()
