"""Where kernels run: what the library calls need of a place, and the place that is a GPU.

A call lays out its arrays, picks an instance from the catalogue and launches it; streams and drivers are behind this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from velollm.gpu.arrays import Array, scalar_of, storage
from velollm.gpu.compiler import Compiler, default_cache
from velollm.gpu.context import Context, Held
from velollm.gpu.device import open_device
from velollm.gpu.kernels import Kernel
from velollm.gpu.matmul import Products, product_shape

__all__ = ["Argument", "CudaExecutor", "Executor", "Grid", "Work", "default_executor", "in_place", "returned"]

Grid: TypeAlias = tuple[int, int, int]
Argument: TypeAlias = Array | int | float | np.generic | None  # int is passed as int32, float as fp32, None as null
Work: TypeAlias = "Callable[[Executor], object]"  # launches on the executor that it is given
SHARED_WITHOUT_ASKING = 48 * 1024
DLPACK_CPU = 1
CHUNK = 16  # bytes: what kernels read and write of numbers at once
NUMBERS = frozenset({"fp32", "fp16", "bf16", "fp8", "int8"})


class Executor(Protocol):
    """Runs kernels in the order in which they are launched.

    `capability` is that of the GPU (90 for sm_90), `processors` the number of its multiprocessors.
    """

    capability: int
    processors: int

    def array(self, given: Any, scalar: str | None = None) -> Array:
        """What `given` holds, where kernels can read it: copied from NumPy, as it is from a GPU.

        `scalar` says what the numbers are where their dtype does not (bfloat16 in a uint16 array). Raises `TypeError`
        for what is no array, and `ValueError` for one with gaps.
        """
        ...

    def empty(self, shape: Sequence[int], scalar: str) -> Array:
        """Memory that nobody has written to."""
        ...

    def pinned(self, shape: Sequence[int], scalar: str) -> Array:
        """Memory of the host that kernels can reach: where swapped blocks lie."""
        ...

    def host(self, array: Array) -> npt.NDArray[Any]:
        """A copy in NumPy, when all that was launched is done."""
        ...

    def finish(self) -> None:
        """Return when all that was launched is done."""
        ...

    def launch(self, kernel: Kernel, *, grid: Grid, block: int, arguments: Sequence[Argument], shared: int = 0) -> None:
        """Start `kernel`; `shared` is its dynamic shared memory in bytes."""
        ...

    def multiply(self, x: Array, weight: Array, *, bias: Array | None = None, out: Array | None = None) -> Array:
        """x [rows, inner] times the transpose of weight [columns, inner], accumulated in fp32, plus `bias` [columns].

        What comes out is written to `out` where that is given. Raises `ValueError` for what cannot be multiplied.
        """
        ...

    def copy(self, source: Array, target: Array) -> None:
        """Copy the numbers of `source`, pinned memory, over those of `target`, in order with what is launched."""
        ...

    def capture(self, work: Sequence[Work]) -> Callable[[], None]:
        """Do `work`, and keep it: what is returned does it again, with whatever its arrays hold then.

        It allocates nothing, and its arrays live for as long as it does.
        """
        ...

    def beside(self) -> Executor:
        """The same GPU with a stream of its own, to copy blocks while this one computes; see `wait_for`."""
        ...

    def wait_for(self, other: Executor) -> None:
        """What is launched here from now on runs after what has been launched on `other`."""
        ...

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""
        ...


class CudaExecutor:
    """The GPU number `index`, with one stream; any thread may use it, one at a time. Raises `GpuUnavailable`."""

    def __init__(self, index: int = 0, *, kernels: Path | None = None) -> None:
        self.device = open_device(index)
        self._context = Context(index)
        self.stream = self.device.create_stream()
        self.capability = self.device.compute_capability[0] * 10 + self.device.compute_capability[1]
        self.processors = self.device.properties.multiprocessor_count
        self._compiler = Compiler(kernels or default_cache())
        self._architecture = self._compiler.architecture(self.capability)
        self._loaded: dict[tuple[str, int], Any] = {}
        self._products: Products | None = None

    def array(self, given: Any, scalar: str | None = None) -> Array:
        """See `Executor.array`."""
        if isinstance(given, Array):
            return given
        if isinstance(given, np.ndarray):
            scalar = scalar or scalar_of(given.dtype)
            target = self.empty(given.shape, scalar)
            self._upload(target, np.ascontiguousarray(given))
            return target
        if _on_host(given):
            return self.array(np.from_dlpack(given), scalar)
        return self._seen(given, scalar)

    def _seen(self, given: Any, scalar: str | None) -> Array:
        """An array of another library, which waits for whoever writes to it."""
        from cuda.core.utils import StridedMemoryView

        self._context.enter()
        try:
            view = StridedMemoryView.from_any_interface(given, stream_ptr=int(self.stream.handle))
        except BufferError as error:
            raise TypeError(f"{type(given).__name__} is no array that a kernel can read: {error}") from error
        if view.strides is not None and not _contiguous(view.shape, view.strides):
            raise ValueError(f"an array of shape {view.shape} has gaps: make it contiguous")
        if view.device_id != self.device.device_id:
            raise ValueError(f"an array on GPU {view.device_id}, where kernels run on GPU {self.device.device_id}")
        scalar = scalar or scalar_of(view.dtype)
        if scalar in NUMBERS and view.ptr % CHUNK:
            raise ValueError(f"an array at {view.ptr:#x}: kernels read {CHUNK} bytes at once, from multiples of that")
        return Array(
            pointer=view.ptr,
            shape=tuple(view.shape),
            scalar=scalar,
            owner=view,
            on_gpu=True,
            stream=int(self.stream.handle),
        )

    def empty(self, shape: Sequence[int], scalar: str) -> Array:
        """See `Executor.empty`."""
        self._context.enter()
        array = Array(pointer=0, shape=tuple(shape), scalar=scalar)
        buffer = self.device.allocate(max(array.nbytes, 1), stream=self.stream)
        return attrs.evolve(
            array,
            pointer=int(buffer.handle),
            owner=Held(self._context, buffer),
            on_gpu=True,
            stream=int(self.stream.handle),
        )

    def pinned(self, shape: Sequence[int], scalar: str) -> Array:
        """See `Executor.pinned`."""
        from cuda.core import LegacyPinnedMemoryResource

        self._context.enter()
        array = Array(pointer=0, shape=tuple(shape), scalar=scalar)
        buffer = LegacyPinnedMemoryResource().allocate(max(array.nbytes, 1))
        return attrs.evolve(array, pointer=int(buffer.handle), owner=Held(self._context, buffer))

    def beside(self) -> CudaExecutor:
        """See `Executor.beside`."""
        self._context.enter()
        other = copy(self)
        other.stream = self.device.create_stream()
        other._products = None  # a workspace serves one stream
        return other

    def wait_for(self, other: Executor) -> None:
        """See `Executor.wait_for`."""
        assert isinstance(other, CudaExecutor)
        self._context.enter()
        self.stream.wait(other.stream)

    def host(self, array: Array) -> npt.NDArray[Any]:
        """See `Executor.host`."""
        from cuda.bindings import driver

        self._context.enter()
        target = np.empty(array.shape, storage(array.scalar))
        if array.nbytes:
            _check(driver.cuMemcpyDtoHAsync(target.ctypes.data, array.pointer, array.nbytes, int(self.stream.handle)))
        self.stream.sync()
        return target

    def finish(self) -> None:
        """See `Executor.finish`."""
        self._context.enter()
        self.stream.sync()

    def launch(self, kernel: Kernel, *, grid: Grid, block: int, arguments: Sequence[Argument], shared: int = 0) -> None:
        """See `Executor.launch`."""
        from cuda.core import LaunchConfig, launch

        if 0 in grid:
            return
        self._context.enter()
        config = LaunchConfig(grid=grid, block=block, shmem_size=shared)
        launch(self.stream, config, self._load(kernel, shared), *map(_passed, arguments))

    def multiply(self, x: Array, weight: Array, *, bias: Array | None = None, out: Array | None = None) -> Array:
        """See `Executor.multiply`. Raises `GpuUnavailable` where cuBLASLt is not installed."""
        self._context.enter()
        if self._products is None:
            self._products = Products(self.empty)
        out = self.empty(product_shape(x, weight), x.scalar) if out is None else out
        self._products.multiply(x, weight, out, bias, int(self.stream.handle))
        return out

    def copy(self, source: Array, target: Array) -> None:
        """See `Executor.copy`."""
        from cuda.bindings import driver

        same_size(source, target)
        self._context.enter()
        if target.nbytes:
            _check(driver.cuMemcpyHtoDAsync(target.pointer, source.pointer, target.nbytes, int(self.stream.handle)))

    def capture(self, work: Sequence[Work]) -> Callable[[], None]:
        """See `Executor.capture`: a CUDA graph."""
        for one in work:  # whatever is compiled, loaded, planned or allocated once is so before anything is captured
            one(self)
        builder, stream = self.stream.create_graph_builder(), self.stream
        self.stream = builder.stream
        try:
            builder.begin_building()
            for one in work:
                one(self)
            graph = builder.end_building().complete()
        finally:
            self.stream = stream
            builder.close()
        return _Replay(self, graph, tuple(work))

    def free_memory(self) -> int:
        """See `Executor.free_memory`."""
        from cuda.bindings import driver

        self._context.enter()
        answer = driver.cuMemGetInfo()
        _check(answer)
        return int(answer[1])

    def _load(self, kernel: Kernel, shared: int) -> Any:
        """The kernel on the device, allowed as much shared memory as it needs."""
        from cuda.bindings import driver
        from cuda.core import ObjectCode

        found = self._loaded.get((kernel.name, shared))
        if found is None:
            compiled = self._compiler.compile(kernel, self._architecture)
            found = ObjectCode.from_cubin(compiled.cubin, name=kernel.name).get_kernel(kernel.name)
            if shared > SHARED_WITHOUT_ASKING:
                attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _check(driver.cuKernelSetAttribute(attribute, shared, found.handle, self.device.device_id))
            self._loaded[kernel.name, shared] = found
        return found

    def _upload(self, target: Array, source: npt.NDArray[Any]) -> None:
        from cuda.bindings import driver

        self._context.enter()
        if target.nbytes:
            _check(driver.cuMemcpyHtoDAsync(target.pointer, source.ctypes.data, target.nbytes, int(self.stream.handle)))
            self.stream.sync()  # the source may go away


@attrs.frozen
class _Replay:
    """A graph, with the work that it repeats, for that holds the arrays which the graph only points to."""

    on: CudaExecutor
    graph: Any
    work: tuple[Work, ...]

    def __call__(self) -> None:
        self.on._context.enter()
        self.graph.launch(self.on.stream)


@cache
def default_executor() -> CudaExecutor:
    """The first GPU, opened when it is first wanted. Raises `GpuUnavailable`."""
    return CudaExecutor()


def in_place(on: Executor, given: Any, name: str) -> Array:
    """`given`, which a kernel will write to. Raises `TypeError` for NumPy's, of which it would see a copy."""
    if isinstance(given, np.ndarray):
        raise TypeError(f"{name} is written to, and must lie where kernels can: on.array({name}) makes one that does")
    return on.array(given)


