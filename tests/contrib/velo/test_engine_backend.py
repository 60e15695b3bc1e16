"""The engine as a backend, on a model that says nothing in particular: the contract, and what only it can do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import orjson
import pytest
from backend_contract import BackendContract
from support.asking import PICK, WEATHER, answer, ask
from tiny_gguf import write_tiny_gguf

from velollm.continuation import Said
from velollm.errors import (
    ConfigError,
    ContextLengthExceeded,
    Overloaded,
    RequestError,
    UnsupportedError,
)
from velollm.messages import (
    ChatRequest,
    EmbedRequest,
    FilePart,
    ImagePart,
    Message,
    RequestContext,
    ResponseFormat,
    TextPart,
    Tool,
    ToolChoice,
)

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.contrib.velo import EngineBackend

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
async def backend(tiny: Path, anyio_backend: str) -> AsyncIterator[EngineBackend]:
    async with EngineBackend(str(tiny), threads=1, num_blocks=256, kv_type="f32") as made:
        yield made


async def test_only_the_engine_has_called_openmp(backend: EngineBackend) -> None:
    """Others that have, and live, keep its threads from waiting awake."""
    async with asyncio.timeout(5):
        while any(thread.name.startswith("velollm-load") for thread in threading.enumerate()):
            await asyncio.sleep(0.01)


def free(backend: EngineBackend) -> bool:
    assert backend._loaded is not None
    core = backend._loaded.engine.core
    return not core._jobs and core.blocks.num_free == core.blocks.num_blocks


class TestContract(BackendContract):
    model = "tiny"
    patience = 20.0

    @pytest.fixture(autouse=True)
    def _backend(self, backend: EngineBackend) -> None:
        self.backend = backend

    def request(self, **changes: object) -> ChatRequest:
        return super().request(**{"max_tokens": 200, **changes})

    def in_flight(self) -> int:
        loaded = self.backend._loaded
        return len(loaded.engine.core._jobs) if loaded is not None else 0


@pytest.mark.parametrize("stream", [True, False])
async def test_who_asks_nothing_has_the_model_loaded(backend: EngineBackend, stream: bool) -> None:
    got = await answer(backend, ChatRequest(model="tiny", prompt="", stream=stream))
    assert [(choice.text, choice.finish_reason) for choice in got.choices] == [("", "stop")]


async def test_usage_counts_what_was_found_in_the_cache(backend: EngineBackend) -> None:
    request = ask("one two three four five six seven eight nine ten " * 4)
    first = (await answer(backend, request)).usage
    again = (await answer(backend, request)).usage
    assert first is not None
    assert again is not None
    assert first.prompt_tokens == again.prompt_tokens == await backend.count_tokens(request)
    assert (first.completion_tokens, again.completion_tokens) == (24, 24)
    assert again.cached_tokens == (again.prompt_tokens - 1) // 16 * 16 > 32
    other = request.replace(context=RequestContext(tenant="other"))
    usage = (await answer(backend, other)).usage
    assert usage is not None
    assert usage.cached_tokens == 0, "no tenant sees what another has cached"
    assert usage.timings is not None
    assert usage.timings.total is not None


async def test_choices_share_their_prompt(backend: EngineBackend) -> None:
    before = backend.stats()["prefilled"]
    request = ask("what is the weather in the city today " * 3, n=3, temperature=1.5, seed=5)
    got = await answer(backend, request)
    assert got.complete
    assert len({choice.text for choice in got.choices}) == 3
    assert got.usage is not None
    assert got.usage.completion_tokens == 72
    assert backend.stats()["prefilled"] - before <= got.usage.prompt_tokens
    assert [choice.text for choice in (await answer(backend, request)).choices] == [
        choice.text for choice in got.choices
    ]


async def test_stop_strings_and_where_they_stopped(backend: EngineBackend) -> None:
    text = (await answer(backend, ask())).choices[0].text
    stop = text[5:9]
    (choice,) = (await answer(backend, ask(stop=["never said", stop]))).choices
    assert (choice.text, choice.stop_sequence, choice.finish_reason) == (text[: text.index(stop)], stop, "stop")


async def test_logprobs(backend: EngineBackend) -> None:
    (choice,) = (await answer(backend, ask(logprobs=True, top_logprobs=3, max_tokens=8, stream=True))).choices
    assert choice.logprobs is not None
    entries = choice.logprobs["content"]
    assert "".join(entry["token"] for entry in entries) == choice.text
    for entry in entries:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"], "greedy takes the likeliest"
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["logprob"] < 0


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([WEATHER], ToolChoice(mode="required")),
        ([WEATHER, PICK], ToolChoice(mode="required")),
        ([WEATHER, PICK], ToolChoice(mode="named", name="pick_number")),
    ],
)
async def test_forced_calls(backend: EngineBackend, tools: list[Tool], choice: ToolChoice, temperature: float) -> None:
    request = ask(tools=tools, tool_choice=choice, max_tokens=400, temperature=temperature, seed=1)
    (made,) = (await answer(backend, request)).choices
    (call,) = made.tool_calls
    arguments = orjson.loads(call.arguments)
    assert (made.finish_reason, made.text) == ("tool_calls", "")
    if call.name == "pick_number":
        assert arguments.keys() == {"n"}
        assert 1 <= arguments["n"] <= 99
    else:
        assert choice.name is None
        assert arguments.keys() == {"city", "unit"}


async def test_structured_output(backend: EngineBackend) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "ages": {"type": "array", "maxItems": 2}},
        "required": ["name", "ages"],
        "additionalProperties": False,
    }
    wanted = ResponseFormat(kind="json_schema", schema=schema)
    got = await answer(backend, ask(response_format=wanted, max_tokens=900, n=2, temperature=1.0, seed=2))
    for choice in got.choices:
        if choice.finish_reason == "stop":
            assert orjson.loads(choice.text).keys() == {"name", "ages"}
    assert any(choice.finish_reason == "stop" for choice in got.choices)
    for extra, allowed in (
        ({"grammar": 'root ::= "yes" | "no"'}, {"yes", "no"}),
        ({"guided_choice": ["left", "right"]}, {"left", "right"}),
        ({"guided_regex": "[0-9]{3}x"}, None),
    ):
        (choice,) = (await answer(backend, ask(extra=extra))).choices
        assert choice.finish_reason == "stop"
        assert allowed is None or choice.text in allowed
        assert allowed is not None or (len(choice.text) == 4 and choice.text[:3].isdigit())


async def test_completions_continue_text_and_ids(backend: EngineBackend) -> None:
    text = await answer(backend, ask(messages=[], prompt="the quick brown", raw=True))
    ids = await backend.tokenize("tiny", "the quick brown", add_special=True)
    assert (await answer(backend, ask(messages=[], prompt=ids, raw=True))).choices == text.choices
    echoed = await answer(backend, ask(messages=[], prompt="the quick brown", raw=True, echo=True))
    assert echoed.choices[0].text == "the quick brown" + text.choices[0].text
    assert await backend.detokenize("tiny", ids) == "the quick brown"


async def test_an_answer_that_was_begun_goes_on(backend: EngineBackend) -> None:
    whole = (await answer(backend, ask())).choices[0].text
    begun = [Message(role="user", content="Say hello."), Message(role="assistant", content=whole[:10])]
    assert (await answer(backend, ask(messages=begun))).complete


async def test_vectors(backend: EngineBackend) -> None:
    made = await backend.embed(EmbedRequest(inputs=["a cat", "a dog", await backend.tokenize("", "a cat")]))
    assert [len(vector) for vector in made.vectors] == [128] * 3
    assert made.vectors[0] == made.vectors[2] != made.vectors[1]
    assert sum(number**2 for number in made.vectors[0]) == pytest.approx(1, abs=1e-4)
    (short,) = (await backend.embed(EmbedRequest(inputs=["a cat"], dimensions=16))).vectors
    assert len(short) == 16
    with pytest.raises(ContextLengthExceeded):
        await backend.embed(EmbedRequest(inputs=["hello " * 3000]))
    assert (await backend.embed(EmbedRequest(inputs=["hello " * 3000], truncate=True))).vectors


async def test_documents_that_are_text_are_read(backend: EngineBackend) -> None:
    document = [FilePart(text="hello"), TextPart(text=" world")]
    text = [TextPart(text="hello"), TextPart(text=" world")]
    as_text, as_document = (ask(messages=[Message(role="user", content=parts)]) for parts in (text, document))
    assert await backend.count_tokens(as_document) == await backend.count_tokens(as_text)


async def test_refusals(backend: EngineBackend) -> None:
    image = Message(role="user", content=[ImagePart(url="http://x/y.png")])
    for error, request in (
        (ContextLengthExceeded, ask("hello " * 9000)),
        (UnsupportedError, ask(messages=[image])),
        (UnsupportedError, ask(messages=[Message(role="user", content=[FilePart(data="AA==")])])),
        (UnsupportedError, ask(prompt="a", suffix="b")),
        (UnsupportedError, ask(echo=True, logprobs=True, prompt="a", raw=True)),
        (RequestError, ask(response_format=ResponseFormat(kind="json_schema", schema={"$ref": "#/nowhere"}))),
        (RequestError, ask(extra={"grammar": "root ::= ("})),
        (RequestError, ask(extra={"grammar": 'root ::= root "a" | "b"'})),
        (RequestError, ask(extra={"grammar": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000})),
        (RequestError, ask(response_format=ResponseFormat(kind="json_schema", schema=False))),
        (RequestError, ask(extra={"guided_regex": "(((("})),
        (RequestError, ask(tools=[WEATHER], tool_choice=ToolChoice(mode="named", name="other"))),
        (RequestError, ask(messages=[], prompt=[1, 2, 99_999], raw=True)),
        (RequestError, ask(logit_bias={"word": 1.0})),
    ):
        with pytest.raises(error) as caught:
            await answer(backend, request)
        assert 400 <= caught.value.status < 500
    assert free(backend)


async def test_a_deadline_that_cannot_be_kept(backend: EngineBackend) -> None:
    late = RequestContext(deadline=time.monotonic() - 1)
    with pytest.raises(Overloaded) as caught:
        await answer(backend, ask(context=late))
    assert caught.value.code == "deadline_unreachable"


async def test_those_who_leave_leave_nothing_behind(backend: EngineBackend) -> None:
    async def leave(number: int) -> None:
        async with aclosing(backend.chat(ask(f"number {number}", max_tokens=1000, n=1 + number % 3))) as events:
            async for _ in events:
                if number % 2:
                    break
                await asyncio.sleep(0.005)
                break

    tasks = [asyncio.create_task(leave(number)) for number in range(30)]
    await asyncio.sleep(0.02)
    for task in tasks[::3]:
        task.cancel()
    await asyncio.wait(tasks)
    async with asyncio.timeout(5):
        while not free(backend):
            await asyncio.sleep(0.01)


async def test_more_than_fits_waits_and_ends(tiny: Path) -> None:
    async with EngineBackend(str(tiny), threads=1, num_blocks=40, ctx=512) as backend:
        asked = [ask(f"word{number} " * 40, max_tokens=150) for number in range(16)]
        answers = await asyncio.gather(*(answer(backend, request) for request in asked))
        assert all(got.complete for got in answers)
        assert backend.stats()["preempted"] > 0
        assert free(backend)


async def test_files_that_are_no_models(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model at all, only text")
    with pytest.raises(ConfigError, match="not a GGUF"):
        EngineBackend(str(tmp_path / "bad.gguf"))
    odd = write_tiny_gguf(tmp_path / "odd.gguf", metadata={"general.architecture": "unheard-of"})
    with pytest.raises(ConfigError, match="cannot load"):
        await EngineBackend(str(odd)).start()
    with pytest.raises(ConfigError, match="MiB are free"):
        EngineBackend(str(tiny), num_blocks=10**9)


async def test_an_answer_goes_on_behind_the_tokens_that_were_said(backend: EngineBackend) -> None:
    assert await backend.resumes("")
    request = ask("Tell me of foxes", max_tokens=30, temperature=0, stream=True)
    events = [event async for event in backend.chat(request)]
    pieces = [event.text for event in events if event.text]
    for cut in (1, 7, len(pieces)):
        rest = [event async for event in backend.resume(request, Said(pieces=tuple(pieces[:cut])))]
        assert "".join(event.text for event in rest) == "".join(pieces[cut:]), cut
        assert rest[-1].finish_reason == events[-1].finish_reason
        assert rest[-1].usage is not None
        assert events[-1].usage is not None
        assert rest[-1].usage.total_tokens == events[-1].usage.total_tokens
    with pytest.raises(UnsupportedError, match="reason"):
        await anext(backend.resume(request, Said(reasoning="Hm")))
