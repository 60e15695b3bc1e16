"""The response cache: how fast, how right, and what a hit over HTTP costs. Peers run where they are installed.

    python benchmarks/cache.py [--peers PYTHON] [--entries 10000]       writes results/cache.md and .json

Accuracy: the pairs of tests/cache/pairs, each asked both ways of a cache that holds the other question alone. `held`
pairs were not looked at while the rules were written; `fresh` ones not before they were first measured (precision
98.8 %, recall 82 %), afterwards they were. GPTCache and LiteLLM run in an environment of their own (`--peers`, see
cache_peers.py). redisvl and LiteLLM's semantic cache need RediSearch and decide by a distance alone, so their rule is a
threshold of the table. Latency: CPU time of the one thread, not its waits; prompts of at most 32 tokens, one tenant,
one scope.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import httpx
from harness import HERE, cpu_seconds, http_request, machine, press, raw_upstream, velollm_serve

from velollm.cache import ResponseCache
from velollm.cache.embedder import open_embedder

sys.path.insert(0, str(HERE.parent / "tests"))
from support.cache import answer, ask
from support.pairs import FOLDER, Pair, read_pairs, score

JSON = dict[str, Any]
SETS = ("tuned", "held", "fresh")
FRESH = """The rules were made on the tuned pairs. The fresh ones came later, and were read once they had been measured
for the first time: precision 98.8 %, recall 82 %.
"""
EVERY = 5  # GPTCache is slow to open, so it gets a part of the pairs
THRESHOLDS = (0.80, 0.90, 0.95)
THINGS = (
    "violin", "river", "engine", "garden", "planet", "bridge", "window", "teacher", "doctor", "camera", "market",
    "castle", "desert", "forest", "island",
)  # fmt: skip
PLACES = (
    "peru", "norway", "kenya", "japan", "brazil", "egypt", "france", "canada", "india", "spain", "chile", "ghana",
    "nepal", "cuba", "iran",
)  # fmt: skip
VERBS = (
    "clean", "paint", "move", "grow", "build", "repair", "choose", "sell", "store", "carry", "draw", "wash", "pack",
    "ship", "weigh",
)  # fmt: skip
FRIENDS = "{verb} a {thing} in {place} with {number} friends?"
NUMBERED = "{verb} the {thing} number {number} of {place}?"
SHAPES = (
    f"How do I {FRIENDS}",
    f"What is the best way to {NUMBERED}",
    "Why does the {thing} of {place} need {number} people to {verb} it?",
    "Write {number} sentences about a {thing} in {place} and how to {verb} it.",
)
PARAPHRASES = {SHAPES[0]: f"How can I {FRIENDS}", SHAPES[1]: f"How do I {NUMBERED}"}


# ---- latency ---------------------------------------------------------------------------------------------------------


def latency(entries: int, lookups: int) -> dict[str, JSON]:
    """CPU microseconds of `lookup` by what it finds, in a cache of `entries`."""
    found = {"trigrams": _latencies(entries, lookups, None)}
    embedder = open_embedder("auto")
    if embedder is not None:
        found["minilm"] = _latencies(entries, lookups, embedder)
    return found


def _latencies(entries: int, lookups: int, embedder: Any) -> JSON:
    rng = random.Random(1)
    stored, _ = _stored(rng, entries)
    with ResponseCache(semantic="on", embedder=embedder, size="256MiB") as cache:
        begin = perf_counter()
        for shape, words in stored:
            cache.store("t", ask(shape.format(**words)), answer("An answer of some length. " * 10))
        filled = perf_counter() - begin
        chosen = [rng.choice(stored) for _ in range(lookups)]
        known = [(shape, words) for shape, words in chosen if shape in PARAPHRASES]
        cases = {
            "exact": [shape.format(**words) for shape, words in chosen],
            "canonical": ["hello, " + shape.format(**words).lower() for shape, words in chosen],
            "semantic": [PARAPHRASES[shape].format(**words) for shape, words in known],
            "none": [rng.choice(SHAPES).format(**{**_words(rng), "number": 10**6 + n}) for n in range(lookups)],
        }
        return {"entries": cache.stats().indexed, "microseconds_to_store": round(filled / entries * 1e6, 1)} | {
            tier: _timed(cache, tier, prompts) for tier, prompts in cases.items()
        }


def _stored(rng: random.Random, entries: int) -> tuple[list[tuple[str, JSON]], list[tuple[str, JSON]]]:
    """What is kept, and that part of it which can be put in other words."""
    stored = [(rng.choice(SHAPES), _words(rng)) for _ in range(entries)]
    return stored, [(shape, words) for shape, words in stored if shape in PARAPHRASES]


def _words(rng: random.Random) -> JSON:
    return {
        "thing": rng.choice(THINGS), "place": rng.choice(PLACES), "verb": rng.choice(VERBS),
        "number": rng.randrange(2, 9999),
    }  # fmt: skip


def _timed(cache: ResponseCache, tier: str, prompts: Iterable[str]) -> JSON:
    times, hits = [], 0
    for prompt in prompts:
        body = ask(prompt)
        begin = thread_time()
        hit = cache.lookup("t", body)
        times.append((thread_time() - begin) * 1e6)
        hits += (hit.tier if hit else "none") == tier
    times.sort()
    return {
        "p50": round(times[len(times) // 2], 1), "p99": round(times[int(len(times) * 0.99)], 1),
        "lookups": len(times), "as_expected": round(hits / len(times), 4),
    }  # fmt: skip


# ---- accuracy --------------------------------------------------------------------------------------------------------


def accuracy() -> dict[str, JSON]:
    """Precision and recall of the cache, of plain thresholds, and of GPTCache."""
    rows: dict[str, JSON] = {}
    embedder = open_embedder("auto")
    for name in SETS:
        pairs = read_pairs(FOLDER / f"{name}.jsonl")
        result = score(pairs)
        worst = max(result.false_hits().items(), key=lambda item: item[1])
        rows[f"VeloLLM, {name} pairs"] = {
            "pairs": len(pairs), "precision": result.precision, "recall": result.recall,
            "false_hits": sum(n for (same, _), n in result.hits.items() if not same), "worst": list(worst),
        }  # fmt: skip
        if embedder is not None:
            vectors = {text: embedder(text) for pair in pairs for text in (pair.a, pair.b)}
            for threshold in THRESHOLDS:
                rows[f"MiniLM, cosine at least {threshold:.2f}, {name} pairs"] = _judged(
                    pairs, lambda pair, v=vectors, t=threshold: _cosine(v[pair.a], v[pair.b]) >= t
                )
    return rows


def _judged(pairs: list[Pair], answers: Callable[[Pair], bool]) -> JSON:
    right = wrong = same = 0
    by_category: dict[str, list[int]] = {}
    for pair in pairs:
        hit = answers(pair)
        same += pair.same_answer
        right += hit and pair.same_answer
        wrong += hit and not pair.same_answer
        if not pair.same_answer:
            by_category.setdefault(pair.category, []).append(hit)
    worst = max(((name, sum(hits) / len(hits)) for name, hits in by_category.items()), key=lambda item: item[1])
    return {
        "pairs": len(pairs), "precision": right / max(1, right + wrong), "recall": right / max(1, same),
        "false_hits": wrong, "worst": list(worst),
    }  # fmt: skip


def _cosine(a: Iterable[float], b: Iterable[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


# ---- others ----------------------------------------------------------------------------------------------------------


def others(python: Path, entries: int) -> JSON:
    """What the caches of others take and answer; see cache_peers.py."""
    rng = random.Random(1)
    stored, known = _stored(rng, entries)
    pairs = [pair for name in SETS for pair in read_pairs(FOLDER / f"{name}.jsonl")[::EVERY]]
    asked = {
        "entries": [shape.format(**words) for shape, words in stored],
        "cases": {
            "exact": [shape.format(**words) for shape, words in stored[:500]],
            "semantic": [PARAPHRASES[shape].format(**words) for shape, words in known[:500]],
            "none": [rng.choice(SHAPES).format(**{**_words(rng), "number": 10**6 + n}) for n in range(500)],
        },
        "few": 500,
        "pairs": [[pair.a, pair.b] for pair in pairs],
    }
    command = [str(python), str(HERE / "cache_peers.py")]
    done = subprocess.run(command, input=json.dumps(asked).encode(), stdout=subprocess.PIPE, check=True)
    found: JSON = json.loads(done.stdout)
    if "GPTCache" in found:
        answers = dict(zip((id(pair) for pair in pairs), found["GPTCache"].pop("answers"), strict=True))
        found["GPTCache"]["accuracy"] = _judged(pairs, lambda pair: answers[id(pair)])
    return found


# ---- over HTTP -------------------------------------------------------------------------------------------------------


def over_http(seconds: float, rounds: int) -> JSON:
    """CPU seconds of the proxy's process a request: an exact hit against the same request passed through."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        backend = f"openai+http://127.0.0.1:{stack.enter_context(raw_upstream())}/v1"
        hitting, passing = (
            stack.enter_context(velollm_serve("--backend", backend, "--cache", cache)) for cache in ("on", "off")
        )
        for _ in range(rounds):
            for stream in (False, True):
                for name, (port, pid) in (("hit", hitting), ("pass-through", passing)):
                    messages = [{"role": "user", "content": "Why is the sky blue? Explain it in three sentences."}]
                    body = json.dumps({"model": "m", "messages": messages, "temperature": 0, "stream": stream}).encode()
                    request = http_request(port, "/v1/chat/completions", body)
                    frames = _frames(port, body) if stream else 0
                    before = cpu_seconds(pid)
                    load = asyncio.run(press(port, request, frames=frames, concurrency=1, seconds=seconds))
                    kind = f"{name}, {'SSE' if stream else 'JSON'}"
                    found.setdefault(kind, []).append((cpu_seconds(pid) - before) / load.requests * 1e6)
    return {kind: round(statistics.median(values), 1) for kind, values in sorted(found.items())}


