"""Embedded llama.cpp for real: what it answers, and what happens when processes die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from backend_contract import BackendContract
from tiny_gguf import CONTEXT, write_tiny_gguf

from velollm.backend import Backend, HttpRequest, Limits, open_backend
from velollm.collector import Collector
from velollm.contrib.llamacpp import EmbeddedBackend, LlamaServerBackend, embedded
from velollm.errors import (
    BackendError,
    BackendTimeout,
    ConfigError,
    ContextLengthExceeded,
    ModelNotFound,
    Overloaded,
    VeloError,
)
from velollm.messages import (
    ChatAnswer,
    ChatRequest,
    EmbedRequest,
    Message,
    ResponseFormat,
    Tool,
    ToolChoice,
    Usage,
)

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

WEATHER = Tool(
    name="get_weather",
    description="The weather in a city",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 2, "maxLength": 20}, "unit": {"enum": ["c", "f"]}},
        "required": ["city", "unit"],
    },
)
PICK = Tool(
    name="pick_number",
    description="Pick a number",
    parameters={
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/n"}},
        "required": ["n"],
        "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 99}},
    },
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def backend(tiny: Path) -> AsyncIterator[EmbeddedBackend]:
    async with EmbeddedBackend(str(tiny), threads=1) as made:
        yield made


@pytest.fixture(scope="module")
async def smollm2(default_model: Path, anyio_backend: str) -> AsyncIterator[EmbeddedBackend]:
    async with EmbeddedBackend(str(default_model)) as made:
        yield made


def ask(text: str = "Say hello.", **changes: Any) -> ChatRequest:
    return ChatRequest(
        **{"messages": [Message(role="user", content=text)], "max_tokens": 40, "temperature": 0, **changes}
    )


async def answer(backend: Backend, request: ChatRequest) -> ChatAnswer:
    collector = Collector()
    async for event in backend.chat(request):
        collector.add(event)
    return collector.answer()


def child_of(backend: EmbeddedBackend) -> int:
    running = backend._running
    assert running is not None
    assert running.process.pid is not None
    return running.process.pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while is_alive(pid):
            await asyncio.sleep(0.02)


class TestContract(BackendContract):
    model = "tiny"
    patience = 20.0

    @pytest.fixture(autouse=True)
    def _backend(self, backend: EmbeddedBackend) -> None:
        self.backend = backend

    def request(self, **changes: object) -> ChatRequest:
        return super().request(**{"max_tokens": 200, **changes})

    def in_flight(self) -> int:
        running = self.backend._running
        if running is None:
            return 0
        headers = {name.decode(): value.decode() for name, value in running.server.upstream._headers}
        slots = httpx.get(f"{running.process.url}/slots", headers=headers).json()
        return sum(slot["is_processing"] for slot in slots)


# ---- answers of the tiny model ---------------------------------------------------------------------------------------


async def test_what_it_is(backend: EmbeddedBackend) -> None:
    (model,) = await backend.models()
    assert (model.id, model.family, model.quantization, model.context_length) == ("tiny", "llama", "F32", CONTEXT)
    assert {"completion", "tools"} <= set(model.capabilities)
    await backend.ready()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([WEATHER], ToolChoice(mode="required")),
        ([WEATHER, PICK], ToolChoice(mode="required")),
        ([WEATHER, PICK], ToolChoice(mode="named", name="pick_number")),
    ],
)
async def test_forced_calls_of_a_model_that_knows_nothing(
    backend: EmbeddedBackend, tools: list[Tool], choice: ToolChoice, stream: bool
) -> None:
    got = await answer(backend, ask(tools=tools, tool_choice=choice, stream=stream, max_tokens=400))
    check_call(got, choice)


def check_call(got: ChatAnswer, choice: ToolChoice) -> None:
    (made,) = got.choices
    (call,) = made.tool_calls
    assert made.finish_reason == "tool_calls"
    assert choice.name in (None, call.name)
    arguments = orjson.loads(call.arguments)
    if call.name == "pick_number":
        assert arguments.keys() == {"n"}
        assert 1 <= arguments["n"] <= 99
    else:
        assert arguments.keys() == {"city", "unit"}
        assert 2 <= len(arguments["city"]) <= 20
        assert arguments["unit"] in ("c", "f")


async def test_tokens_and_vectors(backend: EmbeddedBackend) -> None:
    tokens = await backend.tokenize("tiny", "hello world")
    assert await backend.detokenize("", tokens) == "hello world"
    counted = await backend.count_tokens(ask())
    usage = (await answer(backend, ask())).usage
    assert usage is not None
    assert counted == usage.prompt_tokens
    vectors = (await backend.embed(EmbedRequest(inputs=["a cat", "a dog"]))).vectors
    assert [len(vector) for vector in vectors] == [128, 128]
    assert vectors[0] != vectors[1]


async def test_forwarding(backend: EmbeddedBackend) -> None:
    response = await backend.forward(HttpRequest(method="GET", target="/v1/models"))
    assert response.status == 200
    assert orjson.loads(b"".join([piece async for piece in response.body]))["data"][0]["id"] == "tiny"


async def test_refusals(backend: EmbeddedBackend) -> None:
    with pytest.raises(ContextLengthExceeded, match="4096"):
        await answer(backend, ask("hello " * 5000))
    with pytest.raises(ContextLengthExceeded):
        await backend.embed(EmbedRequest(inputs=["hello " * 700]))
    for call in (answer(backend, ask(model="other")), backend.embed(EmbedRequest(model="other", inputs=["a"]))):
        with pytest.raises(ModelNotFound, match="'tiny' is"):
            await call
    with pytest.raises(VeloError) as caught:
        await answer(backend, ask(response_format=ResponseFormat(kind="json_schema", schema={"$ref": "#/nowhere"})))
    assert caught.value.status == 400


async def test_nobody_else_may_use_it(backend: EmbeddedBackend) -> None:
    running = backend._running
    assert running is not None
    assert running.process.url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{running.process.url}/v1/models").status_code == 401
    key = next(value for name, value in running.server.upstream._headers if name == b"authorization")
    assert key.removeprefix(b"Bearer ") not in Path(f"/proc/{child_of(backend)}/cmdline").read_bytes()
    assert key.removeprefix(b"Bearer ") not in Path(f"/proc/{child_of(backend)}/environ").read_bytes()


async def test_one_pool_for_all_may_overflow(tiny: Path) -> None:
    async with EmbeddedBackend(str(tiny), ctx=1024, parallel=4, unified=True, threads=1) as backend:
        tasks = [answer(backend, ask(f"word{number} " * 60, max_tokens=400)) for number in range(4)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        assert failed
        assert all(isinstance(result, Overloaded) and result.retry_after for result in failed)
    async with EmbeddedBackend(str(tiny), ctx=1024, parallel=4, threads=1) as backend:
        tasks = [answer(backend, ask(f"word{number} " * 60, max_tokens=400)) for number in range(4)]
        assert all(result.complete for result in await asyncio.gather(*tasks))


# ---- life and death --------------------------------------------------------------------------------------------------


async def test_killed_in_mid_stream(backend: EmbeddedBackend) -> None:
    first = child_of(backend)
    with pytest.raises(BackendError, match=r"llama\.cpp was ended by SIGKILL") as caught:
        async with aclosing(backend.chat(ask(stream=True, max_tokens=2000))) as events:
            async for event in events:
                if event.text:
                    os.kill(first, signal.SIGKILL)
    assert (caught.value.status, caught.value.retry_after) == (502, 1)
    got = await answer(backend, ask())
    assert got.complete
    assert child_of(backend) != first
    assert not is_alive(first)


async def test_killed_while_idle(backend: EmbeddedBackend) -> None:
    await answer(backend, ask())
    os.kill(child_of(backend), signal.SIGKILL)
    answers = await asyncio.gather(*(answer(backend, ask(stream=True)) for _ in range(3)))
    assert all(got.complete for got in answers)


async def test_it_starts_again_by_itself(backend: EmbeddedBackend) -> None:
    first = child_of(backend)
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(10):
        while backend._running is None or child_of(backend) == first:
            await asyncio.sleep(0.02)


async def test_one_that_is_stuck_is_ended(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "HEALTH_SECONDS", 0.3)
    async with EmbeddedBackend(str(tiny), threads=1, limits=Limits(first_byte=0.5, idle=0.5)) as backend:
        first = child_of(backend)
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(BackendTimeout):
            await answer(backend, ask())
        assert (await answer(backend, ask())).complete
        assert not is_alive(first)


async def test_the_first_request_starts_it_for_all(tiny: Path) -> None:
    backend = open_backend(str(tiny), threads=1)
    assert isinstance(backend, EmbeddedBackend)
    assert backend._running is None
    answers = await asyncio.gather(*(answer(backend, ask()) for _ in range(3)))
    assert all(got.complete for got in answers)
    child = child_of(backend)
    await backend.aclose()
    assert not is_alive(child)


async def test_a_client_that_leaves_does_not_stop_the_start(tiny: Path) -> None:
    backend = EmbeddedBackend(str(tiny), threads=1)
    task = asyncio.create_task(answer(backend, ask()))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
    assert (await answer(backend, ask())).complete
    await backend.aclose()


async def test_closed_while_it_starts(tiny: Path) -> None:
    before = children_of(os.getpid())
    backend = EmbeddedBackend(str(tiny), threads=1)
    task = asyncio.create_task(backend.start())
    await asyncio.sleep(0.05)
    await backend.aclose()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children_of(os.getpid()) == before
    assert (await answer(backend, ask())).complete  # and opened again
    await backend.aclose()


async def test_a_start_that_takes_too_long(tiny: Path) -> None:
    before = children_of(os.getpid())
    with pytest.raises(BackendError, match=r"within 0\.01 seconds"):
        await EmbeddedBackend(str(tiny), start_timeout=0.01).start()
    assert children_of(os.getpid()) == before


async def test_a_model_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    before = children_of(os.getpid())
    path = write_tiny_gguf(tmp_path / "odd.gguf", metadata={"general.architecture": "unheard-of"})
    backend = EmbeddedBackend(str(path))
    with pytest.raises(BackendError, match="unknown model architecture: 'unheard-of'"):
        await backend.start()
    assert children_of(os.getpid()) == before
    await backend.aclose()


async def test_files_that_are_no_models(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model at all, only text")
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:-1000])
    for name, words in (("bad.gguf", "not a GGUF"), ("cut.gguf", "cut off"), ("none.gguf", "no file")):
        with pytest.raises(ConfigError, match=words):
            open_backend(str(tmp_path / name))
    with pytest.raises(ConfigError, match="no model 'none' is installed"):
        open_backend("none", folder=tmp_path)


async def test_an_installed_model_by_its_name(tiny: Path) -> None:
    async with EmbeddedBackend("TINY", folder=tiny.parent, threads=1, aliases=["nickname"]) as backend:
        assert (await answer(backend, ask(model="nickname"))).complete


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split() if is_alive(int(child))]


PARENT = """
import asyncio, sys
from velollm.contrib.llamacpp import EmbeddedBackend

