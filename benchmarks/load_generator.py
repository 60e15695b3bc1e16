"""Whether the load generator of `velollm bench` keeps up: how late it sees what a server sent, stream by stream.

    python benchmarks/load_generator.py [--streams 200] [--rate 50] [--seconds 10]

The server, a process of its own on a core of its own, writes into each token the time at which it sends it; both
processes read the same clock, and go before their neighbours where that is allowed. The streams send `together`, as an
engine does that computes all in one step, or `spread` over time. Beside it the same streams read by httpx, as a client
would that measures while it reads. Writes results/load_generator.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import ClassVar

import attrs
import httpx
import uvloop
from harness import HERE, go_ahead, machine

from velollm.bench.connection import HttpClient
from velollm.bench.http_asker import HttpAsker
from velollm.bench.question import Question
from velollm.bench.runner import run
from velollm.bench.schedule import Schedule
from velollm.bench.statistics import percentile
from velollm.bench.wires import Asking

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TICK = 0.001
GOAL = 0.001


def apart(core: int) -> None:
    """Run on this core alone, before others: neighbours are not what is measured."""
    if (os.cpu_count() or 1) > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    go_ahead()


# ---- the server ------------------------------------------------------------------------------------------------------


class Stream(asyncio.Protocol):
    """A connection that is answered with a stream; `left` are the tokens still to be sent, `due` is when."""

    streams: ClassVar[list[Stream]] = []
    tokens, period, spread = 0, 0.0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.left = 0
        self.received = b""
        Stream.streams.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        Stream.streams.remove(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if b"}" not in self.received:  # the body may come after the head
            return
        self.received = b""
        self.transport.write(HEAD)
        self.left = Stream.tokens
        now = perf_counter()
        number = Stream.streams.index(self)
        phase = Stream.period * number / 200 if Stream.spread else 0.0
        self.due = (now // Stream.period + 2) * Stream.period + phase  # on one beat, whenever it was asked

    def tick(self, now: float) -> None:
        if not self.left or now < self.due:
            return
        self.due += Stream.period
        self.left -= 1
        said = b'data: {"choices":[{"index":0,"delta":{"content":"%.7f "},"finish_reason":%b}]}\n\n' % (
            perf_counter(), b"null" if self.left else b'"length"',
        )  # fmt: skip
        end = b"" if self.left else b"0\r\n\r\n"
        self.transport.write(b"%x\r\n%b\r\n%b" % (len(said), said, end))


async def serve(tokens: int, rate: float, spread: bool) -> None:
    Stream.tokens, Stream.period, Stream.spread = tokens, 1 / rate, spread
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    while True:
        now = perf_counter()
        for stream in list(Stream.streams):
            stream.tick(now)
        await asyncio.sleep(max(0.0, TICK - (perf_counter() - now)))


# ---- the clients -----------------------------------------------------------------------------------------------------


class Noting(HttpAsker):
    """Notes when each request was sent, on the clock of both processes."""

    def __init__(self, client: HttpClient) -> None:
        super().__init__(client, "openai", Asking(model="m"))
        self.sent: dict[int, float] = {}

    async def ask(self, question, record):
        async for step in super().ask(question, record):
            self.sent[record.number] = record.sent
            yield step


async def ours(port: int, streams: int) -> tuple[list[float], dict[str, float]]:
    client = HttpClient(f"http://127.0.0.1:{port}")
    asker = Noting(client)
    questions = [Question(messages=({"role": "user", "content": "x"},))] * streams
    done = await run(asker, questions, [0.0] * streams, Schedule(concurrency=streams))
    await client.aclose()
    late = []
    for record in done.records:
        assert record.good, record.error
        sent = [float(word) for word in record.text.split()]
        assert len(sent) == len(record.arrivals)
        late += [asker.sent[record.number] + seen - at for seen, at in zip(record.arrivals, sent, strict=True)]
    return late, attrs.asdict(done.lag)


async def by_httpx(port: int, streams: int) -> tuple[list[float], dict[str, float]]:
    late: list[float] = []

    async def one(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/v1/chat/completions", json={"messages": []}) as response:
            async for line in response.aiter_lines():
                if line:
                    now = perf_counter()
                    chunk = json.loads(line.removeprefix("data: "))
                    late.append(now - float(chunk["choices"][0]["delta"]["content"]))

    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(streams)))
    return late, {}


CLIENTS = {"velollm bench": ours, "httpx": by_httpx}


def measure(client: str, arrangement: str, asked: argparse.Namespace) -> dict[str, object]:
    tokens = int(asked.rate * asked.seconds)
    command = [sys.executable, __file__, "--serve", arrangement, "--rate", str(asked.rate), "--tokens", str(tokens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            late, said = uvloop.run(CLIENTS[client](port, asked.streams))
        finally:
            server.terminate()
    ordered = sorted(late)
    found = {f"p{percent}_ms": round(percentile(ordered, percent) * 1000, 3) for percent in (50, 90, 99, 99.9)}
    facts = {"client": client, "streams": arrangement, "tokens": len(ordered), **found}
    if said:
        facts["said_p99_ms"] = round(said["p99"] * 1000, 3)
        facts["cpu_share"] = round(said["cpu"], 3)
        facts["goal_met"] = percentile(ordered, 99) < GOAL
    print(json.dumps(facts), file=sys.stderr)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second of each stream")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "load_generator.json")
    parser.add_argument("--serve", choices=("together", "spread"), help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        apart(0)
        # asyncio's own loop: uvloop would send only after all of a step were written, later than they say.
        asyncio.run(serve(asked.tokens, asked.rate, asked.serve == "spread"))
        return
    apart(1)
    rows = [measure(client, arrangement, asked) for arrangement in ("together", "spread") for client in CLIENTS]
    facts = {"machine": machine(), "streams": asked.streams, "rate": asked.rate, "goal": "p99 < 1 ms", "rows": rows}
    asked.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
