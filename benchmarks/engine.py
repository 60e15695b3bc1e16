"""Our engine against the llama-server of the same wheel, on one model, interleaved in one run. Ratios are what counts.

    python benchmarks/engine.py [smollm2 | model.gguf] [--rounds 2] [--save]

unique     16 clients, prompts of 128 tokens of their own, answers of 64
shared     32 requests, 8 at once: about 1,000 tokens in common, 64 of their own, answers of 32
overflow   16 requests that need twice the KV cache there is, in one pool
overhead   what a step costs beside computing it
blocks     what the block manager costs a request of 1,088 tokens

Results go to benchmarks/results/engine.json and .md with --save.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from velollm.backend import Backend
from velollm.contrib.gguf import open_gguf
from velollm.contrib.llamacpp.local_model import locate
from velollm.contrib.llamacpp.plan import this_machine
from velollm.engine import BlockManager, EngineCore, JobSpec, LlamaCppRunner, SamplingParams
from velollm.engine.blocks import hash_chain, root_hash
from velollm.errors import VeloError
from velollm.messages import ChatRequest, Collector

RESULTS = Path(__file__).parent / "results"
PROSE = "the time of day when people walk along a river and speak about work and music and what they saw"
WORDS = PROSE.split()


class Peer:
    """One engine with its settings, loaded."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name = name
        self.backend = backend
        self.runs: dict[str, list[dict[str, float]]] = {}


async def words(backend: Backend, count: int, seed: int) -> list[int]:
    """`count` token ids of prose that is the same for the same seed."""
    chosen = random.Random(seed).choices(WORDS, k=count + 8)
    return (await backend.tokenize("", f"{seed}: " + " ".join(chosen)))[:count]


async def ask(backend: Backend, prompt: list[int], output: int) -> dict[str, float]:
    """One request: seconds to the first text, tokens generated and found in the cache."""
    request = ChatRequest(
        prompt=prompt, raw=True, max_tokens=output, temperature=0, stream=True, extra={"ignore_eos": True}
    )
    collector, begin, first = Collector(), perf_counter(), 0.0
    async for event in backend.chat(request):
        if event.text and not first:
            first = perf_counter() - begin
        collector.add(event)
    usage = collector.answer().usage
    if usage is None or usage.completion_tokens != output:
        raise RuntimeError(f"an answer of {output} tokens was asked for, not {usage}")
    return {"first": first, "cached": usage.cached_tokens or 0}


async def load(backend: Backend, prompts: list[list[int]], output: int, at_once: int) -> dict[str, float]:
    """All requests, `at_once` at a time; what cannot be answered is counted."""
    gate, answers, failed = asyncio.Semaphore(at_once), [], 0

    async def one(prompt: list[int]) -> None:
        nonlocal failed
        async with gate:
            try:
                answers.append(await ask(backend, prompt, output))
            except VeloError:
                failed += 1

    begin = perf_counter()
    await asyncio.gather(*(one(prompt) for prompt in prompts))
    seconds = perf_counter() - begin
    done = len(answers)
    return {
        "seconds": seconds,
        "tokens_per_second": done * output / seconds,
        "first_token_median": statistics.median([one["first"] for one in answers]) if answers else 0.0,
        "prefill_tokens": sum(map(len, prompts)) - sum(one["cached"] for one in answers),
        "completed": done,
        "failed": failed,
    }


Prompts = Callable[[int], Awaitable[list[list[int]]]]


async def interleaved(name: str, peers: list[Peer], rounds: int, prompts: Prompts, output: int, at_once: int) -> None:
    for number in range(rounds):
        given = await prompts(number)
        for peer in peers if number % 2 == 0 else peers[::-1]:
            measured = await load(peer.backend, given, output, at_once)
            peer.runs.setdefault(name, []).append(measured)
            print(f"{name:9} {peer.name:22} " + "  ".join(f"{key} {value:.4g}" for key, value in measured.items()))


async def scenarios(model: str, rounds: int, threads: int) -> dict[str, Any]:
    peers = {
        "velo": open_gguf(model, engine="velo", threads=threads, ctx=2048, num_blocks=1024),
        "llama-server, 1 slot": open_gguf(model, engine="llama-server", threads=threads, ctx=2048, parallel=1),
        "llama-server, 8 slots": open_gguf(model, engine="llama-server", threads=threads, ctx=2048, parallel=8),
        "llama-server, 16 slots": open_gguf(model, engine="llama-server", threads=threads, ctx=2048, parallel=16),
    }
    made = [Peer(name, backend) for name, backend in peers.items()]
    velo, one, eight, sixteen = made
    for peer in made:
        await peer.backend.start()
        await ask(peer.backend, await words(peer.backend, 20, -1), 4)

    async def unique(number: int) -> list[list[int]]:
        return [await words(velo.backend, 128, 1000 * number + client) for client in range(16)]

    async def shared(number: int) -> list[list[int]]:
        prefix = await words(velo.backend, 1000, 77_000 + number)
        return [prefix + await words(velo.backend, 64, 1000 * number + 100 + client) for client in range(32)]

    await interleaved("unique", [velo, one, sixteen], rounds, unique, 64, 16)
    await interleaved("shared", [velo, one, eight], rounds, shared, 32, 8)
    for peer in made:
        await peer.backend.aclose()

    narrow = [
        Peer("velo", open_gguf(model, engine="velo", threads=threads, ctx=1024, num_blocks=96)),
        Peer(
            "llama-server, one pool",
            open_gguf(model, engine="llama-server", threads=threads, ctx=1536, parallel=16, unified=True),
        ),
    ]

    async def long(number: int) -> list[list[int]]:
        return [await words(narrow[0].backend, 128, 5000 + client) for client in range(16)]

    await interleaved("overflow", narrow, 1, long, 64, 16)
    for peer in narrow:
        await peer.backend.aclose()
    return {"peers": [{"name": peer.name, **peer.runs} for peer in [*made, *narrow]]}


