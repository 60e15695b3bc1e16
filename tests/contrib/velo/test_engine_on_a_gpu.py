"""The engine `cuda`, its kernels emulated: from a request to its answer, and what is said where it cannot run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from emulator.executor import Emulator, compiler
from support.asking import answer, ask
from tiny_gguf import write_tiny_gguf

from velollm.backend import Backend, open_backend
from velollm.cli import main
from velollm.errors import ConfigError, UnsupportedError
from velollm.gpu import device
from velollm.gpu.device import Found
from velollm.gpu.errors import GpuUnavailable
from velollm.messages import ChatRequest, EmbedRequest, ResponseFormat

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.contrib.velo import EngineBackend, ServedEngine

pytestmark = pytest.mark.anyio
needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler (g++) to emulate kernels with")
ONE = Found(packages={}, driver="13.0", devices=("NVIDIA H200",), missing="")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wide = {"attention.head_count": 2, "attention.head_count_kv": 1, "rope.dimension_count": 64}
    metadata = {f"llama.{key}": value for key, value in wide.items()}
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", metadata=metadata)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Emulator]:
    """What is opened in the place of GPUs."""
    made: list[Emulator] = []

    def open_one(index: int) -> Emulator:
        assert index == 3
        made.append(Emulator())
        return made[-1]

    monkeypatch.setattr("velollm.gpu.executor.CudaExecutor", open_one)
    return made


async def said(backend: Backend, request: ChatRequest) -> str:
    return (await answer(backend, request)).choices[0].text


@needs_compiler
async def test_it_answers_as_llama_cpp_does(tiny: Path, opened: list[Emulator]) -> None:
    async with (
        EngineBackend(str(tiny), threads=1, num_blocks=64, kv_type="f32") as usual,
        EngineBackend(str(tiny), num_blocks=64, kv_type="f32", device=3) as on_gpu,
    ):
        assert await said(on_gpu, ask(max_tokens=8)) == await said(usual, ask(max_tokens=8))
        seeded = ask(temperature=1.0, seed=5, max_tokens=8)
        found = await asyncio.gather(*(said(on_gpu, one) for one in (seeded, ask(max_tokens=8), seeded)))
        assert found[0] == found[2] != found[1]
        assert on_gpu._loaded is not None
        assert on_gpu._loaded.engine.core.runner.graphs.replays > 0  # type: ignore[attr-defined]
        assert "argmax_fp32" in opened[0].launched
        shape = ResponseFormat(kind="json_schema", schema={"type": "object", "properties": {"a": {"type": "integer"}}})
        assert isinstance(orjson.loads(await said(on_gpu, ask(response_format=shape, max_tokens=60))), dict)
        with pytest.raises(UnsupportedError, match="computes no embeddings"):
            await on_gpu.embed(EmbedRequest(model="tiny", inputs=["words"]))
        assert on_gpu.plan.device == 3
        assert "GPU 3" in str(on_gpu.plan)


@needs_compiler
async def test_the_cache_is_as_large_as_fits(tiny: Path, opened: list[Emulator], monkeypatch: Any) -> None:
    async with EngineBackend(str(tiny), device=3, batch=32, ctx=512) as backend:
        await backend.ready()
        assert backend._loaded is not None
        limits = backend._loaded.engine.core.runner.limits
        block = 2 * 2 * 16 * 64 * 2  # bytes: keys and values of two layers in fp16
        assert 0.9 * opened[0].free - (257 << 20) < limits.num_blocks * block < 0.9 * opened[0].free - (256 << 20)
        assert (limits.context, limits.batch) == (512, 32)
    monkeypatch.setattr(Emulator, "free_memory", lambda self: 280 << 20)
    with pytest.raises(ConfigError, match="280 MiB of the GPU's memory are free"):
        await EngineBackend(str(tiny), device=3).ready()


def test_which_engine_has_a_device(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "look", lambda: ONE)
    made = open_backend(str(tiny), engine="cuda", num_blocks=32, kv_type="bf16")
    assert isinstance(made, ServedEngine)
    assert (made._plan(made._file[1]).device, made._plan(made._file[1]).kv_type) == (0, "bf16")  # type: ignore[index]
    assert isinstance(open_backend(str(tiny), engine="cuda", in_process=True), EngineBackend)
    with pytest.raises(ConfigError, match="velo has no device"):
        open_backend(str(tiny), engine="velo", device=0)
    with pytest.raises(ConfigError, match="'q8_0' is not computed on a GPU: f16, bf16, f32 are"):
        open_backend(str(tiny), engine="cuda", kv_type="q8_0")
    with pytest.raises(GpuUnavailable, match=r"no GPU number 1; found .*NVIDIA H200"):
        open_backend(str(tiny), engine="cuda", device=1)


def test_without_a_driver_it_is_said_at_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Found(packages={"cuda-core": "1.2"}, driver=None, devices=(), missing="no NVIDIA driver is installed")
    monkeypatch.setattr(device, "look", lambda: nothing)
    assert main(["serve", "--model", str(tiny), "--engine", "cuda", "--port", "0"]) in (2, 3)
    said = capsys.readouterr().err
    assert "CUDA kernels cannot run here: no NVIDIA driver is installed; found cuda-core 1.2; no NVIDIA driver" in said
