"""A CUDA driver for `CudaExecutor` that is none: cuda.core and cuda.bindings as they are called, over the emulator.

Every call is bound to the signature of what it stands for, so that an argument too many, or one of another name, fails.
Arguments of kernels are packed by cuda.core itself. Nothing is forgiven that a GPU would not forgive:

- a thread for which no context is current may do nothing;
- what is launched or copied on a stream happens when somebody waits for the stream, not before;
- memory that was freed is NaN from then on, on its stream;
- on a stream that is captured nothing may be waited for or allocated, and what is launched does not run.
"""

from __future__ import annotations

import ctypes as c
import inspect
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from emulator.cublas_lt import FakeCublasLt
from emulator.executor import EmulationError, Emulator, build

from velollm.gpu import cublas_lt, executor, matmul
from velollm.gpu.arrays import Array
from velollm.gpu.compiler import Compiled, Resources
from velollm.gpu.kernels import Kernel, catalogue

__all__ = ["KEPT", "STAND_INS", "FakeCuda"]

Task = Callable[[], None]
NUMBERS = count(0x7E00_0000_0000, 0x100)
TOTAL, FREE = 80 << 30, 70 << 30


class FakeCuda:
    """Stands for a machine with one GPU of compute capability 8.0 once it is `installed`. `launches` are kernels that
    were launched one by one, `replays` counts graphs."""

    def __init__(self) -> None:
        self.memory = Emulator(seed=2)
        self.here = threading.local()
        self.streams: dict[int, Stream] = {}
        self.launches: list[str] = []
        self.replays = 0
        self.products = FakeCublasLt(submit=lambda stream, task: self.streams[stream].put(task))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in the place of the real one."""
        import cuda.core as core
        from cuda.bindings import driver

        world = self
        calls: dict[str, Callable[..., Any]] = {
            "cuInit": lambda flags: (),
            "cuDriverGetVersion": lambda: (13000,),
            "cuDeviceGetCount": lambda: (1,),
            "cuDeviceGet": lambda ordinal: (ordinal,),
            "cuDeviceGetName": lambda length, device: (b"Emulated GPU\0".ljust(length, b"\0"),),
            "cuMemGetInfo": lambda: self._with_context((FREE, TOTAL)),
            "cuMemcpyDtoDAsync": lambda to, source, size, stream: self._copy(to, source, size, stream),
            "cuMemcpyHtoDAsync": lambda to, source, size, stream: self._copy(to, source, size, stream),
            "cuMemcpyDtoHAsync": lambda to, source, size, stream: self._copy(to, source, size, stream),
            "cuKernelSetAttribute": lambda attribute, value, kernel, device: self._allow(attribute, value, kernel),
        }
        success = driver.CUresult.CUDA_SUCCESS
        for name, function in calls.items():
            answered = _bound(getattr(driver, name), lambda *given, call=function: (success, *(call(*given) or ())))
            monkeypatch.setattr(driver, name, answered)
        monkeypatch.setattr(core, "Device", lambda index: Device(world, index))
        monkeypatch.setattr(core, "launch", _bound(core.launch, self._launch))
        monkeypatch.setattr(core, "ObjectCode", Code)
        monkeypatch.setattr(core, "LegacyPinnedMemoryResource", lambda: Pinned(world))
        monkeypatch.setattr(executor, "Compiler", NoCompiler)
        for module in (matmul, cublas_lt):
            monkeypatch.setattr(module, "load_library", lambda: self.products)

    def current(self) -> None:
        """Raises where no context is current."""
        if not getattr(self.here, "current", False):
            raise RuntimeError("CUDA_ERROR_INVALID_CONTEXT: no context is current for this thread")

    def _with_context(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        self.current()
        return answer

    def _copy(self, to: int, source: int, size: int, stream: int) -> None:
        self.current()
        assert min(to, source, size) > 0
        self.streams[int(stream)].put(lambda: c.memmove(to, source, size) and None)

    def _allow(self, attribute: Any, value: int, kernel: Any) -> None:
        self.current()
        assert attribute.name == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        assert 48 * 1024 < value <= 99 * 1024
        kernel.shared = value

    def _launch(self, stream: Any, config: Any, function: Any, *arguments: Any) -> None:
        from cuda.core._kernel_arg_handler import ParamHolder

        self.current()
        assert isinstance(stream, Stream)
        assert config.shmem_size <= function.shared, "more shared memory than was allowed"
        assert config.cluster is None
        packed = ParamHolder(arguments)
        sizes = [8 if isinstance(one, int) else one.nbytes for one in arguments]
        self.launches.append(function.kernel.name)
        stream.put(lambda: _emulate(function.kernel, config, packed, sizes))


def _emulate(kernel: Kernel, config: Any, packed: Any, sizes: list[int]) -> None:
    message = c.create_string_buffer(1024)
    assert config.block[1:] == (1, 1)
    if build(kernel).emulate(
        (c.c_uint * 3)(*config.grid), config.block[0], c.c_size_t(config.shmem_size), c.c_ulonglong(1), 0,
        c.c_void_p(packed.ptr), (c.c_size_t * len(sizes))(*sizes), len(sizes), message, c.c_size_t(len(message)),
    ):  # fmt: skip
        raise EmulationError(f"{kernel.name}: {message.value.decode()}")


def _bound(real: Any, stand_in: Callable[..., Any]) -> Callable[..., Any]:
    """`stand_in`, called only with what `real` takes."""
    signature = inspect.signature(real)

    def call(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named)
        return stand_in(*bound.args, **bound.kwargs)

    return call


class Device:
    """cuda.core.Device: as there, one object for each thread."""

    def __init__(self, world: FakeCuda, index: int) -> None:
        assert index == 0
        self._world = world
        self.device_id = index
        self.compute_capability = (8, 0)
        self.properties = type("Properties", (), {"multiprocessor_count": 4, "l2_cache_size": 4096})

    def set_current(self, ctx: Any = None) -> None:
        self._world.here.current = True

    def create_stream(self, obj: Any = None, options: Any = None) -> Stream:
        self._world.current()
        return Stream(self._world)

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        self._world.current()
        assert stream.graph is None, "memory is allocated while a stream is captured"
        return Buffer(self._world, size, stream)


class Stream:
    """cuda.core.Stream: what is put into it happens in order, when somebody waits."""

    def __init__(self, world: FakeCuda) -> None:
        self.world = world
        self.handle = next(NUMBERS)
        self.graph: list[Task] | None = None
        self._tasks: list[Task] = []
        self._done = 0
        world.streams[self.handle] = self

    def put(self, task: Task) -> None:
        (self._tasks if self.graph is None else self.graph).append(task)

    def run(self, until: int) -> None:
        while self._done < until:
            self._done += 1
            self._tasks[self._done - 1]()

    def sync(self) -> None:
        self.world.current()
        assert self.graph is None, "a stream is waited for while it is captured"
        self.run(len(self._tasks))

    def wait(self, event_or_stream: Stream) -> None:
        self.world.current()
        other, until = event_or_stream, len(event_or_stream._tasks)
        assert other is not self
        assert self.graph is None
        self.put(lambda: other.run(until))

    def record(self, event: Any = None, options: Any = None) -> Event:
        self.world.current()
        made = Event(self, len(self._tasks))
        assert options is not None
        assert options.timing_enabled
        return made

    def create_graph_builder(self) -> Builder:
        return Builder(self)


class Event:
    """cuda.core.Event, of a point in a stream; its time is the number of what was done until then."""

    def __init__(self, stream: Stream, until: int) -> None:
        self._stream, self._until = stream, until

    def sync(self) -> None:
        self._stream.world.current()
        self._stream.run(self._until)

    def __sub__(self, other: Event) -> float:
        assert self._stream._done >= self._until >= other._until, "an event that has not come has no time"
        return float(self._until - other._until)


class Builder:
    """cuda.core.graph.GraphBuilder, of a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._graph: list[Task] | None = None

    def begin_building(self, mode: str | None = "relaxed") -> Builder:
        self.stream.world.current()
        assert self.stream.graph is None
        self.stream.graph = []
        return self

    def end_building(self) -> Builder:
        self._graph, self.stream.graph = self.stream.graph, None
        return self

    def complete(self, options: Any = None) -> Graph:
        assert self._graph
        return Graph(self.stream.world, self._graph)

    def close(self) -> None:
        self.stream.graph = None


