"""An array that kernels can read: where it lies, its shape, and what its numbers are."""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

__all__ = ["ITEM_SIZE", "Array", "rounded", "scalar_of", "storage", "widened"]

# By the names of the catalogue. NumPy has no bfloat16 and no 8-bit floats: their bits are kept as unsigned integers.
_STORAGE = {
    "fp32": "<f4",
    "fp16": "<f2",
    "bf16": "<u2",
    "fp8": "|u1",
    "int8": "|i1",
    "uint8": "|u1",
    "int32": "<i4",
    "int64": "<i8",
    "uint64": "<u8",
}
ITEM_SIZE = {name: int(typestr[2]) for name, typestr in _STORAGE.items()}
_SCALARS = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "int8": "int8",
    "uint8": "uint8",
    "int32": "int32",
    "int64": "int64",
    "uint64": "uint64",
}


def scalar_of(dtype: Any) -> str:
    """The catalogue's name of a NumPy dtype, ml_dtypes' among them. Raises `TypeError` for one that no kernel reads."""
    name = np.dtype(dtype).name
    if name not in _SCALARS:
        raise TypeError(f"no kernel reads {name}: {', '.join(_SCALARS)} are read")
    return _SCALARS[name]


def storage(scalar: str) -> npt.DTypeLike:
    """The NumPy dtype that holds numbers of type `scalar`."""
    return np.dtype(_STORAGE[scalar])


def rounded(x: npt.NDArray[Any], scalar: str) -> npt.NDArray[Any]:
    """`x` as kernels hold it in fp32, fp16 or bf16, to the nearest; bfloat16 as its bits."""
    if scalar != "bf16":
        return np.ascontiguousarray(x, storage(scalar))
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(x: npt.NDArray[Any], scalar: str) -> npt.NDArray[np.float32]:
    """The numbers that `x` in fp32, fp16 or bf16 stands for."""
    if scalar == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


@attrs.frozen(kw_only=True, eq=False)
class Array:
    """A contiguous array at `pointer`, the last dimension innermost, of numbers of type `scalar`.

    `owner` keeps the memory alive. Where that lies on a GPU (`on_gpu`), every library that knows
    `__cuda_array_interface__` can read it, after what was launched on `stream` (its address); bfloat16 and 8-bit floats
    are shown to them as the integers of their bits.
    """

    pointer: int
    shape: tuple[int, ...]
    scalar: str
    owner: Any = attrs.field(repr=False, default=None)
    on_gpu: bool = False
    stream: int | None = None

    @property
    def size(self) -> int:
        """How many numbers."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return self.size * ITEM_SIZE[self.scalar]

    def reshape(self, *shape: int) -> Array:
        """The same numbers in another shape; a first dimension of -1 is as large as need be."""
        if shape[0] == -1:
            shape = (self.size // max(1, prod(shape[1:])), *shape[1:])
        if prod(shape) != self.size:
            raise ValueError(f"{self.shape} cannot be seen as {shape}")
        return attrs.evolve(self, shape=shape)

    def view(self) -> npt.NDArray[Any]:
        """The numbers where they lie, to be read and written; raises `TypeError` where that is a GPU."""
        if self.on_gpu:
            raise TypeError("this array lies on a GPU: the executor's host() gives a copy")
        raw = (ctypes.c_uint8 * self.nbytes).from_address(self.pointer)
        return np.frombuffer(raw, storage(self.scalar)).reshape(self.shape)

    def __getitem__(self, place: int | slice) -> Array:
        """A part along the first dimension."""
        row = prod(self.shape[1:]) * ITEM_SIZE[self.scalar]
        if isinstance(place, int):
            start = range(self.shape[0])[place]
            return attrs.evolve(self, pointer=self.pointer + start * row, shape=self.shape[1:])
        start, stop, step = place.indices(self.shape[0])
        if step != 1:
            raise ValueError("an array of a kernel has no gaps")
        rows = max(0, stop - start)
        return attrs.evolve(self, pointer=self.pointer + start * row, shape=(rows, *self.shape[1:]))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if not self.on_gpu:
            raise AttributeError("this array does not lie on a GPU")
        return {
            "shape": self.shape,
            "typestr": _STORAGE[self.scalar],
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        }
