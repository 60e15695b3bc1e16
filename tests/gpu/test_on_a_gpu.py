"""What the emulator shows, shown on a GPU: every kernel, compute-sanitizer, streams, arrays of others, the runner.

Skipped where there is none. Run it with `pytest tests/gpu` where there is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_cases import CASES
from tiny_gguf import write_tiny_gguf

from velollm.engine import CudaRunner, EngineCore, JobSpec, NumpyRunner, SamplingParams
from velollm.gpu.check import check
from velollm.gpu.device import look
from velollm.gpu.executor import CudaExecutor
from velollm.gpu.kv import copy_blocks
from velollm.gpu.layers import rms_norm

FOUND = look()
pytestmark = pytest.mark.skipif(bool(FOUND.missing), reason=f"no GPU: {FOUND.missing}")
needs_cublas = pytest.mark.skipif(find_spec("nvidia.cublas") is None, reason="nvidia-cublas is not installed")
TESTS = Path(__file__).parent.parent
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


@pytest.fixture(scope="module")
def on() -> CudaExecutor:
    return CudaExecutor()


@pytest.mark.parametrize("stem", CASES)
def test_kernels_are_right(on: CudaExecutor, stem: str) -> None:
    assert all(CASES[stem](on))


def test_every_instance_of_attention_is_right(on: CudaExecutor) -> None:
    assert [one for one in check(on) if not one.ok] == []


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("stem", CASES)
def test_compute_sanitizer_is_content(stem: str, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "support.kernel_cases"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run([*command, stem, "--gpu"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_swapping_beside_computing(on: CudaExecutor) -> None:
    """Blocks go to pinned memory on a stream of their own, and are the same when they are back."""
    beside = on.beside()
    cache = np.random.default_rng(0).standard_normal((4, 64, 2, 16, 64)).astype(np.float16)
    pages, kept = on.array(cache), on.pinned((4, 32, 2, 16, 64), "fp16")
    there = np.repeat(np.arange(32, dtype=np.int32), 2).reshape(32, 2)
    back = np.add(there, np.array([0, 32], np.int32))
    beside.wait_for(on)
    copy_blocks(pages, kept, there, on=beside)
    on.wait_for(beside)
    copy_blocks(kept, pages, back, on=on)
    assert np.array_equal(on.host(pages)[:, 32:], cache[:, :32])


def test_arrays_of_torch(on: CudaExecutor) -> None:
    torch = pytest.importorskip("torch")
    x: Any = torch.randn(4, 256, device="cuda", dtype=torch.bfloat16)
    weight: Any = torch.ones(256, device="cuda", dtype=torch.bfloat16)
    got = rms_norm(on.array(x, "bf16"), on.array(weight, "bf16"), on=on)
    expected = torch.nn.functional.rms_norm(x.float(), (256,), eps=1e-5).bfloat16()
    on.stream.sync()
    again = torch.as_tensor(got, device="cuda").view(torch.bfloat16)
    assert torch.allclose(again.float(), expected.float(), atol=2e-2)


@needs_cublas
def test_greedy_tokens_are_those_of_the_reference(on: CudaExecutor, tmp_path: Path) -> None:
    wide = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1, "llama.rope.dimension_count": 64}
    path = write_tiny_gguf(tmp_path / "wide.gguf", metadata=wide)
    prompts = [np.random.default_rng(seed).integers(0, 500, 30 + seed).tolist() for seed in range(6)]
    answers = []
    for runner in (NumpyRunner(path, 64), CudaRunner(path, 64, scalar="fp32", on=on)):
        core = EngineCore(runner, _NoEnd())
        jobs = [core.add(JobSpec(prompt=one, sampling=SamplingParams(temperature=0), max_tokens=32)) for one in prompts]
        said: dict[int, list[int]] = {}
        while not core.idle:
            for job, update in core.step():
                assert not isinstance(update, BaseException), update
                said.setdefault(jobs.index(job), []).extend(update.tokens)
        answers.append(said)
    assert answers[0] == answers[1]


class _NoEnd:
    def piece(self, token: int) -> bytes:
        return b"x"

    def is_end(self, token: int) -> bool:
        return False
