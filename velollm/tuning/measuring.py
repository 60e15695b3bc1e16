"""What `velollm tune` measures: so many clients at once, then one alone, by the load generator of `velollm bench`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import attrs

from velollm.bench.connection import HttpClient
from velollm.bench.http_asker import HttpAsker
from velollm.bench.runner import Run, run
from velollm.bench.schedule import Schedule
from velollm.bench.summary import summarise
from velollm.bench.wires import Asking
from velollm.bench.workload import questions

__all__ = ["Load", "Measurement", "measure", "middle"]

PATIENCE = 600.0
SHORT = 4  # tokens: so long are answers whose first token alone counts


@attrs.frozen(kw_only=True)
class Load:
    """`clients` at once, each with a prompt of about `prompt` tokens of its own and an answer of `tokens` tokens."""

    clients: int = 8
    tokens: int = 48
    prompt: int = 60


@attrs.frozen(kw_only=True)
class Measurement:
    """Answer tokens a second of all clients, seconds to the first token under load and alone, failures."""

    throughput: float
    ttft: float
    ttft_alone: float
    failed: int = 0


async def measure(url: str, kind: str, model: str, load: Load, *, key: str = "", seed: int = 0) -> Measurement:
    """Load the engine at `url` (`kind` ollama or llamacpp) with one warm-up, all clients together, then one alone.

    Prompts differ by client and `seed`, so that no engine answers from a cache of prompts.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    client = HttpClient(url, headers=headers, patience=PATIENCE)
    asker = HttpAsker(client, kind, Asking(model=model))

    async def ask(count: int, tokens: int, part: int) -> Run:
        asked = questions("chat", count, seed=3 * seed + part, prompt=load.prompt, answer=tokens)
        return await run(asker, asked, [0.0] * count, Schedule(concurrency=count))

    try:
        await ask(1, SHORT, 0)
        together, alone = await ask(load.clients, load.tokens, 1), await ask(1, SHORT, 2)
    finally:
        await client.aclose()
    figures = summarise(together.records, together.seconds)
    return Measurement(
        throughput=figures["output_throughput"],
        ttft=figures["mean_ttft_ms"] / 1000 if figures["completed"] else PATIENCE,
        ttft_alone=alone.records[0].ttft,
        failed=figures["failed"] + (not alone.records[0].good),
    )


def middle(measurements: Sequence[Measurement]) -> Measurement:
    """The medians of several."""
    return Measurement(
        throughput=median(one.throughput for one in measurements),
        ttft=median(one.ttft for one in measurements),
        ttft_alone=median(one.ttft_alone for one in measurements),
        failed=sum(one.failed for one in measurements),
    )
