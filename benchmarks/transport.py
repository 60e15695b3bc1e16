"""CPU time of HTTP clients a request: the pooled transport beside what could have taken its place.

    python benchmarks/transport.py [--rounds 5] [--seconds 1]

All of them on uvloop, against the same upstream in another process, in interleaved rounds; figures are medians.
Writes results/transport.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import cast

import aiohttp
import httpx
import uvloop
from harness import HERE, machine, raw_upstream
from httpx_aiohttp import AiohttpTransport

from velollm.transport import PooledTransport, Upstream

PATH = "/v1/chat/completions"
CHUNKS = 64
HEADERS = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
MESSAGES = [{"role": "user", "content": "Why is the sky blue? Explain it in three sentences."}]
JSON_BODY = json.dumps({"model": "m", "messages": MESSAGES}).encode()
STREAM_BODY = json.dumps({"model": "m", "messages": MESSAGES, "stream": True}).encode()

Exchange = Callable[[bytes], Awaitable[int]]  # sends a body, reads the answer, returns its size


@asynccontextmanager
async def httpx_client(base: str) -> AsyncIterator[Exchange]:
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        url = httpx.URL(base + PATH)

        async def exchange(body: bytes) -> int:
            request = client.build_request("POST", url, content=body, headers=HEADERS)
            response = await client.send(request, stream=True)
            size = sum([len(piece) async for piece in response.aiter_raw()])
            await response.aclose()
            return size

        yield exchange


@asynccontextmanager
async def _transport(base: str, transport: httpx.AsyncBaseTransport) -> AsyncIterator[Exchange]:
    url = httpx.URL(base + PATH)
    async with transport:

        async def exchange(body: bytes) -> int:
            headers = [*HEADERS, (b"content-length", b"%d" % len(body))]
            timeout = {"timeout": {"connect": 5.0, "read": 60.0, "write": 60.0, "pool": 5.0}}
            request = httpx.Request("POST", url, headers=headers, stream=httpx.ByteStream(body), extensions=timeout)
            response = await transport.handle_async_request(request)
            stream = response.stream
            assert isinstance(stream, httpx.AsyncByteStream)
            size = sum([len(piece) async for piece in stream])
            await stream.aclose()
            return size

        yield exchange


@asynccontextmanager
async def httpx_aiohttp(base: str) -> AsyncIterator[Exchange]:
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with session, _transport(base, AiohttpTransport(client=session)) as exchange:
        yield exchange


@asynccontextmanager
async def plain_aiohttp(base: str) -> AsyncIterator[Exchange]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        headers = {name.decode(): value.decode() for name, value in HEADERS}

        async def exchange(body: bytes) -> int:
            async with session.post(base + PATH, data=body, headers=headers) as response:
                return sum([len(piece) async for piece in response.content.iter_any()])

        yield exchange


@asynccontextmanager
async def pooled(base: str) -> AsyncIterator[Exchange]:
    async with _transport(base, PooledTransport()) as exchange:
        yield exchange


@asynccontextmanager
async def upstream(base: str) -> AsyncIterator[Exchange]:
    engine = Upstream(base, name="bench")

    async def exchange(body: bytes) -> int:
        async with await engine.post_json(PATH, body) as response:
            return sum([len(piece) async for piece in response.chunks()])

    yield exchange
    await engine.aclose()


class Bare(asyncio.Protocol):
    """No HTTP at all: writes a request, counts bytes until the answer ends as it is known to."""

    def __init__(self) -> None:
        self.size = 0
        self.done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        if data.endswith((b"}", b"0\r\n\r\n")) and self.done is not None:
            self.done.set_result(None)


@asynccontextmanager
async def bare(base: str) -> AsyncIterator[Exchange]:
    idle: list[Bare] = []
    loop = asyncio.get_running_loop()
    port = int(base.rpartition(":")[2])
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n".encode()

    async def exchange(body: bytes) -> int:
        peer = idle.pop() if idle else (await loop.create_connection(Bare, "127.0.0.1", port))[1]
        peer.size, peer.done = 0, loop.create_future()
        peer.transport.write(head % len(body) + body)
        await peer.done
        idle.append(peer)
        return peer.size

    yield exchange
    for peer in idle:
        peer.transport.close()


CLIENTS = {
    "bare sockets (the floor)": bare,
    "httpx.AsyncClient": httpx_client,
    "httpx-aiohttp's transport": httpx_aiohttp,
    "aiohttp": plain_aiohttp,
    "PooledTransport": pooled,
    "Upstream (PooledTransport, limits, errors)": upstream,
}
CASES = {
    "JSON, 1 at a time": (JSON_BODY, 1),
    "JSON, 32 at a time": (JSON_BODY, 32),
    "SSE, 1 at a time": (STREAM_BODY, 1),
    "SSE, 32 at a time": (STREAM_BODY, 32),
}
Figures = dict[str, dict[str, float]]


async def measure(exchange: Exchange, body: bytes, concurrency: int, seconds: float) -> float:
    """CPU seconds a request of this process."""
    count = 0
    sizes: set[int] = set()
    end = perf_counter() + seconds

    async def work() -> None:
        nonlocal count
        while perf_counter() < end:
            sizes.add(await exchange(body))
            count += 1

    begin = process_time()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    used = process_time() - begin
    assert len(sizes) == 1, f"answers of different sizes: {sizes}"
    return used / count


async def compare(base: str, rounds: int, seconds: float) -> Figures:
    """Medians over interleaved rounds, by case and client."""
    cells: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for name, client in CLIENTS.items():
            async with client(base) as exchange:
                for case, (body, concurrency) in CASES.items():
                    await measure(exchange, body, concurrency, 0.1)
                    cells.setdefault((case, name), []).append(await measure(exchange, body, concurrency, seconds))
        print(f"round {number} of {rounds}" if number else "warm", file=sys.stderr)
    return {case: {name: statistics.median(cells[case, name][1:]) for name in CLIENTS} for case in CASES}


def table(figures: Figures) -> str:
    """CPU µs a request, and how many times the pooled transport's that is, in Markdown."""
    lines = ["| client | " + " | ".join(CASES) + " |", "|---|" + "--:|" * len(CASES)]
    for name in CLIENTS:
        cells = [
            f"{figures[case][name] * 1e6:.0f} ({figures[case][name] / figures[case]['PooledTransport']:.1f}x)"
            for case in CASES
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(figures: Figures) -> str:
    """Whether the own transport pays."""
    times = [row["httpx-aiohttp's transport"] / row["PooledTransport"] for row in figures.values()]
    kept = "it is kept" if min(times) >= 2 else "where it is less than twice as fast, it is kept for its limits"
    spread = f"{min(times):.1f} to {max(times):.1f} times less CPU than httpx-aiohttp's transport called directly"
    return f"The pooled transport takes {spread}; the bar for an own one was twice: {kept}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load, for each case and round")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the table is written")
    arguments = parser.parse_args()
    with raw_upstream() as port, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(compare(f"http://127.0.0.1:{port}", arguments.rounds, arguments.seconds))
    versions = ", ".join(f"{name} {version(name)}" for name in ("httpx", "httpx-aiohttp", "aiohttp", "uvloop"))
    text = f"""# CPU time of HTTP clients

CPU µs a request (in brackets: times the pooled transport's). A stream has {CHUNKS} chunks.

{table(figures)}

{verdict(figures)}

Medians of {arguments.rounds} interleaved rounds of {arguments.seconds:g} s each, on uvloop, the upstream in another
process. Measured on {machine()}; {versions}. Repeat with `python benchmarks/transport.py`.
"""
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "transport.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
