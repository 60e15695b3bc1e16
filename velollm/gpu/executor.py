"""Where kernels run: what the library calls need of a place, and the place that is a GPU.

A call lays out its arrays, picks an instance from the catalogue and launches it; streams and drivers are behind this.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from velollm.gpu.arrays import Array, scalar_of, storage
from velollm.gpu.compiler import Compiler, default_cache
from velollm.gpu.device import open_device
from velollm.gpu.kernels import Kernel

__all__ = ["Argument", "CudaExecutor", "Executor", "Grid", "default_executor", "in_place", "returned"]

Grid: TypeAlias = tuple[int, int, int]
Argument: TypeAlias = Array | int | float | np.generic | None  # int is passed as int32, float as fp32, None as null
SHARED_WITHOUT_ASKING = 48 * 1024


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

    def launch(self, kernel: Kernel, *, grid: Grid, block: int, arguments: Sequence[Argument], shared: int = 0) -> None:
        """Start `kernel`; `shared` is its dynamic shared memory in bytes."""
        ...

    def multiply(self, x: Array, weight: Array) -> Array:
        """x [rows, inner] times the transpose of weight [columns, inner], accumulated in fp32."""
        ...


class CudaExecutor:
    """The GPU number `index`, with one stream. Raises `GpuUnavailable`."""

    def __init__(self, index: int = 0, *, kernels: Path | None = None) -> None:
        self.device = open_device(index)
        self.stream = self.device.create_stream()
        self.capability = self.device.compute_capability[0] * 10 + self.device.compute_capability[1]
        self.processors = self.device.properties.multiprocessor_count
        self._compiler = Compiler(kernels or default_cache())
        self._loaded: dict[tuple[str, int], Any] = {}

    def array(self, given: Any, scalar: str | None = None) -> Array:
        """See `Executor.array`."""
        if isinstance(given, Array):
            return given
        if isinstance(given, np.ndarray):
            scalar = scalar or scalar_of(given.dtype)
            target = self.empty(given.shape, scalar)
            self._upload(target, np.ascontiguousarray(given))
            return target
        from cuda.core.utils import StridedMemoryView

        try:
            view = StridedMemoryView.from_any_interface(given, stream_ptr=int(self.stream.handle))
        except BufferError as error:
            raise TypeError(f"{type(given).__name__} is no array that a kernel can read: {error}") from error
        if not view.is_device_accessible:
            return self.array(np.from_dlpack(given), scalar)
        if view.strides is not None and not _contiguous(view.shape, view.strides):
            raise ValueError(f"an array of shape {view.shape} has gaps: make it contiguous")
        return Array(
            pointer=view.ptr,
            shape=tuple(view.shape),
            scalar=scalar or scalar_of(view.dtype),
            owner=view,
            on_gpu=True,
        )

    def empty(self, shape: Sequence[int], scalar: str) -> Array:
        """See `Executor.empty`."""
        array = Array(pointer=0, shape=tuple(shape), scalar=scalar)
        buffer = self.device.allocate(max(array.nbytes, 1), stream=self.stream)
        return attrs.evolve(array, pointer=int(buffer.handle), owner=buffer, on_gpu=True)

    def pinned(self, shape: Sequence[int], scalar: str) -> Array:
        """See `Executor.pinned`."""
        from cuda.core import LegacyPinnedMemoryResource

        array = Array(pointer=0, shape=tuple(shape), scalar=scalar)
        buffer = LegacyPinnedMemoryResource().allocate(max(array.nbytes, 1))
        return attrs.evolve(array, pointer=int(buffer.handle), owner=buffer)

    def beside(self) -> CudaExecutor:
        """The same GPU with a stream of its own, to copy blocks while this one computes; see `wait_for`."""
        other = copy(self)
        other.stream = self.device.create_stream()
        return other

    def wait_for(self, other: CudaExecutor) -> None:
        """What is launched here from now on runs after what has been launched on `other`."""
        self.stream.wait(other.stream)

    def host(self, array: Array) -> npt.NDArray[Any]:
        """See `Executor.host`."""
        from cuda.bindings import driver

        target = np.empty(array.shape, storage(array.scalar))
        if array.nbytes:
            _check(driver.cuMemcpyDtoHAsync(target.ctypes.data, array.pointer, array.nbytes, int(self.stream.handle)))
        self.stream.sync()
        return target

    def launch(self, kernel: Kernel, *, grid: Grid, block: int, arguments: Sequence[Argument], shared: int = 0) -> None:
        """See `Executor.launch`."""
        from cuda.core import LaunchConfig, launch

        if 0 in grid:
            return
        config = LaunchConfig(grid=grid, block=block, shmem_size=shared)
        launch(self.stream, config, self._load(kernel, shared), *map(_passed, arguments))

    def multiply(self, x: Array, weight: Array) -> Array:
        """See `Executor.multiply`."""
        from velollm.gpu.matmul import multiply

        return multiply(self, x, weight)

    def _load(self, kernel: Kernel, shared: int) -> Any:
        """The kernel on the device, allowed as much shared memory as it needs."""
        from cuda.bindings import driver
        from cuda.core import ObjectCode

        found = self._loaded.get((kernel.name, shared))
        if found is None:
            compiled = self._compiler.compile(kernel, f"sm_{self.capability}")
            found = ObjectCode.from_cubin(compiled.cubin, name=kernel.name).get_kernel(kernel.name)
            if shared > SHARED_WITHOUT_ASKING:
                attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _check(driver.cuKernelSetAttribute(attribute, shared, found.handle, self.device.device_id))
            self._loaded[kernel.name, shared] = found
        return found

    def _upload(self, target: Array, source: npt.NDArray[Any]) -> None:
        from cuda.bindings import driver

        if target.nbytes:
            _check(driver.cuMemcpyHtoDAsync(target.pointer, source.ctypes.data, target.nbytes, int(self.stream.handle)))
            self.stream.sync()  # the source may go away


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
