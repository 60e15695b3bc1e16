"""A cuBLASLt that computes with NumPy what its descriptors say, and refuses what the real one would refuse.

Its functions are C callbacks of the types that velollm.gpu.cublas_lt declares: arguments go through ctypes as they
would to the library. Every object has a number; one that is not there, or is freed twice, is an error, as is an
attribute of the wrong size, an algorithm that no heuristic gave for these descriptors, or too small a workspace.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from itertools import count
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from velollm.gpu.arrays import Array, rounded, widened
from velollm.gpu.cublas_lt import PROTOTYPES, Attribute, Compute, DataType, Epilogue, Operation, Preference

__all__ = ["FakeCublasLt"]

OK, INVALID, NOT_SUPPORTED = 0, 7, 15
WORKSPACE = 4096  # bytes that every algorithm here wants
SCALARS = {DataType.CUDA_R_32F: "fp32", DataType.CUDA_R_16F: "fp16", DataType.CUDA_R_16BF: "bf16"}
SIZES = {
    Attribute.CUBLASLT_MATMUL_DESC_TRANSA: 4,
    Attribute.CUBLASLT_MATMUL_DESC_TRANSB: 4,
    Attribute.CUBLASLT_MATMUL_DESC_EPILOGUE: 4,
    Attribute.CUBLASLT_MATMUL_DESC_BIAS_POINTER: 8,
}


class FakeCublasLt:
    """`calls` are the names of what was called; `alive` counts objects; `failing` maps names to statuses. A product is
    computed when `submit` runs it, for its stream: by default at once."""

    def __init__(self, submit: Callable[[int, Callable[[], None]], object] = lambda stream, task: task()) -> None:
        self._submit = submit
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        self._objects: dict[int, Any] = {}
        self._numbers = count(0x7F00_0000_1000, 16)  # more than 32 bits
        self._callbacks = {}
        for name, arguments in PROTOTYPES.items():
            self._callbacks[name] = c.CFUNCTYPE(c.c_int, *arguments)(self._noted(name))

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["_callbacks"][name]

    @property
    def alive(self) -> int:
        return len(self._objects)

    def cublasLtGetStatusName(self, status: int) -> bytes:
        return b"CUBLAS_STATUS_NOT_SUPPORTED" if status == NOT_SUPPORTED else b"CUBLAS_STATUS_INVALID_VALUE"

    def _noted(self, name: str) -> Any:
        function = getattr(self, "_" + name.removeprefix("cublasLt"))

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            try:
                return int(self.failing.get(name) or function(*arguments) or OK)
            except (KeyError, ValueError, AssertionError):
                return INVALID

        return call

    # ---- objects ----

    def _new(self, made: Any, value: Any) -> None:
        number = next(self._numbers)
        self._objects[number] = value
        made[0] = number

    def _Create(self, made: Any) -> None:
        self._new(made, "handle")

    def _Destroy(self, handle: int) -> None:
        assert self._objects.pop(handle) == "handle"

    def _MatmulDescCreate(self, made: Any, compute: int, scale: int) -> None:
        Compute(compute)
        assert DataType(scale) is DataType.CUDA_R_32F
        self._new(made, {})

    def _MatmulDescSetAttribute(self, operation: int, name: int, value: int, size: int) -> None:
        attribute = Attribute(name)
        assert size == SIZES[attribute]
        self._objects[operation][attribute] = int.from_bytes(c.string_at(value, size), "little")

    def _MatmulDescDestroy(self, operation: int) -> None:
        assert isinstance(self._objects.pop(operation), dict)

    def _MatrixLayoutCreate(self, made: Any, kind: int, rows: int, columns: int, leading: int) -> None:
        assert rows > 0
        assert columns > 0
        assert leading >= rows
        self._new(made, (SCALARS[DataType(kind)], rows, columns, leading))

    def _MatrixLayoutDestroy(self, layout: int) -> None:
        assert len(self._objects.pop(layout)) == 4

    def _MatmulPreferenceCreate(self, made: Any) -> None:
        self._new(made, {"workspace": 0})

    def _MatmulPreferenceSetAttribute(self, preference: int, name: int, value: int, size: int) -> None:
        attribute = Preference(name)
        assert size == (8 if attribute is Preference.CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES else 4)
        self._objects[preference][attribute] = int.from_bytes(c.string_at(value, size), "little")

    def _MatmulPreferenceDestroy(self, preference: int) -> None:
        assert "workspace" in self._objects.pop(preference)

    # ---- products ----

    def _MatmulAlgoGetHeuristic(
        self, handle: int, operation: int, a: int, b: int, c_: int, d: int, preference: int, wanted: int,
        found: Any, number: Any,
    ) -> int:  # fmt: skip
        assert self._objects[handle] == "handle"
        assert wanted >= 1
        allowed = self._objects[preference]
        number[0] = 0
        if allowed.get(Preference.CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 0) < WORKSPACE:
            return NOT_SUPPORTED
        number[0] = 1
        found[0].workspaceSize, found[0].state = WORKSPACE, OK
        for place, value in enumerate((operation, *(hash(self._objects[one]) & 0xFFFF_FFFF for one in (a, b, c_, d)))):
            found[0].algo.data[place] = value
        for place, letter in enumerate("ABD"):
            name = Preference[f"CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{letter}_BYTES"]
            found[0].algo.data[5 + place] = allowed.get(name, 256)
        return OK

    def _Matmul(
        self, handle: int, operation: int, alpha: int, a_pointer: int, a: int, b_pointer: int, b: int, beta: int,
        c_pointer: int, c_: int, d_pointer: int, d: int, algorithm: Any, workspace: int, size: int, stream: int,
    ) -> None:  # fmt: skip
        assert self._objects[handle] == "handle"
        says = dict(self._objects[operation])
        layouts = [self._objects[one] for one in (a, b, c_, d)]
        data = algorithm[0].data
        assert data[0] == operation, "an algorithm of another operation"
        assert list(data[1:5]) == [hash(one) & 0xFFFF_FFFF for one in layouts], "an algorithm of other layouts"
        pointers = (a_pointer, b_pointer, d_pointer)
        assert all(pointer and pointer % data[5 + place] == 0 for place, pointer in enumerate(pointers))
        assert workspace
        assert size >= WORKSPACE
        factors = [c.c_float.from_address(one).value for one in (alpha, beta)]
        assert factors[1] == 0 or c_pointer
        pairs = tuple(zip((a_pointer, b_pointer, c_pointer, d_pointer), layouts, strict=True))
        left, right = (_shape(says, *one) for one in (("A", layouts[0]), ("B", layouts[1])))
        assert left[1] == right[0]
        assert (left[0], right[1]) == layouts[3][1:3] == layouts[2][1:3]
        self._submit(stream or 0, lambda: _multiply(says, pairs, *factors))


Layout: TypeAlias = tuple[str, int, int, int]  # type of numbers, rows, columns, leading dimension


def _multiply(says: dict[Any, int], pairs: tuple[tuple[int, Layout], ...], alpha: float, beta: float) -> None:
    """D = alpha op(A) op(B) + beta C, and the epilogue."""
    left, right = (
        _matrix(*pair).T if _turned(says, letter) else _matrix(*pair) for letter, pair in zip("AB", pairs, strict=False)
    )
    product = alpha * (left @ right)
    if beta:
        product += beta * _matrix(*pairs[2])
    pointer, (scalar, rows, columns, leading) = pairs[3]
    if says.get(Attribute.CUBLASLT_MATMUL_DESC_EPILOGUE) == Epilogue.CUBLASLT_EPILOGUE_BIAS:
        bias = Array(pointer=says[Attribute.CUBLASLT_MATMUL_DESC_BIAS_POINTER], shape=(rows,), scalar=scalar)
        product += widened(bias.view(), scalar)[:, None]
    Array(pointer=pointer, shape=(columns, leading), scalar=scalar).view()[:, :rows] = rounded(product.T, scalar)


def _turned(says: dict[Any, int], letter: str) -> bool:
    return says.get(Attribute[f"CUBLASLT_MATMUL_DESC_TRANS{letter}"], 0) == Operation.CUBLAS_OP_T


def _shape(says: dict[Any, int], letter: str, layout: Layout) -> tuple[int, int]:
    return (layout[2], layout[1]) if _turned(says, letter) else (layout[1], layout[2])


def _matrix(pointer: int, layout: Layout) -> npt.NDArray[np.float32]:
    """[rows, columns] of a matrix whose columns lie one after another."""
    scalar, rows, columns, leading = layout
    stored = Array(pointer=pointer, shape=(columns, leading), scalar=scalar).view()
    return widened(stored[:, :rows], scalar).T