async def main():
    backend = EmbeddedBackend(sys.argv[1], threads=1)
    start = asyncio.ensure_future(backend.start())
    if sys.argv[2] == "loaded":
        await start
    else:
        await asyncio.sleep(float(sys.argv[2]))
    print("here", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def parent() -> Iterator[Any]:
    started: list[subprocess.Popen[bytes]] = []

    def start(model: Path, when: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PARENT, str(model), when]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_the_child_ends_with_its_parent(parent: Any, tiny: Path, end: signal.Signals) -> None:
    process = parent(tiny, "loaded")
    await asyncio.to_thread(process.stdout.readline)
    (child,) = children_of(process.pid)
    process.send_signal(end)
    await gone(child)


async def test_the_child_ends_with_its_parent_even_while_it_loads(parent: Any, default_model: Path) -> None:
    process = parent(default_model, "0.4")
    await asyncio.to_thread(process.stdout.readline)
    (child,) = children_of(process.pid)
    before = time.monotonic()
    process.kill()
    await gone(child, 0.5)
    assert time.monotonic() - before < 0.5


# ---- the default model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_it_speaks(smollm2: EmbeddedBackend, stream: bool) -> None:
    got = await answer(smollm2, ask("Name three colours.", stream=stream))
    assert "colour" in got.choices[0].text
    assert got.usage is not None
    assert got.usage.timings is not None


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([WEATHER], ToolChoice(mode="required")),
        ([WEATHER, PICK], ToolChoice(mode="required")),
        ([WEATHER, PICK], ToolChoice(mode="named", name="get_weather")),
    ],
)
async def test_forced_calls(smollm2: EmbeddedBackend, tools: list[Tool], choice: ToolChoice, stream: bool) -> None:
    request = ask("What is the weather in Paris?", tools=tools, tool_choice=choice, stream=stream, max_tokens=200)
    check_call(await answer(smollm2, request), choice)


