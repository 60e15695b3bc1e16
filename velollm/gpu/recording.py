"""Work that is noted instead of done, so that an executor can capture it and do it again and again.

    recorder = Recorder(on)
    logits = forward(inputs, on=recorder)       # nothing runs; `inputs` are arrays that stay
    again = on.capture(recorder.work)           # runs
    again()                                     # runs, with whatever `inputs` hold by now

What is computed on the way lies in memory of the recorder's arena. A piece of it is free again when nobody holds its
array any more: since work is done in the order in which it was noted, whoever takes it next comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy.typing as npt

from velollm.gpu.arrays import Array
from velollm.gpu.executor import Argument, Executor, Grid, Work
from velollm.gpu.kernels import Kernel
from velollm.gpu.matmul import product_shape

__all__ = ["Arena", "Recorder"]

GRAIN = 256  # bytes


class Arena:
    """Pieces of memory that `allocate` makes (`empty` or `pinned` of an executor), to be used again by size; they stay
    until the arena goes."""

    def __init__(self, allocate: Callable[[Sequence[int], str], Array]) -> None:
        self._allocate = allocate
        self._free: dict[int, list[Array]] = {}
        self._pieces: list[Array] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.nbytes for piece in self._pieces)

    def lend(self, shape: tuple[int, ...], scalar: str) -> Array:
        """An array in a free piece, or in a new one."""
        array = Array(pointer=0, shape=shape, scalar=scalar)
        size = -(-max(array.nbytes, 1) // GRAIN) * GRAIN
        free = self._free.setdefault(size, [])
        if not free:
            self._pieces.append(self._allocate((size,), "uint8"))
            free.append(self._pieces[-1])
        piece = free.pop()
        return attrs.evolve(piece, shape=shape, scalar=scalar, owner=_Loan(piece, free))


class _Loan:
    """Gives a piece back when the last array in it goes."""

    def __init__(self, piece: Array, free: list[Array]) -> None:
        self._piece, self._free = piece, free

    def __del__(self) -> None:
        self._free.append(self._piece)


@attrs.frozen(kw_only=True)
class _Launch:
    kernel: Kernel
    grid: Grid
    block: int
    arguments: tuple[Argument, ...]
    shared: int

    def __call__(self, on: Executor) -> None:
        on.launch(self.kernel, grid=self.grid, block=self.block, arguments=self.arguments, shared=self.shared)


@attrs.frozen(kw_only=True)
class _Product:
    x: Array
    weight: Array
    bias: Array | None
    out: Array

    def __call__(self, on: Executor) -> None:
        on.multiply(self.x, self.weight, bias=self.bias, out=self.out)


class Recorder:
    """Notes what would run on `on`, as `work`. Arrays are made in `arena`; those that are given keep living."""

    def __init__(self, on: Executor, arena: Arena | None = None) -> None:
        self.capability, self.processors = on.capability, on.processors
        self.work: list[Work] = []
        self.arena = arena or Arena(on.empty)
        self._on = on

    def array(self, given: Any, scalar: str | None = None) -> Array:
        """What `given` holds now, for good: the work sees no later change of a NumPy array."""
        return self._on.array(given, scalar)

    def empty(self, shape: Sequence[int], scalar: str) -> Array:
        """Memory of the arena."""
        return self.arena.lend(tuple(shape), scalar)

    def launch(self, kernel: Kernel, *, grid: Grid, block: int, arguments: Sequence[Argument], shared: int = 0) -> None:
        """Note the launch."""
        passed = tuple(self._noted(one) if isinstance(one, Array) else one for one in arguments)
        self.work.append(_Launch(kernel=kernel, grid=grid, block=block, arguments=passed, shared=shared))

    def multiply(self, x: Array, weight: Array, *, bias: Array | None = None, out: Array | None = None) -> Array:
        """Note the product."""
        out = self.empty(product_shape(x, weight, out, bias), x.scalar) if out is None else out
        self.work.append(_Product(x=self._noted(x), weight=self._noted(weight), bias=bias, out=self._noted(out)))
        return out

    def _noted(self, array: Array) -> Array:
        """The array as work holds it: its loan ends when whoever records lets go of it, for the arena stays."""
        return attrs.evolve(array, owner=self.arena) if isinstance(array.owner, _Loan) else array

    def pinned(self, shape: Sequence[int], scalar: str) -> Array:
        """See `Executor.pinned`."""
        return self._on.pinned(shape, scalar)

    def free_memory(self) -> int:
        """See `Executor.free_memory`."""
        return self._on.free_memory()

    def host(self, array: Array) -> npt.NDArray[Any]:
        """Nothing has run: there is nothing to see."""
        raise _unfit("gives back in NumPy")

    def finish(self) -> None:
        """Nothing has run: there is nothing to wait for."""
        raise _unfit("waits to be done")

    def copy(self, source: Array, target: Array) -> None:
        """What comes from the host is put in its place before the work is done."""
        raise _unfit("copies from the host")

    def capture(self, work: Sequence[Work]) -> Callable[[], None]:
        """Not within itself."""
        raise _unfit("captures")

    def beside(self) -> Executor:
        """Work is noted for one stream."""
        raise _unfit("uses another stream")

    def wait_for(self, other: Executor) -> None:
        """Work is noted for one stream."""
        raise _unfit("waits for another stream")


def _unfit(what: str) -> TypeError:
    return TypeError(f"work that is recorded {what}: give it arrays that lie where kernels can")
