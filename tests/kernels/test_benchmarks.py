"""The measurements of kernels run to their end, over an emulated GPU; what they find there means nothing."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from emulator.cuda import FakeCuda
from emulator.executor import Emulator

from velollm.gpu.executor import CudaExecutor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of the scripts."""
    if not BENCHMARKS.is_dir():
        pytest.skip("the benchmarks are not here")
    pytest.importorskip("cuda.core")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module
    for name in ("kernels", "cuda_step"):
        sys.modules.pop(name, None)


def test_kernels(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = benchmark("kernels")
    for name, value in {"GIB": 1 << 16, "REPLAYS": 2, "HEADS": 4, "KV_HEADS": 1, "DECODES": {(2, 32): 0.9}}.items():
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    on = CudaExecutor()
    rate = kernels.copy_rate(on)
    assert rate == 2 * (1 << 16) / 1e-3, "one copy between two events"
    row = kernels.decode(on, 2, 32, rate)
    assert row["share_of_copy"] > 0
    assert cuda.replays == 2 + 3
    assert kernels.prefill(on, 1, 32)["tflops"] > 0


def test_a_step(benchmark: Any) -> None:
    cuda_step = benchmark("cuda_step")
    sizes = cuda_step.Sizes(
        layers=1, width=64, heads=2, kv_heads=1, head_dim=64, feed_forward=64, vocabulary=96
    )  # fmt: skip
    on = Emulator()
    model = cuda_step.random_model(on, sizes, 64)
    assert cuda_step.bytes_read(model, 40) == 2 * (64 * 256 + 64 * 128 + 128 * 64 + 64 * 64 + 96 * 64 + 40 * 128)
    row = cuda_step.measured(on, model, 2, 20, 1e9, steps=1)
    assert row["step_ms"] > 0
    assert row["over_roofline"] == pytest.approx(row["step_ms"] / row["roofline_ms"])


def test_the_ceiling_compiles(benchmark: Any) -> None:
    assert b"read_only" in benchmark("kernels").read_kernel("sm_90").code
