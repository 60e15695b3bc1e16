"""Real engines that are killed, stopped and started again, with the whole server in front of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
from support.faulty import client_text
from support.serving import Served, post, serve, served
from tiny_gguf import write_tiny_gguf

from velollm.backend import Limits
from velollm.config import CacheSettings, Settings
from velollm.contrib.llamacpp import LlamaServerBackend
from velollm.contrib.llamacpp.plan import make_plan, this_machine
from velollm.contrib.llamacpp.process import LlamaProcess
from velollm.models.gguf import read_gguf
from velollm.routing import BackendPool

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

PATH = "/v1/chat/completions"
LIMITS = Limits(connect=1, first_byte=8, idle=8)
KEY = "a-key-for-the-tests-only"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


class Rig:
    """Several llama-servers with one model, and the server in front."""

    def __init__(self, processes: list[LlamaProcess], pool: BackendPool, front: Served) -> None:
        self.processes = processes
        self.begun = 0  # answers
        self.pool = pool
        self.front = front

    def signal(self, number: int, what: signal.Signals) -> None:
        pid = self.processes[number].pid
        assert pid is not None
        os.kill(pid, what)

    async def again(self, number: int) -> None:
        """Start an engine that has ended anew, on its port."""
        old = self.processes[number]
        await old.ended.wait()
        await old.stop()  # of it nothing is left but its pipe
        port = int(old.url.rpartition(":")[2])
        new = self.processes[number] = LlamaProcess({**old._parameters, "port": port}, name=old.name)
        await new.start(60)

    async def ask(self, text: str = "Tell a tale", **fields: Any) -> tuple[str, list[dict[str, Any]], bool]:
        payload = {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True,
                   "max_tokens": 120, **fields}  # fmt: skip
        async with self.front.connect() as connection:
            connection.send(post(PATH, payload))
            async with asyncio.timeout(60):
                status, headers = await connection.head()
                self.begun += 1
                body = await connection.body(headers)
        assert status == 200, body
        return client_text(Text(body))  # type: ignore[arg-type]


class Text:
    def __init__(self, body: bytes) -> None:
        self.text = body.decode()


@asynccontextmanager
async def rig(model: Path, names: str = "ab") -> AsyncGenerator[Rig, None]:
    plan = make_plan(read_gguf(model), this_machine(), ctx=2048, parallel=4, threads=1)
    async with AsyncExitStack() as stack:
        processes, backends = [], []
        for name in names:
            options = {**attrs.asdict(plan), "path": str(model), "names": ["m"], "key": KEY}
            process = LlamaProcess(options, name=name)
            url = await process.start(60)
            backends.append(LlamaServerBackend(url, name=name, limits=LIMITS, api_key=KEY))
            processes.append(process)

        async def stop() -> None:
            for process in processes:
                await process.stop()

        stack.push_async_callback(stop)
        app = served(*backends, settings=Settings(cache=CacheSettings(enabled=False)))
        front = await stack.enter_async_context(serve(app))
        yield Rig(processes, app.pool, front)


@pytest.fixture
async def engines(tiny: Path) -> AsyncIterator[Rig]:
    async with rig(tiny) as made:
        yield made


async def test_a_killed_engine_is_replaced_in_the_middle_of_its_streams(
    engines: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [await engines.ask(f"Tell tale {number}", max_tokens=1500) for number in range(6)]
    assert all(done and not errors for _, errors, done in expected)
    asking = [asyncio.create_task(engines.ask(f"Tell tale {number}", max_tokens=1500)) for number in range(6)]
    health = engines.pool.members[0].health
    async with asyncio.timeout(20):
        while not health.running:
            await asyncio.sleep(0.002)
        since = time.monotonic()
        while health.heard < since:  # it has said something of an answer of 1500 tokens
            await asyncio.sleep(0.002)
    engines.signal(0, signal.SIGKILL)
    assert await asyncio.gather(*asking) == expected
    assert "another backend is to go on" in caplog.text
    for _ in range(6):
        assert (await engines.ask("Tell tale 0", max_tokens=1500)) == expected[0]


async def test_a_stopped_engine_loses_its_work_and_comes_back(engines: Rig) -> None:
    expected = await engines.ask()
    engines.signal(0, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        found = await asyncio.gather(*(engines.ask() for _ in range(4)))
        assert found == [expected] * 4
        assert time.monotonic() - begin < 20
        now = time.monotonic()
        assert await engines.ask() == expected
        assert time.monotonic() - now < 5, "it is avoided once it is known to hang"
    finally:
        engines.signal(0, signal.SIGCONT)
    begin = time.monotonic()
    member = next(member for member in engines.pool.members if member.name == "a")
    while not member.health.allows(time.monotonic()):
        assert time.monotonic() - begin < 3
        await engines.ask(max_tokens=5)
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("signals", [(signal.SIGKILL, signal.SIGKILL), (signal.SIGSTOP, signal.SIGKILL)])
async def test_two_of_three_fail_one_after_the_other_in_the_same_streams(
    tiny: Path, signals: tuple[signal.Signals, signal.Signals]
) -> None:
    async with rig(tiny, "abc") as engines:
        expected = [await engines.ask(f"Tell tale {number}", max_tokens=900) for number in range(6)]
        asking = [asyncio.create_task(engines.ask(f"Tell tale {number}", max_tokens=900)) for number in range(6)]
        try:
            async with asyncio.timeout(30):
                while engines.begun < 2 * len(expected):  # who loses two engines before its first word is given up
                    await asyncio.sleep(0.002)
            for number, what in enumerate(signals):
                health = engines.pool.members[number].health
                async with asyncio.timeout(30):
                    while not health.running and not all(task.done() for task in asking):
                        await asyncio.sleep(0.002)
                    since = time.monotonic()
                    while health.heard < since and not all(task.done() for task in asking):
                        await asyncio.sleep(0.002)
                engines.signal(number, what)
            assert await asyncio.gather(*asking) == expected
        finally:
            for number, what in enumerate(signals):
                if what == signal.SIGSTOP:
                    engines.signal(number, signal.SIGCONT)


async def test_engines_that_die_and_come_back_all_the_time_cost_no_answer(tiny: Path) -> None:
    """A kill every moment, at no particular place; whoever was killed is started anew."""
    async with rig(tiny, "abc") as engines:
        expected = {number: await engines.ask(f"Tell tale {number}", max_tokens=200) for number in range(8)}
        over = asyncio.Event()
        wrong: list[Any] = []
        count = 0

        async def client(number: int) -> None:
            nonlocal count
            while not over.is_set():
                found = await engines.ask(f"Tell tale {number}", max_tokens=200)
                count += 1
                if found != expected[number]:
                    wrong.append(found)

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for turn in range(6):
            await asyncio.sleep(0.7)
            engines.signal(turn % 3, signal.SIGKILL)
            await engines.again(turn % 3)
            member = engines.pool.members[turn % 3]
            begin = time.monotonic()
            while not member.health.allows(time.monotonic()):
                assert time.monotonic() - begin < 3, "it is back within three seconds"
                await asyncio.sleep(0.05)
        over.set()
        await asyncio.gather(*clients)
        assert not wrong
        assert count > 8


async def test_with_all_of_them_gone_the_error_is_soon_and_right(engines: Rig) -> None:
    await engines.ask()
    for number in (0, 1):
        engines.signal(number, signal.SIGKILL)
    await asyncio.sleep(0.2)
    begin = time.monotonic()
    async with engines.front.connect() as connection:
        connection.send(post(PATH, {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}))
        status, _, body = await connection.answer(10)
    assert status in (502, 503)
    assert orjson.loads(body)["error"]["code"] in ("backend_unreachable", "backend_error", "backend_protocol_error")
    assert time.monotonic() - begin < 4
