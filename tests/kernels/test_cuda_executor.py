"""The executor of GPUs over a driver that forgives nothing: what it calls, on which thread, and when it waits.

What cannot be shown here is that the real driver does what this one does.
"""

from __future__ import annotations

import ctypes
import inspect
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.core")
pytest.importorskip("cuda.bindings")

from emulator.cuda import KEPT, STAND_INS, FakeCuda
from emulator.executor import Emulator
from tiny_gguf import write_tiny_gguf

from velollm.engine import CudaRunner, EngineCore, JobSpec, SamplingParams
from velollm.engine.events import Copy, Discard, Export, Import
from velollm.gpu.arrays import Array
from velollm.gpu.attention import paged_attention
from velollm.gpu.executor import CudaExecutor
from velollm.gpu.kv import copy_blocks
from velollm.gpu.layers import rms_norm
from velollm.gpu.recording import Recorder

WIDE = {"attention.head_count": 2, "attention.head_count_kv": 1, "rope.dimension_count": 64}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    made.install(monkeypatch)
    return made


def test_what_stands_for_cuda_takes_what_cuda_takes() -> None:
    import cuda.core as core
    import cuda.core.graph as graph

    for name, stand_in in STAND_INS.items():
        real = getattr(core, name, None) or getattr(graph, name)
        for method in (one for one in vars(stand_in) if not one.startswith("_") and one not in ("put", "run")):
            assert hasattr(real, method), f"{name} has no {method}"
            ours, theirs = getattr(stand_in, method), getattr(real, method)
            if callable(ours):
                taken = [(one.name, one.kind) for one in inspect.signature(ours).parameters.values()]
                known = [(one.name, one.kind) for one in inspect.signature(theirs).parameters.values()]
                assert taken == known, f"{name}.{method}"


