"""The proof of the engine: on an f32 model, greedy tokens are those of a sequence that runs alone, in every mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.endless import NoEnd
from tiny_gguf import write_tiny_gguf

from velollm.engine import EngineCore, JobSpec, NumpyRunner, SamplingParams
from velollm.engine.runner import Runner

GREEDY = SamplingParams(temperature=0)
OUTPUT = 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def numpy_runner(path: Path, num_blocks: int) -> Runner:
    return NumpyRunner(path, num_blocks)


def llama_runner(path: Path, num_blocks: int, *, streams: bool = False) -> Runner:
    from velollm.engine import LlamaCppRunner

    return LlamaCppRunner(path, num_blocks, threads=1, kv_type="f32", streams=streams)


def streams_runner(path: Path, num_blocks: int) -> Runner:
    return llama_runner(path, num_blocks, streams=True)


needs_llama = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the extra llamacpp is not installed")


@pytest.fixture(
    params=[numpy_runner, *(pytest.param(kind, marks=needs_llama) for kind in (llama_runner, streams_runner))],
    scope="module",
)
def make(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Callable[..., EngineCore]]:
    made: list[EngineCore] = []

    def core(num_blocks: int = 64, **options: Any) -> EngineCore:
        made.append(EngineCore(request.param(tiny, num_blocks), NoEnd(), **options))
        return made[-1]

    yield core
    for one in made:
        one.runner.close()


def prompts(count: int, shared: int, own: int) -> list[list[int]]:
    random = np.random.default_rng(5)
    prefix = random.integers(0, 500, shared).tolist()
    return [prefix + random.integers(0, 500, own).tolist() for _ in range(count)]


def run(core: EngineCore, given: list[list[int]], every: int = 0, **spec: Any) -> list[list[list[int]]]:
    """All answers: by job, by choice, tokens. With `every`, a new job comes only every so many steps."""
    wanted = {"sampling": GREEDY, "max_tokens": OUTPUT, **spec}
    answers: dict[int, dict[int, list[int]]] = {}
    left = list(enumerate(given))
    jobs: dict[Any, int] = {}
    steps = 0
    while left or not core.idle:
        while left and (not every or steps % every == 0):
            number, prompt = left.pop(0)
            jobs[core.add(JobSpec(prompt=prompt, **wanted))] = number
            if every:
                break
        for job, update in core.step():
            assert not isinstance(update, BaseException), update
            answers.setdefault(jobs[job], {}).setdefault(update.index, []).extend(update.tokens)
        steps += 1
        core.blocks.check_integrity([one.table for one in core.scheduler.running if one.table is not None])
    assert core.blocks.num_free == core.blocks.num_blocks
    return [[answers[number][index] for index in sorted(answers[number])] for number in range(len(given))]


def alone(make: Callable[..., EngineCore], given: list[list[int]], **spec: Any) -> list[list[list[int]]]:
    core = make()
    return [run(core, [prompt], **spec)[0] for prompt in given]


MODES: dict[str, dict[str, Any]] = {
    "batched": {},
    "chunked": {"token_budget": 7},
    "recomputed": {"num_blocks": 14, "recompute": 10_000},
    "swapped": {"num_blocks": 14, "swap_tokens": 10_000, "recompute": 0},
    "one at a time": {"max_running": 1},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", [0, 40])
def test_equal_to_alone(make: Callable[..., EngineCore], mode: str, shared: int) -> None:
    given = prompts(6, shared, 21)
    expected = alone(make, given)
    assert all(len(set(choice)) > 3 for choices in expected for choice in choices), "an answer worth comparing"
    core = make(**MODES[mode])
    assert run(core, given) == expected
    counters = core.scheduler.counters
    assert bool(counters.preempted) == (mode in ("recomputed", "swapped"))
    assert bool(counters.swapped) == (mode == "swapped")
    assert counters.cached >= (5 * 32 if shared else 0)


def test_equal_when_they_come_and_go(make: Callable[..., EngineCore]) -> None:
    given = prompts(12, 33, 9)
    assert run(make(24, token_budget=32), given, every=5) == alone(make, given)


def test_what_was_cached_is_found_by_later_ones(make: Callable[..., EngineCore]) -> None:
    core = make(64)
    (prompt,) = prompts(1, 0, 60)
    first = run(core, [prompt])
    before = core.scheduler.counters.cached
    assert run(core, [prompt]) == first
    assert core.scheduler.counters.cached - before == 48
    longer = [*prompt, *first[0][0], 7, 8, 9]
    again = run(core, [longer])
    assert core.scheduler.counters.cached - before == 48 + 80, "what was generated is cached as well"
    assert again == alone(make, [longer])


def test_what_was_laid_aside_is_brought_back(make: Callable[..., EngineCore]) -> None:
    given = prompts(6, 40, 21)
    expected = alone(make, given)
    core = make(host_tokens=10_000, idle=0)
    assert run(core, given, every=9) == expected
    assert core.blocks.num_aside > 0
    before = core.scheduler.counters.cached
    assert run(core, given[::-1], every=9) == expected[::-1]
    assert core.blocks.recalled >= 6 * 2, "what each prompt has for itself was on the host"
    assert core.scheduler.counters.cached - before == 6 * 48


def test_forks_say_what_they_would_say_alone(make: Callable[..., EngineCore]) -> None:
    (prompt,) = prompts(1, 0, 37)
    (expected,) = alone(make, [prompt])
    for options in ({}, {"max_running": 2}, {"num_blocks": 8, "swap_tokens": 10_000, "recompute": 0}):
        core = make(**options)
        assert run(core, [prompt], n=4) == [expected * 4]
        if not options:
            assert core.scheduler.counters.prefilled == 37, "the prompt is computed once"


def test_seeds_decide_what_is_drawn(make: Callable[..., EngineCore]) -> None:
    given = prompts(3, 20, 10)
    drawn = SamplingParams(temperature=1, seed=11)
    expected = alone(make, given, sampling=drawn, n=3)
    assert run(make(), given, sampling=drawn, n=3) == expected
    assert all(len({tuple(choice) for choice in choices}) == 3 for choices in expected)


@needs_llama
def test_both_runners_agree(tiny: Path) -> None:
    given = prompts(4, 20, 15)
    answers = [run(EngineCore(kind(tiny, 64), NoEnd()), given) for kind in (numpy_runner, llama_runner)]
    assert answers[0] == answers[1]
