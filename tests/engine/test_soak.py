"""Many short requests on real llama.cpp, many of them given up: the answers are right, memory does not grow, the books
and llama.cpp's own memory agree."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.endless import NoEnd
from tiny_gguf import write_tiny_gguf

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.engine import EngineCore, JobSpec, LlamaCppRunner, SamplingParams

GREEDY = SamplingParams(temperature=0)
LONGEST = 12
NEAR = 0.02
GROWTH = 24 * 1024 * 1024  # bytes


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def drawn_prompts() -> list[list[int]]:
    drawn = random.Random(4)
    beginnings = [[drawn.randrange(500) for _ in range(length)] for length in (0, 16, 40, 90)]
    return [drawn.choice(beginnings) + [drawn.randrange(500) for _ in range(drawn.randint(1, 30))] for _ in range(50)]


def with_answers(path: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts with what is answered to each alone; none where two tokens were nearly as likely.

    Attention adds up in another order when other cells lie between, which moves logits by thousandths.
    """
    runner = LlamaCppRunner(path, 64, threads=1, kv_type="f32")
    core = EngineCore(runner, NoEnd())
    gaps: list[float] = []
    execute = runner.execute

    def watched(chunks: Any) -> Any:
        rows = execute(chunks)
        gaps.extend(float(best - second) for second, best in np.sort(rows)[:, -2:])
        return rows

    runner.execute = watched  # type: ignore[method-assign]
    found = []
    for prompt in drawn_prompts():
        core.add(JobSpec(prompt=prompt, max_tokens=LONGEST, sampling=GREEDY))
        answer: list[int] = []
        gaps.clear()
        while not core.idle:
            for _, update in core.step():
                assert not isinstance(update, BaseException)
                answer += update.tokens
        if min(gaps) > NEAR:
            found.append((prompt, answer))
    core.runner.close()
    return found


@pytest.mark.parametrize("blocks", [40, 240])  # in the larger one there are streams, in the smaller one hardly ever
@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.e2e)])
def test_soak(tmp_path: Path, count: int, blocks: int) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    given = with_answers(path)
    assert len(given) > 20
    drawn = random.Random(count)
    runner = LlamaCppRunner(path, blocks, threads=1, kv_type="f32", slots=24)
    core = EngineCore(runner, NoEnd(), host_tokens=600, idle=4, swap_tokens=300, recompute=0, max_running=12)
    live: dict[Any, tuple[int, dict[int, list[int]]]] = {}
    finished = cancelled = added = 0
    begin = 0
    while added < count or not core.idle:
        while added < count and len(live) < 30 and drawn.random() < 0.7:
            which = drawn.randrange(len(given))
            spec = JobSpec(
                prompt=given[which][0],
                max_tokens=drawn.randint(1, LONGEST),
                n=drawn.choice([1, 1, 1, 3]),
                priority=drawn.choice([0, 0, 1, 2]),
                tenant=drawn.choice(["", "other"]),
                sampling=GREEDY,
            )
            live[core.add(spec)] = which, {}
            added += 1
        if live and drawn.random() < 0.15:
            job = drawn.choice(list(live))
            core.abort(job)
            del live[job]
            cancelled += 1
        for job, update in core.step():
            assert not isinstance(update, BaseException), update
            which, answers = live[job]
            answers.setdefault(update.index, []).extend(update.tokens)
            if update.last:
                assert len(answers) == job.spec.n
                assert all(answer == given[which][1][: job.spec.max_tokens] for answer in answers.values())
                del live[job]
                finished += 1
        if added >= count // 2:
            begin = begin or resident()
    assert finished + cancelled == count
    assert cancelled > count // 20
    assert core.scheduler.counters.swapped > 0
    assert core.blocks.recalled > 0
    assert resident() - begin < GROWTH
    core.blocks.check_integrity([])
    assert core.blocks.num_free == core.blocks.num_blocks
    runner.apply(core.blocks.take_events())
    runner.check_integrity()
    owned = [slot for slot in range(24) if len(runner._memory.read(slot))]
    assert owned == sorted(core.blocks._residents._holders)
    assert len(runner._kept) == len(core.blocks._aside._parcels)
    runner.close()