def _frames(port: int, body: bytes) -> int:
    """How many events the answer has; by asking, it is in the cache from now on."""
    headers = {"content-type": "application/json"}
    return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", content=body, headers=headers).content.count(
        b"data: "
    )


# ---- the report ------------------------------------------------------------------------------------------------------


def render(result: JSON) -> str:
    """The results as a page."""
    lines = [f"# The response cache\n\n{result['machine']}\n", "## How right\n", FRESH]
    lines += ["| | pairs | precision | recall | wrong answers | worst category |", "|---|---|---|---|---|---|"]
    for name, row in result["accuracy"].items():
        worst, share = row["worst"]
        lines.append(
            f"| {name} | {row['pairs']} | {row['precision']:.1%} | {row['recall']:.1%} | {row['false_hits']} "
            f"| {worst} {share:.0%} |"
        )
    lines.append("\n## How fast (CPU microseconds, one thread)\n")
    lines += ["| retrieval | entries | what it finds | p50 | p99 | as expected |", "|---|---|---|---|---|---|"]
    for retrieval, row in result["latency"].items():
        for tier in ("exact", "canonical", "semantic", "none"):
            cell = row[tier]
            shown = (retrieval, row["entries"], tier, cell["p50"], cell["p99"], f"{cell['as_expected']:.1%}")
            lines.append(f"| {' | '.join(map(str, shown))} |")
    lines += _rendered_others(result["others"])
    lines.append("\n## Over HTTP (CPU microseconds of the proxy for one request)\n")
    lines += ["| | CPU |", "|---|---|", *(f"| {kind} | {cpu} |" for kind, cpu in result["http"].items())]
    return "\n".join(lines) + "\n"


