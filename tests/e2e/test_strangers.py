"""What strangers, a kill -9 and a full disk do to a real `velollm serve`, and whom it calls."""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from support.faulty import JSON, MODELS, whole_answer
from support.upstream import Peer, Server, answer, scripted

from .conftest import free_port, velollm, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="limits and traces of Linux"),
]

CHAT = "/v1/chat/completions"
KEYS = '[[keys]]\nname = "a"\nkey = "a-key-of-the-first"\n[[keys]]\nname = "b"\nkey = "a-key-of-the-second"\n'
FIRST, SECOND = ({"authorization": f"Bearer a-key-of-the-{number}"} for number in ("first", "second"))


async def engine(peer: Peer) -> None:
    """Answers every question with its own words."""
    while (request := await peer.request()) is not None:
        if request.method == b"GET":
            peer.send(answer(MODELS, JSON))
            continue
        asked = orjson.loads(request.body)["messages"][-1]["content"]
        peer.send(answer(whole_answer(f"You said {asked}"), JSON))


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


class Rig:
    """A server that can be killed and started again, and a client of it."""

    def __init__(self, folder: Path, server: Server, *arguments: str, wrapper: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.log = folder / f"serve-{self.port}.log"
        self.command = [*wrapper, *velollm("serve", "--port", str(self.port), "--backend",
                                           f"openai+{server.url}/v1", *arguments)]  # fmt: skip
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    async def start(self, **options: Any) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out, **options)
        await asyncio.to_thread(wait_for, f"http://127.0.0.1:{self.port}/health", self.process, self.log)

    async def ask(self, text: str, **headers: str) -> httpx.Response:
        return await self.client.post(CHAT, json=question(text), headers=headers)

    async def end(self, number: int) -> int:
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 15)


@asynccontextmanager
async def rig(folder: Path, *arguments: str, wrapper: tuple[str, ...] = (), **options: Any) -> AsyncGenerator[Rig]:
    async with scripted(engine) as server:
        made = Rig(folder, server, *arguments, wrapper=wrapper)
        await made.start(**options)
        try:
            yield made
        finally:
            if made.process.poll() is None:
                await made.end(signal.SIGTERM)
            await made.client.aclose()


def said(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def test_what_another_key_has_cached_takes_as_long_as_what_nobody_asked(tmp_path: Path) -> None:
    """How often a stranger who guesses by the time is right: half the time, which is no better than a coin."""
    keys = tmp_path / "keys.toml"
    keys.write_text(KEYS)
    async with rig(tmp_path, "--keys", str(keys)) as proxy:
        cached, fresh = [], []
        for number in range(-20, 300):
            await proxy.ask(f"Question {number}", **FIRST)
            for kind, text in random.sample([(cached, f"Question {number}"), (fresh, f"Riddle {number}")], 2):
                begun = time.perf_counter()
                response = await proxy.ask(text, **SECOND)
                if number >= 0:
                    kind.append(time.perf_counter() - begun)
                assert response.headers["x-velollm-cache"] == "miss"
    right = statistics.fmean((a < b) + (a == b) / 2 for a in cached for b in fresh)
    assert 0.4 < right < 0.6  # chance alone strays by 0.024


PROPERTIES = {f"p{number}": {"type": "string"} for number in range(1000)}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}}
    for name in "abcde"
]
POISON = {
    "deep": b"[" * 200_000,
    "a huge number": b'{"n":' + b"9" * 1_000_000 + b"}",
    "half a request": b'{"model": "m", "messages": [' + b" " * 1_000_000,
    "many messages": orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}] * 400_000}),
    "many tools": orjson.dumps(question("x", tools=TOOLS)),
}


@pytest.mark.parametrize("name", POISON)
async def test_a_poisoned_request_costs_others_little(tmp_path: Path, name: str) -> None:
    async with rig(tmp_path) as proxy:
        await proxy.ask("warm")
        poison = asyncio.create_task(proxy.client.post(CHAT, content=POISON[name]))
        slowest = 0.0
        for number in range(20):
            begun = time.perf_counter()
            assert (await proxy.ask(f"Question {number}")).status_code == 200
            slowest = max(slowest, time.perf_counter() - begun)
        assert (await poison).status_code in (200, 400)
        assert slowest < 0.5  # the requirement: 0.2 s on a machine of its own


async def test_killed_again_and_again_it_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    options = ("--cache-store", f"sqlite:{tmp_path / 'cache.db'}")
    acknowledged: list[str] = []
    async with rig(tmp_path, *options) as proxy:
        for life in range(6):
            for text in acknowledged[-30:]:
                response = await proxy.ask(text)
                assert response.headers["x-velollm-cache"] == "hit-exact", (life, text)
                assert said(response) == f"You said {text}"

            async def one(text: str) -> None:
                with suppress(httpx.HTTPError):
                    assert said(await proxy.ask(text)) == f"You said {text}"
                    acknowledged.append(text)

            asking = [asyncio.create_task(one(f"Question {number} of life {life}")) for number in range(40)]
            await asyncio.sleep(random.uniform(0.02, 0.3))
            await proxy.end(signal.SIGKILL)
            await asyncio.gather(*asking)
            await proxy.start()
    assert acknowledged
    assert not list(tmp_path.glob("*set-aside*"))


async def test_a_full_disk_costs_nobody_an_answer(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the log as well, which stays below

    options = ("--cache-store", f"sqlite:{tmp_path / 'cache.db'}", "--log-level", "warning")
    async with rig(tmp_path, *options, preexec_fn=small_files) as proxy:
        for number in range(100):
            text = f"{number} " + "long " * 500
            assert said(await proxy.ask(text)) == f"You said {text}"
        for _ in range(50):  # what is written is written by a thread
            metrics = (await proxy.client.get("/metrics")).text
            if "velollm_cache_store_up 0.0" in metrics:
                break
            await asyncio.sleep(0.1)
        assert "velollm_cache_store_up 0.0" in metrics
        assert (await proxy.ask(text)).headers["x-velollm-cache"] == "hit-exact"
    assert proxy.log.read_text().count("WARNING") == 1


CONNECT = re.compile(
    r"connect\(\d+(?:<[^>]*>)?, \{sa_family=(AF_INET6?), .*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"([^\"]+)\""
)


async def test_it_calls_nobody_but_its_engine(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = shutil.which("strace")
    wrapper = (strace or "", "-f", "-qq", "-e", "trace=connect", "-o", str(trace))
    if strace is None or subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no strace, or it may not trace here")
    async with rig(tmp_path, wrapper=wrapper) as proxy:
        image = {"type": "image_url", "image_url": {"url": "http://192.0.2.1/x.png"}}
        tool = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "http://192.0.2.2/x.json"}}}
        for fields in ({"api_base": "http://192.0.2.3"}, {"base_url": "http://192.0.2.4"}, {"tools": [tool]},
                       {"messages": [{"role": "user", "content": [image]}]}):  # fmt: skip
            await proxy.client.post(CHAT, json=question("Hi", **fields), headers={"x-forwarded-host": "192.0.2.5"})
        await proxy.client.get("/velollm/")
        (child,) = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)  # strace waits for it
        await asyncio.to_thread(proxy.process.wait, 15)
    called = set(CONNECT.findall(trace.read_text()))
    assert called, "not even its engine"
    assert {address for _, address in called} <= {"127.0.0.1", "::1"}
