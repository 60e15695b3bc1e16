"""Memory and files of `velollm serve` under mixed faults: an engine that breaks in every way, clients that do as well.

    python benchmarks/soak.py [--minutes 30] [--clients 6]

Each client asks at random, whole or streamed, sometimes the same as before; sometimes it leaves in the middle, sends
half a request, or bytes that are none. Each answer of the engine is at random good, broken off, silent, garbage, a
refusal, too large, or nonsense in place of JSON. After a third of the time, growth is counted: the slope of a line
through the memory, in MB a minute, and files. What is asked at the end is answered. Writes results/soak.json; exit 1
where memory grows by 1 MB a minute or more, or 60 files are left open.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from harness import HERE, machine, velollm_serve

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: "
STREAM = HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}]}
WORDS = [f"word{number} " for number in range(30)]


# ---- the engine ------------------------------------------------------------------------------------------------------


def whole(body: Any, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    """An answer in one piece."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [b"HTTP/1.1 " + status, b"content-type: application/json", b"content-length: %d" % len(data), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + data


def chunk(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(delta: dict[str, str], reason: str | None = None) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    fields = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")


def good(stream: bool) -> bytes:
    """A right answer."""
    if stream:
        said = b"".join(event({"content": word}) for word in WORDS)
        return STREAM + said + event({}, "stop") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    message = {"role": "assistant", "content": "".join(WORDS)}
    return whole({"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


async def answer(stream: bool, writer: asyncio.StreamWriter) -> bool:
    """Answer in one of many ways; whether the connection goes on."""
    way = random.random()
    if way < 0.6:
        writer.write(good(stream))
        return True
    if way < 0.64:
        writer.write(whole({"error": {"message": "no"}}, random.choice([b"500 X", b"503 X", b"404 X"])))
        return True
    if way < 0.68:
        writer.write(whole(random.choice([b"<html>", b"", b"[]", b'{"choices": []}', b"[" * 60_000])))
        return True
    data = good(stream)
    if way < 0.72:
        data = random.randbytes(500)
    elif way < 0.76:
        data = STREAM + chunk(b"data: " + b"x" * (1 << 20)) * 10
    else:
        data = data[: random.randrange(len(data))]
    writer.write(data)
    await writer.drain()
    if way < 0.8:
        await asyncio.sleep(3)  # longer than anybody's patience
    elif way < 0.9:
        writer.transport.abort()
    return False


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        going_on = True
        while going_on:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), 0)
            body = await reader.readexactly(length)
            if head.startswith(b"GET"):
                writer.write(whole(MODELS))
            elif b"only good" in body:
                writer.write(good(False))
            else:
                going_on = await answer(b'"stream": true' in body, writer)
    writer.close()


# ---- the clients -----------------------------------------------------------------------------------------------------


def request(text: str, stream: bool) -> bytes:
    """A question."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}).encode()
    path = random.choice(["/v1/chat/completions", "/api/chat"])
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)) + body


async def client(port: int, end: float, seen: Counter[str]) -> None:
    """Asks and misbehaves until it is time."""
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        way = random.random()
        data = request(f"Question {random.randrange(10 ** random.choice([2, 9]))}", random.random() < 0.6)
        if way < 0.1:
            data = data[: random.randrange(len(data))]
        elif way < 0.15:
            data = random.randbytes(random.randrange(2000))
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(data)
            async with asyncio.timeout(0.05 if way < 0.35 else 8):
                first = await reader.read(65536)
                seen[first[9:12].decode("latin-1") or "closed"] += 1
                if way >= 0.25:
                    while not first.endswith((b"0\r\n\r\n", b"}")) and (first := await reader.read(65536)):
                        pass
        writer.transport.abort()
        await asyncio.sleep(random.expovariate(30))


def held(pid: int) -> tuple[float, int]:
    """Megabytes in memory, and open files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return kilobytes / 1024, len(os.listdir(f"/proc/{pid}/fd"))


async def soak(minutes: float, clients: int) -> dict[str, Any]:
    """The whole of it."""
    server = await asyncio.start_server(engine, "127.0.0.1", 0, limit=1 << 24)
    url = f"openai+http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    options = ("--backend", url, "--ttft-timeout", "1", "--idle-timeout", "1", "--cache-size", "4MiB")
    context = velollm_serve(*options)
    port, pid = await asyncio.to_thread(context.__enter__)
    seen: Counter[str] = Counter()
    samples: list[tuple[float, float, int]] = []
    try:
        begun = time.monotonic()
        end = begun + minutes * 60
        running = [asyncio.create_task(client(port, end, seen)) for _ in range(clients)]
        while time.monotonic() < end:
            await asyncio.sleep(2)
            samples.append((time.monotonic() - begun, *held(pid)))
        await asyncio.gather(*running)
        await asyncio.sleep(2)
        files = held(pid)[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            asked = {"model": "m", "messages": [{"role": "user", "content": "only good"}]}
            last = [(await http.post("/v1/chat/completions", json=asked)).status_code for _ in range(10)]
            metrics = (await http.get("/metrics")).text
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
        server.close()
    warm = [sample for sample in samples if sample[0] > minutes * 20]
    slope = statistics.linear_regression([at / 60 for at, _, _ in warm], [memory for _, memory, _ in warm]).slope
    running_now = [line for line in metrics.splitlines() if line.startswith("velollm_num_requests_running")]
    return {
        "machine": machine(), "minutes": minutes, "clients": clients, "answers": dict(sorted(seen.items())),
        "mb_a_minute": round(slope, 3), "mb_at_first": round(warm[0][1], 1), "mb_at_last": round(warm[-1][1], 1),
        "files_at_first": warm[0][2], "files_at_last": files, "answered_at_last": last.count(200),
        "still_running": sum(float(line.rpartition(" ")[2]) for line in running_now),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=6)
    args = parser.parse_args()
    found = asyncio.run(soak(args.minutes, args.clients))
    print(json.dumps(found, indent=2))
    (HERE / "results" / "soak.json").write_text(json.dumps(found, indent=2) + "\n")
    well = found["mb_a_minute"] < 1 and found["files_at_last"] - found["files_at_first"] < 60
    return 0 if well and found["answered_at_last"] >= 9 and not found["still_running"] else 1


if __name__ == "__main__":
    sys.exit(main())