def _rendered_others(others: JSON) -> list[str]:
    lines = ["\n## Others (CPU microseconds, one thread, in the same run)\n"] if others else []
    if others:
        lines += ["| | entries | what is asked | p50 | p99 | answered |", "|---|---|---|---|---|---|"]
    for name, row in others.items():
        for case in ("exact", "semantic", "none"):
            cell = row[case]
            shown = (f"{name} {row['version']}", row["entries"], ASKED[case], cell["p50"], cell["p99"])
            lines.append(f"| {' | '.join(map(str, shown))} | {cell['hits'] / cell['lookups']:.0%} |")
        if "accuracy" in row:
            right = row["accuracy"]
            worst, share = right["worst"]
            lines.append(
                f"\n{name} on every {EVERY}th pair: precision {right['precision']:.1%}, recall {right['recall']:.1%}, "
                f"{right['false_hits']} wrong answers of {right['pairs']}, worst in {worst} ({share:.0%})."
            )
    return lines


ASKED = {"exact": "what is there", "semantic": "the same in other words", "none": "another number than any there"}


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--lookups", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="the interpreter of their environment")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the tables are written")
    args = parser.parse_args()
    result = {
        "machine": machine(), "accuracy": accuracy(), "latency": latency(args.entries, args.lookups),
        "others": others(args.peers, args.entries) if args.peers else {},
        "http": over_http(args.seconds, args.rounds),
    }  # fmt: skip
    folder = args.out
    (folder / "cache.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "cache.md").write_text(render(result))
    print(render(result))


if __name__ == "__main__":
    main()
