"""A run against servers on real sockets: how many at once, when, and what becomes of answers that do not come."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from support.backend import ScriptedBackend
from support.bench_engine import STREAM, Engine
from support.upstream import Peer, Received, answer, chunk, head, scripted

from velollm import benchmark
from velollm.bench.connection import HttpClient
from velollm.bench.lag import LagProbe
from velollm.bench.running import Plan, benchmark_async
from velollm.cli import main
from velollm.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnreachable, ConfigError


async def bench(engine: Engine, **options: Any) -> Any:
    async with scripted(engine) as server:
        return await benchmark_async(server.url, Plan(**options))


def test_a_closed_loop_keeps_its_clients_busy() -> None:
    engine = Engine()
    found = asyncio.run(bench(engine, num_prompts=12, max_concurrency=3, output_len=4))
    assert engine.most == 3
    assert (found["completed"], found["total_output_tokens"]) == (12, 48)
    assert found["max_concurrent_requests"] <= 3
    assert len(engine.bodies) == 13  # and a warm-up
    assert engine.bodies[0]["max_tokens"] == 4


@pytest.mark.anyio
async def test_ollama_is_measured_where_its_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(Engine()) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        command = ["bench", "--num-prompts", "2", "--output-len", "2", "--json"]
        assert await asyncio.to_thread(main, command) == 0
        assert len([one for one in server.requests if one.method == b"POST"]) == 3  # and a warm-up


def test_an_open_loop_sends_when_it_is_due() -> None:
    engine = Engine()
    found = asyncio.run(bench(engine, num_prompts=20, request_rate=200.0, output_len=2, seed=3))
    starts = [record.sent for record in found.records]
    assert all(record.sent >= record.planned for record in found.records)
    assert starts[-1] >= 20 / 200
    assert found["burstiness"] == 1.0
    assert found["max_concurrency"] is None


def test_a_sweep_has_a_step_for_each_load() -> None:
    found = asyncio.run(bench(Engine(), profile="throughput", sweep=(1, 2), num_prompts=4, output_len=2))
    assert [step.concurrency for step in found.steps] == [1, 2]
    assert [step["max_concurrency"] for step in found.as_json()["sweep"]] == [1, 2]


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(BackendError, match=r"does not answer 'n': 404: no such model \(it serves m, embed-x\)"):
        asyncio.run(bench(Engine(models=("m", "embed-x")), model="n"))
    with pytest.raises(ConfigError, match="lists no model"):
        asyncio.run(bench(Engine(models=())))


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_is_there(unused_tcp_port: int) -> None:
    with pytest.raises(BackendUnreachable, match="is it running"):
        benchmark(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(BackendError, match="no connection"):
        benchmark(f"openai+http://127.0.0.1:{unused_tcp_port}/v1", model="m")


def test_nothing_is_answered() -> None:
    class Broken(Engine):
        def token(self, finish: str | None) -> bytes:
            return chunk(b'data: {"error": {"message": "out of memory"}}\n\n')

    with pytest.raises(BackendError, match=r"none of 3 requests was answered by .*: out of memory"):
        asyncio.run(bench(Broken(), num_prompts=3, num_warmups=0, output_len=2))


def test_some_are_answered() -> None:
    class Moody(Engine):
        async def serve(self, peer: Peer, request: Received) -> None:
            if len(self.bodies) == 2:
                self.bodies.append({})
                peer.close()
            else:
                await super().serve(peer, request)

    found = asyncio.run(bench(Moody(), num_prompts=4, max_concurrency=1, output_len=2))
    assert (found["completed"], found["failed"]) in ((3, 1), (4, 0))  # a kept connection that ended is tried once more
    assert len(found["warnings"]) >= (found["failed"] > 0)


def test_a_backend_of_our_own_is_asked_by_its_protocol() -> None:
    backend = ScriptedBackend(["one", " two"])
    found = benchmark(backend, model="m", num_prompts=3, num_warmups=0)
    assert found["backend"] == "backend"
    assert found["completed"] == 3
    assert found["output_throughput"] > 0


def test_options_that_make_no_sense() -> None:
    for wrong in ({"goodput": {"itl": 3.0}}, {"percentiles": (101.0,)}, {"timeout": 0.0}, {"sweep": (0,)}):
        with pytest.raises(ConfigError):
            benchmark("http://127.0.0.1:1", **wrong)
    with pytest.raises(TypeError, match="num_promts"):
        benchmark("http://127.0.0.1:1", num_promts=3)


# ---- the client ------------------------------------------------------------------------------------------------------


async def post(script: Any, *, patience: float = 5.0, times: int = 1) -> Any:
    async with scripted(script) as server:
        client = HttpClient(server.url + "/v1", patience=patience)
        try:
            for _ in range(times):
                reply = await client.post("/v1/chat/completions", b"{}")
            return reply, server
        finally:
            await client.aclose()


def test_connections_are_kept_and_replaced() -> None:
    async def twice(peer: Peer) -> None:
        for _ in range(2):
            if await peer.request() is not None:
                peer.send(answer(b"{}"))

    reply, server = asyncio.run(post(twice, times=5))
    assert reply.status == 200
    assert len(server.peers) == 3
    assert server.requests[0].target == b"/v1/chat/completions"


def test_an_answer_may_end_with_its_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(head(b"connection: close") + b"all of it")

    reply, _ = asyncio.run(post(script, times=2))
    assert b"".join(piece for _, piece in reply.pieces) == b"all of it"


def test_a_silent_server_is_given_up() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(5)

    with pytest.raises(BackendTimeout, match=r"was silent for 0\.1 seconds"):
        asyncio.run(post(silent, patience=0.1))


@pytest.mark.parametrize(
    ("sent", "words"), [(b"nonsense\r\n\r\n", "is not HTTP"), (STREAM + b"5\r\nab", "before its answer was complete")]
)
def test_broken_answers(sent: bytes, words: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.send(sent)

    with pytest.raises(BackendProtocolError, match=words):
        asyncio.run(post(script))


def test_addresses_and_headers_that_are_none() -> None:
    with pytest.raises(ConfigError, match="not the URL of a server"):
        HttpClient("localhost:80")

    async def injected() -> None:
        HttpClient("http://h", headers={"x": "a\r\nb: c"})

    with pytest.raises(ConfigError, match="line break"):
        asyncio.run(injected())


def test_a_busy_loop_is_late() -> None:
    async def busy(seconds: float) -> float:
        with LagProbe() as probe:
            for _ in range(6):
                await asyncio.sleep(0.01)
                end = asyncio.get_running_loop().time() + seconds
                while asyncio.get_running_loop().time() < end:
                    pass
        return probe.lag.most

    assert asyncio.run(busy(0.05)) > 0.02


# ---- the command -----------------------------------------------------------------------------------------------------


async def command(*words: str, engine: Engine | None = None) -> int:
    async with scripted(engine or Engine()) as server:
        return await asyncio.to_thread(main, ["bench", "--backend", server.url, *words])


def test_measured_saved_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "a.json", tmp_path / "b.json"
    words = ["--num-prompts", "4", "--output-len", "3", "--goodput", "ttft:9000", "--html", str(tmp_path / "a.html")]
    assert asyncio.run(command(*words, "--save", str(one))) == 0
    out = capsys.readouterr().out
    assert "Request goodput (req/s):" in out
    assert asyncio.run(command(*words, "--save", str(other), "--json", "--metadata", "gpu=none")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["completed"], facts["gpu"], facts["profile"]) == (4, "none", "chat")
    assert "ttfts" not in facts
    assert main(["bench", "--compare", str(one), str(other)]) == 0
    assert "B / A (95 %)" in capsys.readouterr().out
    assert main(["benchmark", "--compare", str(one), str(other), "--json"]) == 0
    assert {"differences", "verdict", "doubts"} == json.loads(capsys.readouterr().out).keys()
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")


def test_two_servers_in_turns(capsys: pytest.CaptureFixture[str]) -> None:
    quick, slow = Engine(0.001), Engine(0.006)
    words = ["--num-prompts", "6", "--output-len", "6", "--rounds", "2", "--json"]

    async def go() -> int:
        async with scripted(slow) as one, scripted(quick) as other:
            return await asyncio.to_thread(main, ["bench", "--compare", one.url, other.url, *words])

    assert asyncio.run(go()) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"].startswith("B is better")
    assert not [doubt for doubt in found["doubts"] if "one run" in doubt]
    asked = [[body["messages"][0]["content"] for body in engine.bodies if body["max_tokens"] == 6]
             for engine in (slow, quick)]  # fmt: skip
    assert len(asked[0]) == len(asked[1]) == 12
    assert not set(asked[0]) & set(asked[1])
    assert sorted(map(len, asked[0])) == sorted(map(len, asked[1])), "as they arrive, several are asked at once"


def test_questions_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.txt").write_text("one question\nanother one\n")
    engine = Engine()
    words = ["--dataset-path", str(tmp_path / "q.txt"), "--output-len", "2", "--extra-body", '{"min_p": 0.2}']
    assert asyncio.run(command(*words, "--json", engine=engine)) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == "dataset"
    assert {body["messages"][0]["content"] for body in engine.bodies[1:]} == {"one question", "another one"}
    assert engine.bodies[1]["min_p"] == 0.2


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["--model", "none"], 1, "does not answer 'none': 404: no such model (it serves m)"),
        (["--goodput", "itl:3"], 1, "there is no objective 'itl'"),
        (["--goodput", "ttft"], 2, "--goodput ttft: NAME:MILLISECONDS is wanted"),
        (["--request-rate", "0"], 1, "a request rate must be above 0"),
        (["--save", "/nowhere/x.json"], 2, "there is no folder"),
        (["--extra-body", "[]"], 2, "a JSON object is wanted"),
        (["--num-prompts", "0"], 2, "--num-prompts must be at least 1"),
        (["--api-key-env", "NO_SUCH_NAME"], 2, "there is no such variable"),
        (["--dataset-path", "/nowhere"], 1, "/nowhere cannot be read"),
    ],
)
def test_what_cannot_be_done(capsys: pytest.CaptureFixture[str], words: list[str], status: int, complaint: str) -> None:
    assert asyncio.run(command(*words)) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err


def test_progress_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert asyncio.run(command("--num-prompts", "2", "--output-len", "2")) == 0
    assert "2 of 2 answered, 0 running" in capsys.readouterr().err
