"""A small measurement: so many clients at once, then one alone. Enough to tell a good tuning from a bad one.

Client side, closed loop, over HTTP; not a benchmark to publish (that is `velollm bench`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import attrs
import httpx
import orjson

__all__ = ["Load", "Measurement", "measure", "middle"]

SUBJECTS = (
    "a lighthouse", "an old train", "the first snow", "a lost key", "two bakers", "a night market", "the ferry man",
    "a stray dog", "the clock tower", "a mountain hut", "an honest thief", "the last bus", "a quiet river",
    "a stolen violin", "a garden wall", "the harbour",
)  # fmt: skip
PADDING = "It should be easy to read aloud, and it should not be long. "
PATIENCE = 600.0


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


@attrs.frozen(kw_only=True)
class _Answer:
    tokens: int
    first: float
    failed: bool = False


async def measure(url: str, kind: str, model: str, load: Load, *, key: str = "", seed: int = 0) -> Measurement:
    """Load the engine at `url` (`kind` ollama or llamacpp) with one warm-up, all clients together, then one alone.

    Prompts differ by client and `seed`, so that no engine answers from a cache of prompts.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=load.clients + 1)
    async with httpx.AsyncClient(
        base_url=url, timeout=PATIENCE, limits=limits, headers=headers, trust_env=False
    ) as client:
        await _ask(client, kind, model, _prompt(load, seed, 997), 4)
        began = time.perf_counter()
        together = await asyncio.gather(
            *(_ask(client, kind, model, _prompt(load, seed, number), load.tokens) for number in range(load.clients))
        )
        seconds = time.perf_counter() - began
        alone = await _ask(client, kind, model, _prompt(load, seed, 998), 4)
    good = [answer for answer in together if not answer.failed]
    return Measurement(
        throughput=sum(answer.tokens for answer in good) / seconds,
        ttft=fmean(answer.first for answer in good) if good else PATIENCE,
        ttft_alone=alone.first,
        failed=len(together) - len(good) + alone.failed,
    )


def middle(measurements: Sequence[Measurement]) -> Measurement:
    """The medians of several."""
    return Measurement(
        throughput=median(one.throughput for one in measurements),
        ttft=median(one.ttft for one in measurements),
        ttft_alone=median(one.ttft_alone for one in measurements),
        failed=sum(one.failed for one in measurements),
    )


def _prompt(load: Load, seed: int, number: int) -> str:
    subject = SUBJECTS[(seed * 7 + number) % len(SUBJECTS)]
    padding = PADDING * max(0, (load.prompt - 20) // 14)
    return f"Story {seed * 1000 + number}: tell a story about {subject}. {padding}Begin at once."


async def _ask(client: httpx.AsyncClient, kind: str, model: str, prompt: str, tokens: int) -> _Answer:
    messages = [{"role": "user", "content": prompt}]
    if kind == "ollama":
        path = "/api/chat"
        body: dict[str, Any] = {"options": {"num_predict": tokens, "temperature": 0.0, "seed": 1}}
    else:
        path = "/v1/chat/completions"
        body = {"max_tokens": tokens, "temperature": 0.0, "stream_options": {"include_usage": True}}
    began = time.perf_counter()
    first, count = 0.0, 0
    try:
        async with client.stream(
            "POST", path, json={"model": model, "messages": messages, "stream": True, **body}
        ) as response:
            if response.status_code != 200:
                return _Answer(tokens=0, first=0.0, failed=True)
            async for line in response.aiter_lines():
                chunk = _chunk(line)
                if chunk is None:
                    continue
                if not first:
                    first = time.perf_counter() - began
                count = _count(chunk) or count
                if "error" in chunk:
                    return _Answer(tokens=0, first=first, failed=True)
    except httpx.HTTPError:
        return _Answer(tokens=0, first=first, failed=True)
    return _Answer(tokens=count, first=first, failed=count == 0)


def _chunk(line: str) -> dict[str, Any] | None:
    text = line.removeprefix("data: ").strip()
    if not text or text == "[DONE]":
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _count(chunk: dict[str, Any]) -> int:
    usage = chunk.get("usage")
    value = usage.get("completion_tokens") if isinstance(usage, dict) else chunk.get("eval_count")
    return value if type(value) is int else 0
