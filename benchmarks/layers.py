"""What the layers before the engines cost when nothing waits: admission, truncation, batching, scheduling, routing.

    python benchmarks/layers.py [--save]

A backend that answers at once is asked alone and behind the layers, interleaved, in one process and without sockets;
the difference of the medians, in CPU time, is what they cost: with one backend and with three, whole and streamed, and
with each policy of routing. The goal is 15 µs a request. Results go to benchmarks/results/layers.json with --save.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import AsyncGenerator
from time import thread_time

from harness import HERE, machine

from velollm.admission import AdmissionLayer
from velollm.backend import Backend
from velollm.batching import BatchingLayer
from velollm.messages import ChatEvent, ChatRequest, Message, ModelInfo, Usage
from velollm.routing import BackendPool, Turns
from velollm.truncation import TruncationLayer

GOAL = 15.0  # microseconds
ROUNDS, REQUESTS, PIECES = 41, 300, 12


class Instant(Backend):
    """Answers at once: in one event, or in a stream of some."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        usage = Usage(prompt_tokens=20, completion_tokens=PIECES)
        if not request.stream:
            yield ChatEvent("hello", finish_reason="stop", usage=usage)
            return
        for _ in range(PIECES - 1):
            yield ChatEvent("hello")
        yield ChatEvent(finish_reason="stop", usage=usage)

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id="m")]

    async def slots(self, model: str) -> int:
        return 4


def layers(count: int, policy: str) -> tuple[Backend, BackendPool]:
    """The layers in front of so many backends, as `velollm serve` has them."""
    pool = BackendPool([Instant(f"b{number}") for number in range(count)], turns=Turns(policy=policy, concurrency=0))
    return AdmissionLayer(TruncationLayer(BatchingLayer(pool))), pool


def request(*, stream: bool) -> ChatRequest:
    messages = [Message(role="system", content="Be brief."), Message(role="user", content="What is the time? " * 5)]
    return ChatRequest(model="m", messages=messages, max_tokens=100, stream=stream)


async def seconds(backend: Backend, *, stream: bool) -> float:
    """Of one request, the mean of many."""
    asked = [request(stream=stream) for _ in range(REQUESTS)]
    begin = thread_time()
    for one in asked:
        async for _ in backend.chat(one):
            pass
    return (thread_time() - begin) / REQUESTS


async def cost(count: int, policy: str, *, stream: bool) -> float:
    """Microseconds of a request in the layers."""
    bare = Instant("bare")
    front, pool = layers(count, policy)
    await seconds(front, stream=stream)
    without, within = [], []
    for _ in range(ROUNDS):
        without.append(await seconds(bare, stream=stream))
        within.append(await seconds(front, stream=stream))
    await pool.aclose()
    return (statistics.median(within) - statistics.median(without)) * 1e6


async def measure() -> dict[str, float]:
    found = {}
    for count, policies in ((1, ("least-loaded",)), (3, ("least-loaded", "prefix", "round-robin", "weighted"))):
        for policy in policies:
            for stream in (False, True):
                kind = f"streamed, {PIECES} events" if stream else "whole"
                name = f"{count} backend{'s' if count > 1 else ''}, {policy}, {kind}"
                found[name] = round(await cost(count, policy, stream=stream), 2)
                print(f"{name:48} {found[name]:6.1f} µs", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    found = asyncio.run(measure())
    if asked.save:
        record = {"machine": machine(), "goal": GOAL, "microseconds": found}
        (HERE / "results" / "layers.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(value <= GOAL for name, value in found.items() if name.endswith("whole")) else 1


if __name__ == "__main__":
    sys.exit(main())
