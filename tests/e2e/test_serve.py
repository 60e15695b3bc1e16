"""`velollm serve` as a process, in front of an engine that the test plays: how it begins and ends, what it holds."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support.upstream import Peer, Server, answer, chunk, head, scripted

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
WHOLE = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
).encode()
QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"


def delta(text: str, finish: str | None = None) -> bytes:
    said = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    return chunk(b"data: %b\n\n" % json.dumps({"choices": [said]}).encode())


class Engine:
    """An engine that speaks OpenAI: `words` words a stream, `pause` seconds apart."""

    def __init__(self) -> None:
        self.words = 10
        self.pause = 0.05
        self.left: list[float] = []  # how long a client that left was not noticed

    async def __call__(self, peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if request.target.endswith(b"/models"):
                peer.send(answer(MODELS, b"content-type: application/json"))
            elif request.method == b"POST" and json.loads(request.body).get("stream"):
                if not await self.stream(peer):
                    return
            elif request.method == b"POST":
                await asyncio.sleep(self.pause)
                peer.send(answer(WHOLE, b"content-type: application/json"))
            else:
                peer.send(answer(b"{}", status=b"404 Not Found"))

    async def stream(self, peer: Peer) -> bool:
        peer.send(head(b"content-type: text/event-stream", b"transfer-encoding: chunked"))
        gone = asyncio.create_task(peer.left(seconds=3600))
        for _ in range(self.words):
            peer.send(delta("word "))
            done, _ = await asyncio.wait([gone], timeout=self.pause)
            if done:
                self.left.append(time.monotonic())
                return False
        gone.cancel()
        await asyncio.wait([gone])
        peer.send(delta("", "stop"), chunk(b"data: [DONE]\n\n"), chunk())
        return True


class Proxy:
    """The process, and what it printed when it was ready."""

    def __init__(self, process: subprocess.Popen[str], said: dict[str, Any]) -> None:
        self.process = process
        self.url: str = said["url"]
        self.said = said

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=20)

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "velollm", "serve", "--port", "0", *arguments]


@contextmanager
def proxy_of(
    folder: Path, *arguments: str, under: tuple[str, ...] = (), terminal: int | None = None
) -> Iterator[Proxy]:
    """`under` is a command that runs it; `terminal` is one that is its own, and where it logs."""
    log = (folder / "serve.log").open("w")
    with (
        log,
        subprocess.Popen(
            [*under, *command("--json", *arguments)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=log if terminal is None else terminal,
            text=True,
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},
            start_new_session=terminal is not None,
            preexec_fn=None if terminal is None else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line, (folder / "serve.log").read_text()
            yield Proxy(process, json.loads(line))
        finally:
            process.kill()


@asynccontextmanager
async def engine_and_proxy(
    folder: Path, *arguments: str, **how: Any
) -> AsyncGenerator[tuple[Engine, Server, Proxy], None]:
    engine = Engine()
    async with scripted(engine) as server:
        backend = f"openai+http://127.0.0.1:{server.port}/v1"
        opening = proxy_of(folder, "--backend", backend, *arguments, **how)
        proxy = await asyncio.to_thread(opening.__enter__)
        try:
            yield engine, server, proxy
        finally:
            await asyncio.to_thread(opening.__exit__, None, None, None)


async def exit_of(proxy: Proxy, seconds: float) -> tuple[int, float]:
    begin = time.monotonic()
    status = await asyncio.to_thread(proxy.process.wait, seconds)
    return status, time.monotonic() - begin


# ---- beginning -------------------------------------------------------------------------------------------------------


async def test_it_says_what_it_serves(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path) as (_, server, proxy):
        assert proxy.said["model"] == "m"
        (backend,) = proxy.said["backends"]
        assert (backend["models"], backend["error"]) == (["m"], None)
        async with proxy.client() as http:
            assert (await http.get("/ready")).status_code == 200
            assert (await http.post(CHAT, json=QUESTION)).json()["choices"][0]["message"]["content"] == "Hello"
        assert all(b"velollm" not in request.headers.get(b"user-agent", b"") for request in server.requests)


@pytest.mark.parametrize("text", ["[server]\nprot = 1\n", "[server]\nport = \n", "[server]\nport = -1\n"])
def test_a_bad_file_ends_it_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "velollm.toml").write_text(text)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "velollm", "serve"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert time.monotonic() - begin < 5
    assert done.returncode == 3
    assert "velollm.toml" in done.stderr
    assert "line 2" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_backend_that_is_down_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with proxy_of(tmp_path, "--backend", url) as proxy:
        assert "cannot be reached" in proxy.said["backends"][0]["error"]
        async with proxy.client() as http:
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).status_code == 503
            refused = await http.post(CHAT, json=QUESTION)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unreachable")
            assert "retry-after" in refused.headers


async def test_keys_open_the_network_and_are_nowhere_to_be_seen(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('[[keys]]\nname = "one"\nkey = "a-key-of-sixteen-bytes"\n')
    arguments = ("--host", "0.0.0.0", "--keys", str(tmp_path / "keys.toml"), "--log-level", "debug")
    async with engine_and_proxy(tmp_path, *arguments) as (_, server, proxy):
        async with proxy.client() as http:
            assert (await http.post(CHAT, json=QUESTION)).status_code == 401
            headers = {"authorization": "Bearer a-key-of-sixteen-bytes"}
            assert (await http.post(CHAT, json=QUESTION, headers=headers)).status_code == 200
        assert all(b"authorization" not in request.headers for request in server.requests)
        assert "sixteen" not in Path(f"/proc/{proxy.process.pid}/cmdline").read_text()
    assert "sixteen" not in (tmp_path / "serve.log").read_text()
    assert "sixteen" not in (tmp_path / "keys.toml").read_text()


# ---- end -------------------------------------------------------------------------------------------------------------


async def test_sigterm_lets_running_answers_end(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path) as (_, _, proxy), proxy.client() as http:
        async with http.stream("POST", CHAT, json={**QUESTION, "stream": True}) as response:
            lines = response.aiter_lines()
            while "word" not in await anext(lines):
                pass
            proxy.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            with pytest.raises(httpx.ConnectError):
                async with proxy.client() as other:
                    await other.get("/health")
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        assert sum("word" in line for line in rest) == 9
        status, seconds = await exit_of(proxy, 5)
        assert status == 0
        assert seconds < 2


async def test_a_closed_terminal_lets_running_answers_end(tmp_path: Path) -> None:
    ours, its = os.openpty()
    async with engine_and_proxy(tmp_path, terminal=its) as (_, _, proxy), proxy.client() as http:
        os.close(its)
        async with http.stream("POST", CHAT, json={**QUESTION, "stream": True}) as response:
            lines = response.aiter_lines()
            while "word" not in await anext(lines):
                pass
            os.close(ours)  # the system sends SIGHUP
            proxy.process.send_signal(signal.SIGHUP)  # as a shell does besides
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        status, seconds = await exit_of(proxy, 5)
        assert status == 0
        assert seconds < 2


async def test_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path, under=("nohup",)) as (_, _, proxy), proxy.client() as http:
        proxy.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.3)
        assert (await http.get("/health")).status_code == 200
        proxy.process.send_signal(signal.SIGTERM)
        assert (await exit_of(proxy, 5))[0] == 0


async def test_a_second_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path) as (engine, _, proxy), proxy.client() as http:
        engine.words = 10_000
        async with http.stream("POST", CHAT, json={**QUESTION, "stream": True}) as response:
            lines = response.aiter_lines()  # kept: without it, the response would be closed
            await anext(lines)
            proxy.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert proxy.process.poll() is None
            proxy.process.send_signal(signal.SIGTERM)
            _, seconds = await exit_of(proxy, 5)
            assert seconds < 1


async def test_what_outlasts_the_patience_is_ended(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path, "--drain-timeout", "500ms") as (engine, _, proxy), proxy.client() as http:
        engine.words = 10_000
        async with http.stream("POST", CHAT, json={**QUESTION, "stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            begin = time.monotonic()
            proxy.process.send_signal(signal.SIGTERM)
            status, _ = await exit_of(proxy, 8)
            assert status == 0
            assert 0.5 < time.monotonic() - begin < 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_idle_one_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    async with engine_and_proxy(tmp_path) as (_, _, proxy), proxy.client() as http:
        assert (await http.get("/health")).status_code == 200  # and the connection is kept
        proxy.process.send_signal(number)
        status, seconds = await exit_of(proxy, 5)
        assert status == 0
        assert seconds < 1.5


# ---- what it holds ---------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_ends_the_work_upstream(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path) as (engine, _, proxy), proxy.client() as http:
        engine.words = 10_000
        for path in (CHAT, "/v1/messages", "/api/chat"):
            async with http.stream("POST", path, json={**QUESTION, "stream": True, "max_tokens": 9}) as response:
                await anext(response.aiter_lines())
                begin = time.monotonic()
            async with asyncio.timeout(2):
                while not engine.left:
                    await asyncio.sleep(0.001)
            assert engine.left.pop() - begin < 0.1


async def test_large_bodies_are_refused_in_little_room(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path) as (_, server, proxy), proxy.client() as http:
        assert (await http.post(CHAT, json=QUESTION)).status_code == 200
        before, asked = proxy.memory, len(server.requests)
        size = 64 << 20

        async def pieces() -> AsyncGenerator[bytes, None]:
            for _ in range(size >> 16):
                yield b" " * 65536

        for headers in ({"content-length": str(size)}, {}):
            try:
                response = await http.post(CHAT, content=pieces(), headers=headers)
                assert response.status_code == 413
            except (httpx.WriteError, httpx.ReadError):
                pass  # it did not want to hear the rest
        assert proxy.memory - before < 150 << 20
        assert len(server.requests) == asked
        assert (await http.post(CHAT, json=QUESTION)).status_code == 200


async def test_a_client_that_does_not_read_costs_little(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path, "--max-response", "1GiB") as (engine, _, proxy), proxy.client() as http:
        assert (await http.post(CHAT, json=QUESTION)).status_code == 200
        engine.words, engine.pause = 2_000_000, 0
        before = proxy.memory
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(proxy.url).port, limit=1024)
        body = json.dumps({**QUESTION, "stream": True}).encode()
        writer.write(b"POST %b HTTP/1.1\r\nhost: localhost\r\n" % CHAT.encode())
        writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
        assert b" 200 " in await reader.readline()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(3)
        assert proxy.memory - before < 60 << 20
        writer.transport.abort()


async def test_many_requests_leave_nothing_behind(tmp_path: Path) -> None:
    async with engine_and_proxy(tmp_path) as (engine, _, proxy), proxy.client() as http:
        engine.pause = 0
        process = psutil.Process(proxy.process.pid)
        assert (await http.post(CHAT, json=QUESTION)).status_code == 200
        before, files = proxy.memory, process.num_fds()
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=proxy.url, timeout=30, limits=limits) as many:
            answers = await asyncio.gather(
                *(many.post(CHAT, json={**QUESTION, "stream": bool(number % 2)}) for number in range(300))
            )
        assert all(response.status_code == 200 for response in answers)
        assert all(response.text.endswith("data: [DONE]\n\n") for response in answers[1::2])
        assert proxy.memory - before < 250 << 20
        async with asyncio.timeout(5):
            while process.num_fds() > files + 70:  # connections to the engine are kept for a while
                await asyncio.sleep(0.1)
