"""What the benchmarks share: a bare client that keeps connections busy, CPU time of processes, and where results go."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, cast
from urllib.request import urlopen

import attrs
import httptools

HERE = Path(__file__).parent


@attrs.define(kw_only=True)
class Load:
    """What a client saw: answered requests, their latencies in seconds, and the wall time of it all."""

    requests: int
    seconds: float
    latencies: list[float]


MARK = b"########"  # what stands in a request where its number is to be
NUMBERS = itertools.count()


class Caller(asyncio.Protocol):
    """One connection that sends the request again as soon as it is answered, until it is told to stop.

    Each has a number of its own in place of `MARK`, so that no cache can answer it.
    """

    def __init__(self, request: bytes, frames: int) -> None:
        self.request = request
        self.frames = frames  # events of the answer, 0 when it is not a stream
        self.latencies: list[float] = []
        self.stopping = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.next()

    def next(self) -> None:
        self.body = b""
        self.parser = httptools.HttpResponseParser(self)
        self.begin = perf_counter()
        self.transport.write(self.request.replace(MARK, b"%08d" % next(NUMBERS)))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.latencies.append(perf_counter() - self.begin)
        if self.parser.get_status_code() != 200 or self.body.count(b"data: ") != self.frames:
            self.fail(f"status {self.parser.get_status_code()}: {self.body[:300]!r}")
        elif self.stopping:
            self.transport.close()
            self.finish()
        elif not self.parser.should_keep_alive():
            self.fail("the connection is not kept")
        else:
            self.next()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail("the connection ended")

    def fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"after {len(self.latencies)} answers: {why}"))

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def http_request(port: int, path: str, body: bytes) -> bytes:
    """A POST of JSON, as a client of OpenAI's API sends it."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"accept: application/json\r\nauthorization: Bearer sk-bench\r\nuser-agent: bench\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def press(port: int, request: bytes, *, frames: int, concurrency: int, seconds: float) -> Load:
    """Keep `concurrency` connections busy for `seconds`; every answer is checked."""
    loop = asyncio.get_running_loop()
    begin = perf_counter()
    callers = []
    for _ in range(concurrency):
        _, caller = await loop.create_connection(lambda: Caller(request, frames), "127.0.0.1", port)
        callers.append(caller)
    await asyncio.sleep(seconds)
    for caller in callers:
        caller.stopping = True
    await asyncio.wait_for(asyncio.gather(*(caller.done for caller in callers)), 120)
    latencies = [latency for caller in callers for latency in caller.latencies]
    return Load(requests=len(latencies), seconds=perf_counter() - begin, latencies=latencies)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process, with threads and children that have ended, and its living children used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11:15])  # utime, stime, and both of children that were waited for
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()]  # fmt: skip
    return ticks / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children))


def go_ahead() -> None:
    """Run before other programs, with all that is started from here, where that is allowed: they are not measured."""
    with suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(script: str, *options: str) -> Iterator[int]:
    """A script beside this one that says first on which port it listens: the port."""
    command = [sys.executable, str(HERE / script), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def raw_upstream() -> AbstractContextManager[int]:
    """The fixed upstream, and its port."""
    return listening("raw_upstream.py")


@contextmanager
def velollm_serve(*options: str) -> Iterator[tuple[int, int]]:
    """`velollm serve` with these options, once it is ready: its port and its process."""
    port = free_port()
    command = [sys.executable, "-m", "velollm", "-q", "serve", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            end = perf_counter() + 90
            while not _is_ready(port):
                if perf_counter() > end or process.poll() is not None:
                    raise RuntimeError("velollm serve did not start")
                time.sleep(0.1)
            yield port, process.pid
        finally:
            process.terminate()


def _is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def publish(result: dict[str, Any], name: str, *, save: bool) -> None:
    """Print what was measured, and with `save` write it to results/NAME.json."""
    text = json.dumps(result, indent=2)
    print(text)
    if save:
        (HERE / "results" / f"{name}.json").write_text(text + "\n")


def machine() -> str:
    """What it was measured on."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.*)", info)
    cores = len(re.findall(r"^processor\s*:", info, re.MULTILINE))
    return f"{model[1] if model else platform.machine()}, {cores} cores, Linux, Python {platform.python_version()}"