async def test_a_structured_answer(smollm2: EmbeddedBackend) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted = ResponseFormat(kind="json_schema", schema=schema, name="person")
    got = await answer(smollm2, ask("Ada is 36 years old.", response_format=wanted, max_tokens=200))
    found = orjson.loads(got.choices[0].text)
    assert found.keys() == {"name", "age"}
    assert isinstance(found["age"], int)


async def test_a_long_conversation_finds_its_prefix(smollm2: EmbeddedBackend) -> None:
    messages = [Message(role="user", content="Tell me about the sea, in one sentence.")]
    seen: list[Usage] = []
    for _ in range(4):
        got = await answer(smollm2, ask(messages=list(messages), max_tokens=24, stream=True))
        assert got.usage is not None
        seen.append(got.usage)
        messages += [Message(role="assistant", content=got.choices[0].text), Message(role="user", content="Go on.")]
    cached = [usage.cached_tokens or 0 for usage in seen]
    assert cached == sorted(cached)
    for before, after in pairwise(seen):
        assert (after.cached_tokens or 0) >= before.prompt_tokens - 1


# ---- over HTTP -------------------------------------------------------------------------------------------------------


async def test_llama_server_over_http(backend: EmbeddedBackend) -> None:
    running = backend._running
    assert running is not None
    key = next(value for name, value in running.server.upstream._headers if name == b"authorization").decode()
    url = running.process.url.replace("http", "llamacpp", 1)
    limits = Limits(connect=1)
    async with LlamaServerBackend(url, api_key=key.removeprefix("Bearer "), limits=limits) as server:
        await server.ready()
        assert (await server.properties()).template_tools
        assert (await answer(server, ask(model="any-name-will-do", stream=True))).complete
        choice = ToolChoice(mode="required")
        check_call(await answer(server, ask(tools=[WEATHER], tool_choice=choice, max_tokens=400)), choice)
    async with LlamaServerBackend(url, api_key="wrong") as server:
        with pytest.raises(BackendError, match="credentials"):
            await answer(server, ask())


async def test_what_prompts_share_is_carried_from_slot_to_slot(tiny: Path) -> None:
    """The answers are those of slots that compute it all themselves, and far less is computed."""
    shared = "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun " * 20
    found = {}
    for mode in (True, False):
        async with EmbeddedBackend(
            str(tiny), ctx=2048, parallel=4, threads=1, kv_type="f32", replicate=mode
        ) as backend:
            asked = [
                ChatRequest(messages=[Message(role="user", content=f"{shared} {one}")], max_tokens=12, temperature=0)
                for one in range(12)
            ]
            found[mode] = await asyncio.gather(*(answer(backend, request) for request in asked))
            assert backend._running is not None
            folder = backend._running.process._folder
            assert bool(folder and list(Path(folder).iterdir())) == mode
        assert folder is None or not Path(folder).exists()
    texts = {mode: [answer.choices[0].text for answer in answers] for mode, answers in found.items()}
    assert texts[True] == texts[False]
    computed = {
        mode: sum(one.usage.prompt_tokens - (one.usage.cached_tokens or 0) for one in answers if one.usage)
        for mode, answers in found.items()
    }
    assert computed[True] < 0.6 * computed[False]
