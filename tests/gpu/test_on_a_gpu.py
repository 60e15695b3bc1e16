"""What the emulator shows, shown on a GPU: every kernel, compute-sanitizer, streams, products, graphs, the runner.

Skipped where there is none. Run it with `pytest tests/gpu` where there is.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.asking import answer, ask
from support.kernel_cases import CASES
from support.numbers import TOLERANCE, error, rounded, widened
from tiny_gguf import write_tiny_gguf

from velollm.engine import CudaRunner, EngineCore, JobSpec, NumpyRunner, SamplingParams
from velollm.engine.runner import Runner
from velollm.gpu.check import check
from velollm.gpu.cublas_lt import load_library
from velollm.gpu.device import look
from velollm.gpu.errors import GpuUnavailable
from velollm.gpu.executor import CudaExecutor
from velollm.gpu.kernels import SCALARS
from velollm.gpu.kv import copy_blocks
from velollm.gpu.layers import rms_norm
from velollm.gpu.recording import Recorder
from velollm.models import DEFAULT_MODEL, find

FOUND = look()
pytestmark = pytest.mark.skipif(bool(FOUND.missing), reason=f"no GPU: {FOUND.missing}")


def _missing_products() -> str:
    try:
        load_library()
    except GpuUnavailable as error:
        return str(error)
    return ""


needs_cublas = pytest.mark.skipif(bool(FOUND.missing or _missing_products()), reason="cuBLASLt is not installed")
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
@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 4096, 1024), (64, 512, 4096), (7, 33, 17), (256, 96, 200)])
def test_products(on: CudaExecutor, scalar: str, rows: int, columns: int, inner: int) -> None:
    random = np.random.default_rng(rows)
    shapes = ((rows, inner), (columns, inner), (columns,))
    x, weight, bias = (rounded(random.standard_normal(shape), scalar) for shape in shapes)
    given = [on.array(one, scalar) for one in (x, weight, bias)]
    wide = [widened(one, scalar).astype(np.float64) for one in (x, weight, bias)]
    for with_bias in (False, True, False):
        got = on.multiply(given[0], given[1], bias=given[2] if with_bias else None)
        expected = wide[0] @ wide[1].T + (wide[2] if with_bias else 0)
        assert error(widened(on.host(got), scalar), expected) < TOLERANCE[scalar]


@needs_cublas
def test_work_is_captured_and_done_again(on: CudaExecutor) -> None:
    """A graph of kernels and products reads what its inputs hold when it is launched, whatever else was allocated."""
    random = np.random.default_rng(0)
    x, weight, square = (random.standard_normal(one).astype(np.float32) for one in ((3, 256), 256, (256, 256)))
    there, staged, recorder = on.array(x), on.pinned((3, 256), "fp32"), Recorder(on)
    out = recorder.multiply(rms_norm(there, on.array(weight), on=recorder), on.array(square))
    again = on.capture(recorder.work)
    for _ in range(3):
        x = random.standard_normal((3, 256)).astype(np.float32)
        staged.view()[...] = x
        on.copy(staged, there)
        again()
        on.array(np.full(1 << 20, np.nan, np.float32))
        normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * weight
        assert error(on.host(out), normed @ square.T) < 1e-4


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    metadata = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1, "llama.rope.dimension_count": 64}
    return write_tiny_gguf(tmp_path / "wide.gguf", metadata=metadata)


@needs_cublas
def test_the_engine_on_a_thread_of_its_own(wide: Path) -> None:
    """From `velollm serve --engine cuda` down: a child is not started, all else is as there."""
    pytest.importorskip("xllamacpp")
    from velollm.contrib.velo import EngineBackend

    async def answers() -> list[str]:
        async with (
            EngineBackend(str(wide), threads=1, num_blocks=64, kv_type="f32") as usual,
            EngineBackend(str(wide), num_blocks=64, kv_type="f32", device=0) as on_gpu,
        ):
            asked = [ask(max_tokens=32), ask(temperature=1.0, seed=5), ask(temperature=1.0, seed=5)]
            found = [await answer(usual, asked[0]), *await asyncio.gather(*(answer(on_gpu, one) for one in asked))]
            assert on_gpu._loaded is not None
            assert on_gpu._loaded.engine.core.runner.graphs.replays > 0  # type: ignore[attr-defined]
            return [one.choices[0].text for one in found]

    usual, greedy, first, second = asyncio.run(answers())
    assert greedy == usual
    assert first == second


def greedy_tokens(runner: Runner, prompts: list[list[int]], count: int) -> dict[int, list[int]]:
    core = EngineCore(runner, _NoEnd())
    greedy = SamplingParams(temperature=0)
    jobs = [core.add(JobSpec(prompt=one, sampling=greedy, max_tokens=count)) for one in prompts]
    said: dict[int, list[int]] = {}
    while not core.idle:
        for job, update in core.step():
            assert not isinstance(update, BaseException), update
            said.setdefault(jobs.index(job), []).extend(update.tokens)
    return said


@needs_cublas
@pytest.mark.parametrize("graph_rows", [0, 64])
def test_greedy_tokens_are_those_of_the_reference(on: CudaExecutor, wide: Path, graph_rows: int) -> None:
    prompts = [np.random.default_rng(seed).integers(0, 500, 30 + seed).tolist() for seed in range(6)]
    got = greedy_tokens(CudaRunner(wide, 64, scalar="fp32", graph_rows=graph_rows, on=on), prompts, 32)
    assert got == greedy_tokens(NumpyRunner(wide, 64), prompts, 32)


@needs_cublas
def test_greedy_tokens_of_the_default_model(on: CudaExecutor) -> None:
    path = find(DEFAULT_MODEL)
    if path is None:
        pytest.skip(f"{DEFAULT_MODEL} is not installed")
    prompts, count = (
        [[1, 504, 3575, 282], [1, 9690, 198, 2683, 359, 253, 5356]],
        4 if "EMULATED_GPU" in os.environ else 48,
    )
    got = greedy_tokens(CudaRunner(path, 64, scalar="fp32", on=on), prompts, count)
    assert got == greedy_tokens(NumpyRunner(path, 64), prompts, count)


class _NoEnd:
    def piece(self, token: int) -> bytes:
        return b"x"

    def is_end(self, token: int) -> bool:
        return False