class Graph:
    """cuda.core.graph.Graph"""

    def __init__(self, world: FakeCuda, tasks: list[Task]) -> None:
        self._world, self._tasks = world, tasks

    def launch(self, stream: Stream) -> None:
        self._world.current()
        self._world.replays += 1
        for task in self._tasks:
            stream.put(task)


class Buffer:
    """cuda.core.Buffer: its memory is freed in the order of its stream, and is NaN from then on."""

    def __init__(self, world: FakeCuda, size: int, stream: Stream | None) -> None:
        array = world.memory.empty((size,), "uint8")
        self.handle, self.size = array.pointer, size
        self._world, self._stream = world, stream
        self._array: Array | None = array

    def close(self, stream: Any = None) -> None:
        if self._array is None:
            return
        self._world.current()
        memory = self._array.view()
        if self._stream is None:
            memory[...] = 0xFF
        else:
            self._stream.put(lambda: memory.fill(0xFF))
        KEPT.append(self._array)
        self._array = None

    def __del__(self) -> None:
        self.close()  # which on a thread without a context fails, and fails the test


KEPT: list[Any] = []  # what was freed stays readable, so that who reads it gets NaN and no fault


class Pinned:
    """cuda.core.LegacyPinnedMemoryResource"""

    def __init__(self, world: FakeCuda) -> None:
        self._world = world

    def allocate(self, size: int, *, stream: Any = None) -> Buffer:
        self._world.current()
        return Buffer(self._world, size, None)


class Code:
    """cuda.core.ObjectCode, of machine code that is the name of a kernel."""

    def __init__(self, name: str) -> None:
        self._name = name

    @staticmethod
    def from_cubin(module: bytes, *, name: str = "", symbol_mapping: Any = None) -> Code:
        return Code(module.decode())

    def get_kernel(self, name: str) -> Function:
        assert name == self._name
        return Function(next(one for one in catalogue() if one.name == name))


class Function:
    """cuda.core.Kernel"""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.shared = 48 * 1024

    @property
    def handle(self) -> Function:
        return self


class NoCompiler:
    """velollm.gpu.compiler.Compiler: machine code is the name of a kernel."""

    def __init__(self, cache: Any) -> None:
        pass

    def architecture(self, capability: int) -> str:
        return f"sm_{capability}"

    def compile(self, kernel: Kernel, architecture: str) -> Compiled:
        assert architecture == "sm_80"
        resources = Resources(registers=1, stack_bytes=0, spill_bytes=0)
        return Compiled(
            kernel=kernel, architecture=architecture, cubin=kernel.name.encode(), resources=resources, cached=False
        )


# What stands for what: their methods take the same arguments.
STAND_INS = {
    "Device": Device,
    "Stream": Stream,
    "Event": Event,
    "GraphBuilder": Builder,
    "Graph": Graph,
    "LegacyPinnedMemoryResource": Pinned,
    "ObjectCode": Code,
    "Kernel": Function,
    "Buffer": Buffer,
}