def test_arrays_go_there_and_back(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    assert (on.capability, on.processors, on.free_memory()) == (80, 4, 70 << 30)
    for given in (np.arange(12, dtype=np.int32).reshape(3, 4), np.ones((2, 8), np.float16)[:, ::2], np.zeros((0, 3))):
        array = on.array(given.astype(given.dtype if given.size else np.float32))
        assert array.on_gpu
        assert np.array_equal(on.host(array), given)
        with pytest.raises(TypeError, match="lies on a GPU"):
            array.view()
    shown = on.array(np.arange(4, dtype=np.float32)).__cuda_array_interface__
    assert (shown["shape"], shown["typestr"], shown["version"]) == ((4,), "<f4", 3)
    assert shown["stream"] == on.stream.handle


def test_what_is_copied_from_numpy_may_change_at_once(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    given = np.arange(4, dtype=np.float32)
    array = on.array(given)
    given[...] = 9
    assert on.host(array).tolist() == [0, 1, 2, 3]


def test_arrays_of_the_host_know_no_streams(cuda: FakeCuda) -> None:
    class Other:
        """A tensor of another library, on the host."""

        def __init__(self, values: Any) -> None:
            self._values = values

        def __dlpack_device__(self) -> tuple[int, int]:
            return self._values.__dlpack_device__()  # type: ignore[no-any-return]

        def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
            assert stream is None
            return self._values.__dlpack__(**options)

    on = CudaExecutor()
    assert on.host(on.array(Other(np.arange(3, dtype=np.float32)))).tolist() == [0, 1, 2]


def test_arrays_of_other_libraries_are_looked_at(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """`StridedMemoryView` asks the driver where an address lies: what it says is put in its place."""
    from cuda.core import utils

    view: dict[str, Any] = {"ptr": 0x7000, "shape": (2, 8), "strides": (8, 1), "dtype": np.dtype("f4"), "device_id": 0}
    asked = []

    def seen(obj: Any, stream_ptr: int | None = None) -> Any:
        asked.append(stream_ptr)
        return type("View", (), view)

    assert list(inspect.signature(utils.StridedMemoryView.from_any_interface).parameters) == ["obj", "stream_ptr"]
    assert all(hasattr(utils.StridedMemoryView, name) for name in view)
    monkeypatch.setattr(utils, "StridedMemoryView", type("Views", (), {"from_any_interface": staticmethod(seen)}))
    on = CudaExecutor()
    found = on.array(object())
    assert (found.pointer, found.shape, found.scalar, found.on_gpu) == (0x7000, (2, 8), "fp32", True)
    assert asked == [on.stream.handle], "the other library's stream is waited for"
    for changes, words in (
        ({"strides": (16, 1)}, "has gaps"),
        ({"device_id": 1}, "on GPU 1, where kernels run on GPU 0"),
        ({"ptr": 0x7004}, "16 bytes at once"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(view, *next(iter(changes.items())))
            with pytest.raises(ValueError, match=words):
                on.array(object())


def test_any_thread_may_use_it(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    x, weight = on.array(np.ones((2, 64), np.float32)), on.array(np.full(64, 3, np.float32))
    found = []

    def work() -> None:
        with pytest.raises(RuntimeError, match="no context is current"):
            cuda.current()
        found.append(on.host(rms_norm(x, weight, on=on)))
        found.append(on.host(on.multiply(x, on.array(np.ones((3, 64), np.float32)))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert np.allclose(found[0], 3, atol=1e-4)
    assert np.allclose(found[1], 64)


def test_work_is_captured_and_done_again(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    x, weight = on.array(np.ones((2, 64), np.float32)), on.array(np.full(64, 3, np.float32))
    staged = on.pinned((2, 64), "fp32")
    square = on.array(np.eye(64, dtype=np.float32) * 2)
    recorder = Recorder(on)
    out = recorder.multiply(rms_norm(rms_norm(x, weight, on=recorder), weight, on=recorder), square)
    assert cuda.launches == []
    again = on.capture(recorder.work)
    assert np.allclose(on.host(out), 6, atol=1e-3)
    del square, weight, recorder  # the graph points to them still, and to what lies in the arena
    staged.view()[...] = np.arange(128).reshape(2, 64) + 1
    on.copy(staged, x)
    launched = len(cuda.launches)
    again()
    got = on.host(out)
    assert (len(cuda.launches), cuda.replays) == (launched, 1)
    values = staged.view()
    for _ in range(2):
        values = values / np.sqrt((values**2).mean(-1, keepdims=True)) * 3
    assert np.allclose(got, 2 * values, atol=1e-3)
    with pytest.raises(ValueError, match="cannot be copied"):
        on.copy(staged, x[:1])


def test_each_stream_has_a_workspace_of_its_own(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    x = on.array(np.ones((2, 64), np.float32))
    assert np.allclose(on.host(on.multiply(x, x)), 64)
    beside = on.beside()
    assert np.allclose(beside.host(beside.multiply(x, x)), 64)
    assert on._products is not beside._products


def test_kernels_are_allowed_the_shared_memory_that_they_need(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    q, cache = np.ones((1, 2, 256), np.float16), np.ones((1, 1, 16, 256), np.float16)
    out = paged_attention(q, cache, cache, np.zeros((1, 1), np.int32), np.array([5], np.int32), on=on)
    assert np.array_equal(out, q)
    assert cuda.launches == ["paged_decode_fp16_d256"]


def test_a_failure_while_capturing_leaves_the_stream_as_it_was(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    stream, times = on.stream, iter(range(3))

    def breaks(on: Any) -> None:
        if next(times) == 1:
            raise RuntimeError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    with pytest.raises(RuntimeError, match="INVALIDATED"):
        on.capture([breaks])
    assert on.stream is stream
    assert stream.graph is None
    assert on.host(on.array(np.ones(3, np.float32))).tolist() == [1, 1, 1]


def test_what_is_recorded_may_not_wait() -> None:
    recorder = Recorder(Emulator())
    array = recorder.empty((3,), "fp32")
    for what in (
        lambda: recorder.host(array),
        lambda: recorder.copy(array, array),
        lambda: recorder.capture([]),
        lambda: recorder.wait_for(recorder),
        recorder.beside,
        recorder.finish,
    ):
        with pytest.raises(TypeError, match="work that is recorded"):
            what()


def test_memory_of_an_arena_is_used_again() -> None:
    recorder = Recorder(Emulator())
    first = recorder.empty((100,), "fp32")
    part, address = first[10:20], first.pointer
    del first
    assert recorder.empty((100,), "fp32").pointer != address, "a part of it is held"
    del part
    assert {recorder.empty((2, 50), "fp32").pointer for _ in range(3)} < {address, *_pointers(recorder)}
    assert recorder.arena.nbytes == 2 * 512


def _pointers(recorder: Recorder) -> list[int]:
    return [piece.pointer for piece in recorder.arena._pieces]


def test_swaps_run_beside(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    cache = np.random.default_rng(0).standard_normal((2, 6, 1, 16, 64)).astype(np.float16)
    pages, kept = on.array(cache), on.pinned((2, 2, 1, 16, 64), "fp16")
    beside = on.beside()
    assert beside.stream is not on.stream
    kept.view()[...] = 0
    beside.wait_for(on)
    copy_blocks(pages, kept, np.array([[1, 0], [4, 1]], np.int32), on=beside)
    assert not kept.view().any(), "nobody has waited yet"
    on.wait_for(beside)
    on.finish()
    assert np.array_equal(kept.view(), cache[:, [1, 4]])


class NoEnd:
    """Tokens that never end an answer."""

    def piece(self, token: int) -> bytes:
        return b"x"

    def is_end(self, token: int) -> bool:
        return False


def run(runner: CudaRunner) -> dict[int, list[int]]:
    """Three answers, two of them drawn, on another thread than the one that loaded the model."""
    core = EngineCore(runner, NoEnd(), token_budget=24, swap_tokens=10_000, recompute=0)
    random = np.random.default_rng(3)
    said: dict[int, list[int]] = {}

    def work() -> None:
        jobs = [
            core.add(JobSpec(prompt=random.integers(0, 500, 20).tolist(), sampling=sampling, max_tokens=16))
            for sampling in (SamplingParams(temperature=0), SamplingParams(seed=4), SamplingParams(seed=5, logprobs=0))
        ]
        while not core.idle:
            for job, update in core.step():
                assert not isinstance(update, BaseException), update
                said.setdefault(jobs.index(job), []).extend(update.tokens)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert core.scheduler.counters.swapped
    runner.close()
    return said


def test_the_runner(cuda: FakeCuda, tmp_path: Path) -> None:
    """Graphs, swaps and draws, as the emulator says them."""
    path = write_tiny_gguf(tmp_path / "wide.gguf", metadata={f"llama.{key}": value for key, value in WIDE.items()})
    expected = run(CudaRunner(path, 8, scalar="fp32", graph_rows=0, on=Emulator()))
    on = CudaExecutor()
    got = run(CudaRunner(path, 8, scalar="fp32", on=on))
    assert got == expected
    assert all(len(tokens) == 16 for tokens in got.values())
    assert cuda.replays > 10
    assert {"argmax_fp32", "sample_fp32"} & set(cuda.launches)


def test_swapped_blocks_are_used_by_others_at_once(cuda: FakeCuda, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "wide.gguf", metadata={f"llama.{key}": value for key, value in WIDE.items()})
    on = CudaExecutor()
    runner = CudaRunner(path, 4, scalar="fp32", on=on)
    before = np.random.default_rng(0).standard_normal(runner._pages.shape).astype(np.float32)
    pages = runner._moves._pages = on.array(before)
    runner.apply([Copy(1, 0, 16), Export(1, 0, (0, 2), 32), Export(2, 0, (3,), 16), Discard(2)])
    runner.apply([Import(1, 0, (3, 1))])
    runner.close()
    assert np.array_equal(on.host(pages)[:, [3, 1]], before[:, [1, 2]])


def test_any_thread_may_be_the_last_to_hold_memory(cuda: FakeCuda) -> None:
    on = CudaExecutor()
    held = [on.array(np.ones(3, np.float32)), on.pinned((3,), "fp32")]
    freed = len(KEPT)
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert len(KEPT) == freed + 2


def test_addresses_are_whole() -> None:
    """More than 32 bits of an address reach a kernel."""
    from cuda.core._kernel_arg_handler import ParamHolder

    from velollm.gpu.executor import _passed

    array = Array(pointer=0x7FFF_1234_5678_9AB0, shape=(1,), scalar="fp32")
    given = (array, None, 7, 2.5, np.uint64(1 << 40), True)
    packed = ParamHolder([_passed(one) for one in given])
    places = (ctypes.c_void_p * len(given)).from_address(packed.ptr)
    kinds = (np.uint64, np.uint64, np.int32, np.float32, np.uint64, np.int32)
    found = [np.frombuffer(ctypes.string_at(at, 8), kind)[0] for at, kind in zip(places, kinds, strict=True)]
    assert found == [0x7FFF_1234_5678_9AB0, 0, 7, 2.5, 1 << 40, 1]
