"""Models whose memory cannot be shared, with random weights: sliding windows, recurrent states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.endless import NoEnd
from tiny_gguf import LAYERS, WIDTH, write_tiny_gguf

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.engine import EngineCore, JobSpec, LlamaCppRunner, SamplingParams

WINDOW = 24
INNER, STATE, RANK, KERNEL = 2 * WIDTH, 16, 8, 4


def sliding(path: Path) -> Path:
    """Command R 7B's shape: three of four layers see 24 tokens back."""
    more = {
        "cohere2.attention.sliding_window": WINDOW,
        "cohere2.attention.layer_norm_epsilon": 1e-5,
        "cohere2.logit_scale": 1.0,
    }
    return write_tiny_gguf(path, architecture="cohere2", metadata=more, without=("ffn_norm", ".output.weight"))


def recurrent(path: Path) -> Path:
    """Mamba's."""
    random = np.random.Generator(np.random.PCG64(3))

    def matrix(*shape: int) -> Any:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)

    tensors = {}
    for layer in range(LAYERS):
        block = f"blk.{layer}.ssm_"
        tensors |= {
            f"{block}in.weight": matrix(2 * INNER, WIDTH),
            f"{block}conv1d.weight": matrix(INNER, KERNEL),
            f"{block}conv1d.bias": matrix(INNER),
            f"{block}x.weight": matrix(RANK + 2 * STATE, INNER),
            f"{block}dt.weight": matrix(INNER, RANK),
            f"{block}dt.bias": matrix(INNER),
            f"{block}a": -np.abs(matrix(INNER, STATE)) - np.float32(0.1),
            f"{block}d": matrix(INNER),
            f"{block}out.weight": matrix(WIDTH, INNER),
        }
    names = {"conv_kernel": KERNEL, "inner_size": INNER, "state_size": STATE, "time_step_rank": RANK}
    more = {f"mamba.ssm.{name}": value for name, value in names.items()}
    return write_tiny_gguf(
        path,
        architecture="mamba",
        metadata=more,
        tensors=tensors,
        without=("attn_q", "attn_k", "attn_v", "attn_o", "ffn"),
    )


def run(
    path: Path, prompts: list[list[int]], num_blocks: int = 96, **options: Any
) -> tuple[list[list[int]], EngineCore]:
    core = EngineCore(LlamaCppRunner(path, num_blocks, threads=1, kv_type="f32"), NoEnd(), **options)
    try:
        jobs = [
            core.add(JobSpec(prompt=prompt, max_tokens=16, sampling=SamplingParams(temperature=0)))
            for prompt in prompts
        ]
        answers: dict[Any, list[int]] = {job: [] for job in jobs}
        while not core.idle:
            for job, update in core.step():
                assert not isinstance(update, BaseException), update
                answers[job] += update.tokens
        core.blocks.check_integrity([])
        assert core.blocks.num_free == core.blocks.num_blocks
        return list(answers.values()), core
    finally:
        core.runner.close()


@pytest.mark.parametrize("write", [sliding, recurrent])
def test_the_same_as_alone(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    random = np.random.default_rng(1)
    shared = random.integers(0, 500, 40).tolist()
    prompts = [shared + random.integers(0, 500, 20 + number).tolist() for number in range(5)]
    expected = [run(path, [prompt])[0][0] for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) == 5
    for options in (
        {},
        {"token_budget": 11},
        {"num_blocks": 9, "swap_tokens": 10_000, "recompute": 0},
        {"num_blocks": 9},
    ):
        answers, core = run(path, prompts, host_tokens=10_000, **options)
        assert answers == expected, options
        assert not core.runner.limits.sharing
        assert core.scheduler.counters.cached == core.blocks.num_cached == core.blocks.num_aside == 0
        assert bool(core.scheduler.counters.preempted) == ("num_blocks" in options)