def overhead(model: str, threads: int) -> dict[str, float]:
    """The share of a step that is not `llama_decode`: scheduling, sampling, text; 16 greedy sequences."""
    runner = LlamaCppRunner(locate(model, None), 512, threads=threads)
    core = EngineCore(runner, runner.model.vocabulary)
    computing = 0.0
    execute = runner.execute

    def timed(chunks: Any) -> Any:
        nonlocal computing
        begin = perf_counter()
        rows = execute(chunks)
        computing += perf_counter() - begin
        return rows

    runner.execute = timed  # type: ignore[method-assign]
    for number in range(16):
        prompt = runner.model.vocabulary.encode(f"{number} " + " ".join(WORDS * 3))
        core.add(JobSpec(prompt=prompt, max_tokens=64, sampling=SamplingParams(temperature=0)))
    begin, steps = perf_counter(), 0
    while not core.idle:
        core.step()
        steps += 1
    total = perf_counter() - begin
    runner.close()
    return {"steps": steps, "microseconds_a_step": 1e6 * (total - computing) / steps, "share": 1 - computing / total}


def block_cost(requests: int = 300) -> dict[str, float]:
    """Microseconds for a request of 1,088 tokens: hashed, matched, allocated, published, grown by 64 tokens, freed."""
    found = {}
    for name, shared in (("unique", 0), ("shared", 1024)):
        blocks = BlockManager(8192)
        times = []
        for number in range(requests):
            tokens = [*range(shared), *range(10_000 * number, 10_000 * number + 1088 - shared)]
            begin = perf_counter()
            hashes: list[bytes] = []
            hash_chain(tokens[:1024], root_hash("tenant"), hashes)
            hits = blocks.match(hashes[:63])
            table = blocks.open(hits)
            assert table is not None
            blocks.grow(table, 16 * len(hits), 1024)
            blocks.publish(table, hashes, len(hits), 64)
            for at in range(1024, 1088):
                blocks.grow(table, at, at + 1)
            hash_chain(tokens, root_hash("tenant"), hashes)
            blocks.publish(table, hashes, 64, 68)
            blocks.close(table)
            blocks.take_events()
            times.append(1e6 * (perf_counter() - begin))
        found[name] = statistics.median(times)
    return found


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Ours against each peer: throughput, prefill tokens; medians over the rounds."""
    ours = {key: value for key, value in result["peers"][0].items() if key != "name"}
    found = {}
    for peer in result["peers"][1:]:
        for name in ("unique", "shared"):
            if name in peer and name in ours:
                for key in ("tokens_per_second", "prefill_tokens"):
                    mine, theirs = (statistics.median(run[key] for run in one[name]) for one in (ours, peer))
                    found[f"{name}: {key} against {peer['name']}"] = mine / theirs
    return found


def report(result: dict[str, Any]) -> str:
    conditions = (
        f"{result['machine']}, {result['threads']} threads, {result['rounds']} rounds, interleaved; other work ran "
        "beside it, so only ratios mean something. `python benchmarks/engine.py --save` writes this file."
    )
    costs = (
        f"Beside computing, a step of 16 sequences costs {result['overhead']['microseconds_a_step']:.0f} µs, "
        f"{100 * result['overhead']['share']:.2f} % of it. The block manager costs a request of 1,088 tokens "
        f"{result['blocks']['unique']:.0f} µs, one that shares 1,024 of them {result['blocks']['shared']:.0f} µs."
    )
    lines = [
        f"# The engine: {result['model']}",
        "",
        conditions,
        "",
        "| scenario | engine | tokens/s | first token, median s | prefill tokens | completed | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer in result["peers"]:
        for name in ("unique", "shared", "overflow"):
            if name in peer:
                middle = {key: statistics.median(run[key] for run in peer[name]) for key in peer[name][0]}
                speed, first = middle["tokens_per_second"], middle["first_token_median"]
                counts = " | ".join(f"{middle[key]:.0f}" for key in ("prefill_tokens", "completed", "failed"))
                lines.append(f"| {name} | {peer['name']} | {speed:.1f} | {first:.2f} | {counts} |")
    lines += ["", "| ours against | ratio |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in result["ratios"].items()]
    lines += ["", costs, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=this_machine().cores)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    result = asyncio.run(scenarios(args.model, args.rounds, args.threads))
    result |= {"model": Path(args.model).stem, "machine": platform.machine(), "threads": args.threads}
    result |= {"rounds": args.rounds, "overhead": overhead(args.model, args.threads), "blocks": block_cost()}
    result["ratios"] = ratios(result)
    print(report(result))
    if args.save:
        (RESULTS / "engine.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / "engine.md").write_text(report(result))


if __name__ == "__main__":
    main()
