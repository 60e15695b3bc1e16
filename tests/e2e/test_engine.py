"""The engine in its child process: the contract, crashes, hangs, and the model's file."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import orjson
import pytest
from backend_contract import BackendContract
from support.asking import PICK, answer, ask
from tiny_gguf import write_tiny_gguf

from velollm.backend import Limits
from velollm.contrib.llamacpp import EmbeddedBackend
from velollm.contrib.llamacpp.plan import Machine
from velollm.contrib.velo import ServedEngine
from velollm.errors import BackendError, BackendTimeout, ConfigError, ContextLengthExceeded, RequestError
from velollm.messages import ChatRequest, EmbedRequest, ResponseFormat, ToolChoice

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
async def backend(tiny: Path) -> AsyncIterator[ServedEngine]:
    async with ServedEngine(str(tiny), threads=1) as made:
        yield made


def child_of(backend: ServedEngine) -> int:
    assert backend._running is not None
    assert backend._running.process.pid is not None
    return backend._running.process.pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestContract(BackendContract):
    model = "tiny"
    patience = 20.0

    def request(self, **changes: object) -> ChatRequest:
        return super().request(**{"max_tokens": 200, **changes})


async def test_everything_crosses_the_process_boundary(backend: ServedEngine) -> None:
    got = await answer(backend, ask(n=2, temperature=1.0, seed=3, logprobs=True, top_logprobs=2))
    assert len({choice.text for choice in got.choices}) == 2
    assert all(len(choice.logprobs["content"]) == 24 for choice in got.choices if choice.logprobs)
    assert got.usage is not None
    assert got.usage.timings is not None
    assert await backend.count_tokens(ask()) == (await answer(backend, ask())).usage.prompt_tokens  # type: ignore[union-attr]
    assert await backend.detokenize("", await backend.tokenize("tiny", "hello world")) == "hello world"
    vectors = (await backend.embed(EmbedRequest(inputs=["a cat", "a dog"]))).vectors
    assert [len(vector) for vector in vectors] == [128, 128]
    called = await answer(backend, ask(tools=[PICK], tool_choice=ToolChoice(mode="required")))
    (call,) = called.choices[0].tool_calls
    assert call.id
    assert 1 <= orjson.loads(call.arguments)["n"] <= 99


async def test_refusals(backend: ServedEngine) -> None:
    with pytest.raises(ContextLengthExceeded, match="4096"):
        await answer(backend, ask("hello " * 5000))
    with pytest.raises(RequestError, match="nowhere") as caught:
        await answer(backend, ask(response_format=ResponseFormat(kind="json_schema", schema={"$ref": "#/nowhere"})))
    assert caught.value.param == "response_format"


async def test_nobody_else_may_use_it(backend: ServedEngine) -> None:
    assert backend._running is not None
    host, port = backend._running.process.url.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write((5).to_bytes(4, "little") + b"wrong" + (3).to_bytes(4, "little") + b"abc")
    assert await reader.read() == b""
    writer.close()


async def test_killed_in_mid_stream(backend: ServedEngine) -> None:
    first = child_of(backend)
    with pytest.raises(BackendError, match="the engine velo was ended by SIGSEGV") as caught:
        async with aclosing(backend.chat(ask(stream=True, max_tokens=2000))) as events:
            async for event in events:
                if event.text:
                    os.kill(first, signal.SIGSEGV)
    assert (caught.value.status, caught.value.retry_after) == (502, 1)
    assert (await answer(backend, ask())).complete
    assert child_of(backend) != first
    assert not is_alive(first)


async def test_killed_while_idle(backend: ServedEngine) -> None:
    await answer(backend, ask())
    os.kill(child_of(backend), signal.SIGKILL)
    answers = await asyncio.gather(*(answer(backend, ask(stream=True)) for _ in range(3)))
    assert all(got.complete for got in answers)


async def test_one_that_is_stuck_is_ended(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velollm.contrib.llamacpp.embedded.HEALTH_SECONDS", 0.3)
    async with ServedEngine(str(tiny), threads=1, limits=Limits(first_byte=0.5, idle=0.5)) as backend:
        first = child_of(backend)
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(BackendTimeout):
            await answer(backend, ask())
        assert (await answer(backend, ask())).complete
        assert not is_alive(first)


async def test_a_plan_is_made_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ServedEngine(str(tiny), threads=1)
    monkeypatch.setattr("velollm.contrib.velo.served.this_machine", lambda: Machine(cores=1, memory=1))
    async with backend:  # what the model has taken is no longer free
        assert (await backend.models())[0].context_length == 4096
        assert await backend.slots("tiny") == 32
        assert (await answer(backend, ask())).complete


async def test_it_ends_with_its_backend(tiny: Path) -> None:
    backend = ServedEngine(str(tiny), threads=1)
    await backend.start()
    child = child_of(backend)
    await backend.aclose()
    assert not is_alive(child)


async def test_files_that_are_no_models(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match="cut off"):
        ServedEngine(str(tmp_path / "cut.gguf"))
    with pytest.raises(ConfigError, match="MiB are free"):
        ServedEngine(str(tiny), num_blocks=10**9)
    odd = write_tiny_gguf(tmp_path / "odd.gguf", metadata={"general.architecture": "unheard-of"})
    with pytest.raises(BackendError, match="unknown model architecture"):
        await ServedEngine(str(odd)).start()


async def test_the_same_words_as_llama_server(tiny: Path) -> None:
    """On f32, 50 prompts, 16 at once and with prefixes in common, say what llama-server says to each alone."""
    prose = "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun"
    words = prose.split()
    prefixes = ["", " ".join(words * 3), " ".join(words[::-1] * 4)]
    asked = [ask(f"{prefixes[number % 3]} {words[number % 16]} {number}", max_tokens=32) for number in range(50)]
    async with EmbeddedBackend(str(tiny), threads=1, kv_type="f32", parallel=1) as server:
        expected = [(await answer(server, one)).choices[0].text for one in asked]
    async with ServedEngine(str(tiny), threads=1, kv_type="f32", parallel=16) as backend:
        answers = await asyncio.gather(*(answer(backend, one) for one in asked))
        assert [got.choices[0].text for got in answers] == expected
        assert sum(got.usage.cached_tokens or 0 for got in answers if got.usage) > 1000
