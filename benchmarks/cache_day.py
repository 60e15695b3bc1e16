"""A day of traffic through a real server: what the cache answers, how much of it is right, and what it reports.

    python benchmarks/cache_day.py [--requests 5000] [--seed 1]             writes results/cache_day.md and .json

The questions are those of tests/cache/pairs: those labelled as the same are one question, those labelled as different
are near misses of it. Five keys ask two models; a few questions are asked often and most of them once, in other
wordings, with greetings, in small letters, with slips. The engine says of each question what no other one is told,
each wording in other words, and takes its time. It knows what was asked, so every answer can be judged.
Twice: with the semantic tier in shadow mode, whose report is printed at the end, after a restart; and switched on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import orjson
import uvicorn
from harness import HERE, free_port, machine, velollm_serve

sys.path.insert(0, str(HERE.parent / "tests"))
from support.pairs import FOLDER, Pair, read_pairs

JSON = dict[str, Any]
KEYS = tuple(f"sk-{name}-0123456789abcdef" for name in ("ann", "bob", "cleo", "dan", "root"))
MODELS = {"qwen3:8b": 0.8, "llama3.2:3b": 0.2}
SECONDS_A_TOKEN = 0.002
AT_ONCE = 8
GREETINGS = ("", "", "", "", "", "Hi! ", "Hello, ", "hey, quick question: ", "Please ", "Could you tell me, ")
TAILS = ("", "", "", "", "", "", " Thanks!", " thank you", " please")


# The same questions in different pairs, found by reading what was answered as what.
ALSO_THE_SAME = (
    ("Can you describe the water cycle?", "I would appreciate it if you could explain the water cycle."),
    ("Can you explain photosynthesis?", "Explain photosynthesis!"),
    ("Can you explain photosynthesis?", "What is photosynthesis?"),
    ("Define inflation.", "What is inflation?"),
    ("Explain inflation.", "What is inflation?"),
    ("Explain entropy.", "What do you know about entropy?"),
    ("Give me an explanation of entropy.", "What is the definition of entropy?"),
    ("Explain the rules of baseball.", "What are baseball's rules?"),
    ("From Nice, how do I get to Paris?", "How do I get to Paris from Nice?"),
    ("From Paris, how do I get to Nice?", "How do I get to Nice from Paris?"),
    ("How do I cook a turkey?", "How do I cook turkey?"),
    ("How do I make pasta?", "How to make pasta"),
    ("How do I make tiramisu?", "What's the recipe for tiramisu?"),
    ("I want to learn guitar. Where do I start?", "I want to learn the guitar. Where do I start?"),
    ("What is the purpose of a mutex?", "What's a mutex used for?"),
    ("What symptoms does flu have?", "What symptoms does the flu have?"),
    ("What vitamins do carrots have?", "Which vitamins are in carrots?"),
    ("Whats the meening of life?", "What is the meaning of life?"),
    ("Who painted Guernica?", "who painted guernica"),
    ("Who wrote Hamlet?", "who wrote hamlet?"),
)


@attrs.frozen(kw_only=True)
class Question:
    """One wording; `number` is what all wordings of the question share."""

    text: str
    context: tuple[JSON, ...]
    number: int


@attrs.frozen(kw_only=True)
class Asked:
    """One request of the day."""

    key: str
    model: str
    question: Question
    text: str

    @property
    def body(self) -> JSON:
        messages = [*self.question.context, {"role": "user", "content": self.text}]
        return {"model": self.model, "temperature": 0, "messages": messages}


def questions() -> tuple[list[list[Question]], set[frozenset[int]]]:
    """The wordings of each question, and which two questions are labelled as different. Of most, nobody said so."""
    pairs = [pair for name in ("tuned", "held", "fresh") for pair in read_pairs(FOLDER / f"{name}.jsonl")]
    groups: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for pair in pairs:
        one, other = _sides(pair)
        joined = groups.setdefault(one, {one})
        if pair.same_answer:
            joined = joined | groups.setdefault(other, {other})
            groups.update(dict.fromkeys(joined, joined))
        groups.setdefault(other, {other})
    for text, same in ALSO_THE_SAME:
        joined = groups[text, "[]"] | groups[same, "[]"]
        groups.update(dict.fromkeys(joined, joined))
    distinct = {id(group): group for group in groups.values()}
    numbers = {member: number for number, group in enumerate(distinct.values()) for member in group}
    known = [
        [Question(text=text, context=tuple(orjson.loads(context)), number=number) for text, context in sorted(group)]
        for number, group in enumerate(distinct.values())
    ]
    apart = {frozenset(numbers[side] for side in _sides(pair)) for pair in pairs if not pair.same_answer}
    return known, apart


def _sides(pair: Pair) -> tuple[tuple[str, str], tuple[str, str]]:
    return (pair.a, orjson.dumps(pair.a_context).decode()), (pair.b, orjson.dumps(pair.b_context).decode())


def day(requests: int, rng: random.Random) -> list[Asked]:
    """The requests in order: every question with its near misses, the first ones of the list far more often."""
    known, _ = questions()
    rng.shuffle(known)
    weights = [1 / (rank + 3) for rank in range(len(known))]
    asked = []
    for group in rng.choices(known, weights, k=requests):
        question = rng.choice(group)
        text = question.text
        if not question.context and "\n" not in text:
            text = rng.choice(GREETINGS) + text + rng.choice(TAILS)
            text = text.lower() if rng.random() < 0.1 else text
        model = rng.choices(list(MODELS), list(MODELS.values()))[0]
        asked.append(Asked(key=rng.choice(KEYS), model=model, question=question, text=text))
    return asked


# ---- the engine ------------------------------------------------------------------------------------------------------


class Engine:
    """An ASGI app that speaks OpenAI's API and says of each question what belongs to it alone."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._numbers = {_said(one.body): one.question.number for one in asked}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = scope["method"] == "POST"
        while more:
            part = await receive()
            body, more = body + part["body"], part.get("more_body", False)
        answer = await self._answer(orjson.loads(body)) if body else {"data": [{"id": model} for model in MODELS]}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": orjson.dumps(answer)})

    async def _answer(self, body: JSON) -> JSON:
        number, said = self._numbers[_said(body)], _said(body)
        own = random.Random(number)
        words = [f"{own.choice('bdfgklmnprst')}{own.choice('aeiou')}{own.randrange(1000)}" for _ in range(12)]
        random.Random(said).shuffle(words)  # in other words
        await asyncio.sleep(SECONDS_A_TOKEN * 40)
        message = {"role": "assistant", "content": f"#{number}: {' '.join(words)}"}
        usage = {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


def _said(body: JSON) -> str:
    return orjson.dumps(body["messages"]).decode()


@contextmanager
def engine(asked: Sequence[Asked]) -> Iterator[int]:
    """The engine at work, and its port."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Engine(asked), port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def proxy(upstream: int, folder: Path, mode: str) -> Iterator[int]:
    """`velollm serve` with a key for everybody and a store on disk."""
    (folder / "keys.toml").write_text(
        "".join(
            f'[[keys]]\nname = "{key.split("-")[1]}"\nkey = "{key}"\nadmin = {str("root" in key).lower()}\n'
            for key in KEYS
        )
    )
    options = ("--backend", f"openai+http://127.0.0.1:{upstream}/v1", "--concurrency", str(AT_ONCE))
    kept = ("--semantic-cache", mode, "--cache-store", f"sqlite:{folder / mode}.db")
    with velollm_serve(*options, *kept, "--keys", str(folder / "keys.toml")) as (port, _):
        yield port


# ---- the day ---------------------------------------------------------------------------------------------------------


async def replay(port: int, asked: Sequence[Asked]) -> tuple[Counter[str], list[list[str]]]:
    """Ask everything in order, some at once; count what the cache said, and whether the answers were right. Those that
    were another question's are told with that question, for somebody to read."""
    counts: Counter[str] = Counter()
    texts = {one.question.number: one.question.text for one in asked}
    _, apart = questions()
    others: list[list[str]] = []
    known: set[tuple[str, str, int]] = set()
    waiting = iter(asked)

    async def work(client: httpx.AsyncClient) -> None:
        for one in waiting:
            place = one.key, one.model, one.question.number
            repeat = place in known
            headers = {"authorization": f"Bearer {one.key}"}
            answer = await client.post("/v1/chat/completions", json=one.body, headers=headers)
            said = answer.raise_for_status().headers["x-velollm-cache"].partition(";")[0]
            text = answer.json()["choices"][0]["message"]["content"]
            number = int(text[1:].partition(":")[0])
            known.add(place)
            counts[said] += 1
            counts["repeats"] += repeat
            if number == one.question.number:
                counts["right hits"] += said.startswith("hit")
            else:
                counts["wrong hits" if {number, one.question.number} in apart else "unlabelled hits"] += 1
                others.append([one.question.text, texts[number], said])

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        await asyncio.gather(*(work(client) for _ in range(AT_ONCE)))
    return counts, others


def report(folder: Path, *more: str) -> str:
    """What `velollm cache report` prints of a store."""
    command = [sys.executable, "-m", "velollm", "cache", "report", "--store", f"sqlite:{folder / 'shadow'}.db", *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run(requests: int, seed: int) -> JSON:
    """The day, both ways."""
    asked = day(requests, random.Random(seed))
    result: JSON = {}
    with tempfile.TemporaryDirectory() as name, engine(asked) as upstream:
        folder = Path(name)
        for mode in ("shadow", "on"):
            with proxy(upstream, folder, mode) as port:
                began = time.perf_counter()
                counts, others = asyncio.run(replay(port, asked))
                result[mode] = {**counts, "others": others, "seconds": round(time.perf_counter() - began, 1)}
        result["report"] = report(folder)
        result["evidence"] = json.loads(report(folder, "--json"))
    return result


def render(result: JSON, requests: int) -> str:
    """The results as a page."""
    lines = [f"# A day of {requests} requests\n\n{result['machine']}\n"]
    lines += ["| semantic tier | " + " | ".join(COLUMNS) + " | right hits of repeats |"]
    lines += ["|---|" + "--:|" * (len(COLUMNS) + 1)]
    for mode in ("shadow", "on"):
        row = result[mode]
        share = row.get("right hits", 0) / row["repeats"]
        lines.append(f"| {mode} | " + " | ".join(str(row.get(name, 0)) for name in COLUMNS) + f" | {share:.1%} |")
    lines.append(
        "\nRepeats are requests whose question that key had asked that model before, in whatever words. A hit is wrong "
        "where the labels say that its answer is another question's, and unlabelled where they do not say:\n"
        + "".join(f"\n- {asked!r} was answered as {other!r}" for asked, other in _told(result))
        + "\n"
    )
    lines.append("The report of the day in shadow mode, read from its store after the server was stopped:\n")
    return "\n".join(lines) + f"\n```\n{result['report'].rstrip()}\n```\n"


def _told(result: JSON) -> list[tuple[str, str]]:
    return sorted({(asked, other) for mode in ("shadow", "on") for asked, other, _ in result[mode]["others"]})


COLUMNS = (
    "repeats",
    "hit-exact",
    "hit-canonical",
    "hit-semantic",
    "miss",
    "bypass",
    "right hits",
    "wrong hits",
    "unlabelled hits",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the tables are written")
    args = parser.parse_args()
    result = {"machine": machine(), **run(args.requests, args.seed)}
    (args.out / "cache_day.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.out / "cache_day.md").write_text(render(result, args.requests))
    print(render(result, args.requests))


if __name__ == "__main__":
    main()