def returned(on: Executor, made: Array, like: Any) -> Any:
    """`made` as the caller gave his arrays: in NumPy, or where it is."""
    if not isinstance(like, np.ndarray):
        return made
    found = on.host(made)
    return found.view(like.dtype) if like.dtype.itemsize == found.dtype.itemsize and found.dtype.kind == "u" else found


def _passed(argument: Argument) -> Any:
    if isinstance(argument, Array):
        return argument.pointer
    if argument is None:
        return 0
    if isinstance(argument, np.generic):
        return argument
    return np.int32(argument) if isinstance(argument, int) else np.float32(argument)


def same_size(source: Array, target: Array) -> None:
    """Raises `ValueError` where one cannot be copied over the other."""
    if source.shape != target.shape or source.scalar != target.scalar:
        raise ValueError(f"{source.scalar} {source.shape} cannot be copied to {target.scalar} {target.shape}")


def _on_host(given: Any) -> bool:
    """Whether it says that it lies in memory of the host; such an array knows no streams."""
    place = getattr(given, "__dlpack_device__", None)
    return place is not None and int(place()[0]) == DLPACK_CPU


def _contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether strides, in items, are those of an array without gaps."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _check(answer: tuple[Any, ...]) -> None:
    if int(answer[0]) != 0:
        raise RuntimeError(f"the CUDA driver refused: {answer[0]!r}")
