"""Our engine against the llama-server of the same wheel, on one model, interleaved in one run. Ratios are what counts.

    python benchmarks/engine.py [smollm2 | random-0.5b | model.gguf] [--rounds 2] [--only unique] [--save]

unique     16 clients, prompts of 128 tokens of their own, answers of 64
shared     32 requests, 8 at once: about 1,000 tokens in common, 64 of their own, answers of 32
overflow   16 requests that need twice the KV cache there is, in one pool
overhead   what a step costs beside computing it
blocks     what the block manager costs a request of 1,088 tokens

`replicated` is llama-server with what prompts share carried from slot to slot. Seconds of CPU are those of all
processes: they say more than those of the clock where other work runs beside it; on a quiet machine the clock says
more. The threads of both engines wait for each other in the same way. `random-0.5b` is the model that random_gguf.py
writes. What is aimed at stands at the end, with whether it was reached. With --save results go to
benchmarks/results/engine.json and .md (engine_random-0.5b for it).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from harness import cpu_seconds
from ollama_peer import ollama
from random_gguf import write_random_gguf

from velollm.backend import Backend
from velollm.collector import Collector
from velollm.contrib.gguf import open_gguf
from velollm.contrib.llamacpp.local_model import locate
from velollm.contrib.llamacpp.plan import this_machine
from velollm.engine import BlockManager, EngineCore, JobSpec, LlamaCppRunner, SamplingParams
from velollm.engine.blocks import hash_chain, root_hash
from velollm.errors import VeloError
from velollm.messages import ChatRequest

RESULTS = Path(__file__).parent / "results"
PROSE = "the time of day when people walk along a river and speak about work and music and what they saw"
WORDS = PROSE.split()
RANDOM = "random-0.5b"
SCENARIOS = ["unique", "shared", "overflow"]
SPEED = "tokens_per_second against llama-server"
GOALS = {  # of ratios: at least
    "smollm2": {
        f"unique, velo: {SPEED}, 1 slot": 1.25,
        f"unique, velo: {SPEED}, 16 slots": 0.95,
        f"shared, velo: {SPEED}, 1 slot": 1.6,
        f"shared, velo: {SPEED}, 8 slots": 2.0,
        f"shared, replicated: {SPEED}, 8 slots": 2.2,
    },
    RANDOM: {f"unique, velo: {SPEED}, 1 slot": 1.8, f"unique, velo: {SPEED}, 16 slots": 0.92},
}
MOST_OVERHEAD = 0.01  # of a step


class Peer:
    """One engine with its settings, loaded. Without `exact` it takes text, and may end an answer before its time."""

    def __init__(self, name: str, backend: Backend, *, exact: bool = True) -> None:
        self.name = name
        self.backend = backend
        self.exact = exact
        self.runs: dict[str, list[dict[str, float]]] = {}


async def words(backend: Backend, count: int, seed: int) -> list[int]:
    """`count` token ids of prose that is the same for the same seed."""
    chosen = random.Random(seed).choices(WORDS, k=count + 8)
    return (await backend.tokenize("", f"{seed}: " + " ".join(chosen)))[:count]


async def ask(peer: Peer, prompt: list[int] | str, output: int) -> dict[str, float]:
    """One request: seconds to the first text, tokens generated and found in the cache."""
    request = ChatRequest(
        prompt=prompt, raw=True, max_tokens=output, temperature=0, stream=True, extra={"ignore_eos": True}
    )
    if not peer.exact:
        request = request.replace(extra={}, model="bench")
    collector, begin, first = Collector(), perf_counter(), 0.0
    async for event in peer.backend.chat(request):
        if event.text and not first:
            first = perf_counter() - begin
        collector.add(event)
    usage = collector.answer().usage
    if usage is None or (peer.exact and usage.completion_tokens != output):
        raise RuntimeError(f"an answer of {output} tokens was asked for, not {usage}")
    return {"first": first, "cached": usage.cached_tokens or 0, "tokens": usage.completion_tokens}


async def load(peer: Peer, prompts: list[Any], output: int, at_once: int) -> dict[str, float]:
    """All requests, `at_once` at a time; what cannot be answered is counted."""
    gate, answers, failed = asyncio.Semaphore(at_once), [], 0

    async def one(prompt: Any) -> None:
        nonlocal failed
        async with gate:
            try:
                answers.append(await ask(peer, prompt, output))
            except VeloError:
                failed += 1

    begin, used = perf_counter(), cpu_seconds(os.getpid())
    await asyncio.gather(*(one(prompt) for prompt in prompts))
    seconds, cpu = perf_counter() - begin, cpu_seconds(os.getpid()) - used
    done, tokens = len(answers), sum(one["tokens"] for one in answers)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu,
        "first_token_median": statistics.median([one["first"] for one in answers]) if answers else 0.0,
        "prefill_tokens": sum(map(len, prompts)) - sum(one["cached"] for one in answers),
        "completed": done,
        "failed": failed,
    }


Prompts = Callable[[int], Awaitable[list[list[int]]]]


async def interleaved(name: str, peers: list[Peer], rounds: int, prompts: Prompts, output: int, at_once: int) -> None:
    for number in range(rounds):
        given = await prompts(number)
        texts = [await peers[0].backend.detokenize("", prompt) for prompt in given]
        for peer in peers if number % 2 == 0 else peers[::-1]:
            measured = await load(peer, given if peer.exact else texts, output, at_once)
            peer.runs.setdefault(name, []).append(measured)
            print(f"{name:9} {peer.name:22} " + "  ".join(f"{key} {value:.4g}" for key, value in measured.items()))


def llama_server(model: str, threads: int, slots: int, *, replicate: bool = False) -> Backend:
    return open_gguf(model, engine="llama-server", threads=threads, ctx=2048, parallel=slots, replicate=replicate)


async def scenarios(model: str, rounds: int, threads: int, binary: str | None, only: list[str]) -> dict[str, Any]:
    made = [
        Peer("velo", open_gguf(model, engine="velo", threads=threads, ctx=2048, num_blocks=1024)),
        Peer("llama-server, 1 slot", llama_server(model, threads, 1)),
        Peer("llama-server, 8 slots", llama_server(model, threads, 8)),
        Peer("llama-server, 8 slots, replicated", llama_server(model, threads, 8, replicate=True)),
        Peer("llama-server, 16 slots", llama_server(model, threads, 16)),
    ]
    velo, one, eight, replicated, sixteen = made
    for peer in made:
        await peer.backend.start()
        await ask(peer, await words(peer.backend, 20, -1), 4)

    async def unique(number: int) -> list[list[int]]:
        return [await words(velo.backend, 128, 1000 * number + client) for client in range(16)]

    async def shared(number: int) -> list[list[int]]:
        prefix = await words(velo.backend, 1000, 77_000 + number)
        return [prefix + await words(velo.backend, 64, 1000 * number + 100 + client) for client in range(32)]

    async with ollama(binary, locate(model, None)) as found:
        others = [Peer("Ollama", found, exact=False)] if found is not None else []
        if "unique" in only:
            await interleaved("unique", [velo, one, sixteen, *others], rounds, unique, 64, 16)
        if "shared" in only:
            await interleaved("shared", [velo, one, eight, replicated, *others], rounds, shared, 32, 8)
    made += others
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

    if "overflow" in only:
        await interleaved("overflow", narrow, 1, long, 64, 16)
    for peer in narrow:
        await peer.backend.aclose()
    return {"peers": [{"name": peer.name, **peer.runs} for peer in [*made, *narrow]]}


def overhead(model: str, threads: int) -> dict[str, float]:
    """The share of a step that is not `llama_decode`: scheduling, sampling, text; 16 greedy sequences."""
    runner = LlamaCppRunner(locate(model, None), 1024, threads=threads)
    core = EngineCore(runner, runner.model.vocabulary)
    computing = 0.0
    decode = runner.model.library.llama_decode

    def timed(*given: Any) -> Any:
        nonlocal computing
        begin = perf_counter()
        code = decode(*given)
        computing += perf_counter() - begin
        return code

    runner.model.library.llama_decode = timed
    for number in range(16):
        prompt = runner.model.vocabulary.encode(f"{number} " + " ".join(WORDS * 3))
        core.add(JobSpec(prompt=prompt, max_tokens=64, sampling=SamplingParams(temperature=0)))
    begin, steps = perf_counter(), 0
    while not core.idle:
        core.step()
        steps += 1
    total = perf_counter() - begin
    runner.model.library.llama_decode = decode
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
    pairs = [("velo", ours, peer) for peer in result["peers"][1:]]
    by_name = {peer["name"]: peer for peer in result["peers"]}
    pairs.append(("replicated", by_name["llama-server, 8 slots, replicated"], by_name["llama-server, 8 slots"]))
    for who, first, second in pairs:
        for name in ("unique", "shared"):
            if name in first and name in second:
                for key in ("tokens_per_second", "tokens_per_cpu_second", "prefill_tokens"):
                    mine, theirs = (statistics.median(run[key] for run in one[name]) for one in (first, second))
                    found[f"{name}, {who}: {key} against {second['name']}"] = mine / theirs
    return found


def goals(result: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """What is aimed at, what was reached, the aim, and whether that is enough; of what was measured."""
    wanted = GOALS.get(result["model"], {})
    found = [
        (name, result["ratios"][name], f"≥ {least}", result["ratios"][name] >= least)
        for name, least in wanted.items()
        if name in result["ratios"]
    ]
    for peer in result["peers"]:
        if peer["name"] == "velo" and "overflow" in peer:
            completed = min(run["completed"] for run in peer["overflow"])
            found.append(("overflow: completed of 16", completed, "16", completed == 16))
    share = result["overhead"]["share"]
    return [*found, ("what a step costs beside computing it", share, f"< {MOST_OVERHEAD}", share < MOST_OVERHEAD)]


def report(result: dict[str, Any]) -> str:
    conditions = (
        f"{result['machine']}, {result['threads']} threads, {result['rounds']} rounds, interleaved. Only "
        "ratios mean something. `python benchmarks/engine.py --save` writes this file."
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
        "| scenario | engine | tokens/s | CPU s | first token, median s | prefill tokens | completed | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for peer in result["peers"]:
        for name in SCENARIOS:
            if name in peer:
                middle = {key: statistics.median(run[key] for run in peer[name]) for key in peer[name][0]}
                speed, first = middle["tokens_per_second"], middle["first_token_median"]
                counts = " | ".join(f"{middle[key]:.0f}" for key in ("prefill_tokens", "completed", "failed"))
                cpu = middle["cpu_seconds"]
                lines.append(f"| {name} | {peer['name']} | {speed:.1f} | {cpu:.0f} | {first:.2f} | {counts} |")
    lines += ["", "| ratio | |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in result["ratios"].items()]
    lines += ["", "| goal | reached | wanted | |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {value:.3g} | {aim} | {'met' if met else 'missed'} |" for name, value, aim, met in goals(result)
    ]
    lines += ["", costs, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=this_machine().cores)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="some of the scenarios")
    parser.add_argument("--ollama", metavar="PATH", help="Ollama's program, to measure it as well")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model == RANDOM:
            model = str(write_random_gguf(Path(folder) / f"{RANDOM}.gguf"))
        result = asyncio.run(scenarios(model, args.rounds, args.threads, args.ollama, args.only))
        result |= {"model": Path(model).stem, "machine": platform.machine(), "threads": args.threads}
        result |= {
            "rounds": args.rounds,
            "overhead": overhead(model, args.threads),
            "blocks": block_cost(),
        }
    result["ratios"] = ratios(result)
    print(report(result))
    if args.save:
        name = f"engine_{RANDOM}" if args.model == RANDOM else "engine"
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / f"{name}.md").write_text(report(result))


if __name__ == "__main__":
    main()
