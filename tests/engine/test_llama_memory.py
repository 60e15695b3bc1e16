"""Streams: parted while all fits, one memory when it does not, the same answers and nothing lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.endless import NoEnd
from tiny_gguf import write_tiny_gguf

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.engine import EngineCore, JobSpec, LlamaCppRunner, SamplingParams
from velollm.engine.llama_memory import PATIENCE
from velollm.engine.llama_runner import LlamaModel
from velollm.engine.runner import RunnerError
from velollm.errors import BackendError, ConfigError

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    made = LlamaModel(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))
    yield made
    made.close()


def core(model: LlamaModel, num_blocks: int, *, streams: bool = True, **options: Any) -> EngineCore:
    return EngineCore(LlamaCppRunner(model, num_blocks, threads=1, kv_type="f32", streams=streams), NoEnd(), **options)


def prompts(count: int, common: int, own: int, seed: int = 3) -> list[list[int]]:
    drawn = np.random.default_rng(seed)
    prefix = drawn.integers(0, 500, common).tolist()
    return [prefix + drawn.integers(0, 500, own).tolist() for _ in range(count)]


def run(engine: EngineCore, given: list[list[int]], most: int = 20) -> tuple[list[list[int]], list[int]]:
    """The answers, and how many streams there were, one after the other."""
    answers = {engine.add(JobSpec(prompt=one, max_tokens=most, sampling=GREEDY)): list[int]() for one in given}
    parted = []
    while not engine.idle:
        for job, update in engine.step():
            assert not isinstance(update, BaseException), update
            answers[job] += update.tokens
        engine.runner.check_integrity()
        if not parted or parted[-1] != engine.runner.streams:
            parted.append(engine.runner.streams)
    return list(answers.values()), parted


def alone(model: LlamaModel, given: list[list[int]], most: int = 20) -> list[list[int]]:
    engine = core(model, 256, streams=False, max_running=1)
    answers, parted = run(engine, given, most)
    engine.runner.close()
    assert parted == [0]
    return answers


@pytest.mark.parametrize(
    ("blocks", "common", "own", "expected"),
    [
        (256, 0, 90, [16]),  # all of it fits as it lies at first
        (256, 20, 280, [8]),  # longer than those streams
        (256, 300, 30, [0]),  # most of it is shared
        (128, 150, 100, [0]),  # too many for longer streams
    ],
)
def test_as_many_streams_as_fit(model: LlamaModel, blocks: int, common: int, own: int, expected: list[int]) -> None:
    given = prompts(8, common, own)
    engine = core(model, blocks, max_running=8)
    answers, parted = run(engine, given)
    assert (answers, parted[-1:]) == (alone(model, given), expected)
    assert engine.scheduler.counters.cached >= 7 * (common // 16 * 16)
    engine.runner.close()


def test_to_one_memory_and_back(model: LlamaModel) -> None:
    """Eight that share most of what they have fill more streams than there are cells, but not one memory."""
    engine = core(model, 96, host_tokens=2000, idle=4)
    few, many = prompts(2, 400, 20), prompts(8, 400, 20)
    assert run(engine, few[:1])[1] == [2]
    answers, parted = run(engine, many, PATIENCE + 10)
    assert parted == [0]
    assert answers == alone(model, many, PATIENCE + 10)
    answers, parted = run(engine, few[:1], PATIENCE + 10)
    assert parted[-1] == 2
    assert answers == alone(model, few[:1], PATIENCE + 10)
    assert engine.scheduler.counters.prefilled < 400 + 10 * (20 + 16) + 100, "the prefix was computed once"
    engine.runner.close()


def test_a_sequence_that_grows_out_of_its_stream(model: LlamaModel) -> None:
    given = prompts(3, 0, 150)
    engine = core(model, 128)
    answers, parted = run(engine, given, 200)
    assert parted == [8, 4]
    assert answers == alone(model, given, 200)
    engine.runner.close()


def test_no_memory_for_another_parting(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are computed then fail; what others have stays, and is there when memory is."""
    engine = core(model, 128)
    given = prompts(1, 0, 60)
    assert run(engine, given)[1] == [8]
    memory = engine.runner._memory
    make = memory._make

    def fail(streams: int) -> Any:
        raise ConfigError("no memory")

    monkeypatch.setattr(memory, "_make", fail)
    job = engine.add(JobSpec(prompt=prompts(1, 0, 1500, seed=4)[0], max_tokens=3, sampling=GREEDY))
    ((failed, update),) = engine.step()
    assert (failed, type(update)) == (job, BackendError)
    with pytest.raises(RunnerError, match="no memory"):
        memory._part(2)
    monkeypatch.setattr(memory, "_make", make)
    assert run(engine, given)[0] == alone(model, given)
    assert engine.scheduler.counters.cached == 48
    engine.runner.close()


def test_where_states_cannot_be_taken_apart(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: Any) -> Any:
        raise ValueError("another layout")

    monkeypatch.setattr("velollm.engine.llama_memory.KvState.parse", refuse)
    engine = core(model, 256)
    assert run(engine, prompts(2, 0, 20))[1] == [0]
    engine.runner.close()
