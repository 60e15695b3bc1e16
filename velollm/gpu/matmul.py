"""Matrix products on a GPU by cuBLASLt.

What decides about a product (number type, sizes, alignment, bias) is a key. For each key the library is asked once
which algorithm it would take within the workspace; the answer is kept with its descriptors. The workspace is allocated
once and never moves, so that products may be captured into graphs.
"""

from __future__ import annotations

import ctypes as c
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

from velollm.gpu.arrays import Array
from velollm.gpu.cublas_lt import (
    Algorithm,
    Attribute,
    Compute,
    DataType,
    Epilogue,
    Heuristic,
    Operation,
    Preference,
    load_library,
    named,
)

__all__ = ["WORKSPACE", "Products", "product_shape"]

DATA_TYPES = {"fp32": DataType.CUDA_R_32F, "fp16": DataType.CUDA_R_16F, "bf16": DataType.CUDA_R_16BF}
WORKSPACE = 32 * 1024 * 1024  # bytes: what NVIDIA advises for Hopper; more than older GPUs need
MOST_PLANS = 1024
ALIGNED = 256  # bytes: more makes no difference to the library


@attrs.frozen
class Key:
    """[rows, inner] times the transpose of [columns, inner]; `alignments` of weight, x and what comes out."""

    scalar: str
    rows: int
    columns: int
    inner: int
    bias: bool
    alignments: tuple[int, int, int]


@attrs.frozen
class Plan:
    """Descriptors and the algorithm of one key. A is the weight, B is x, D what comes out; C is D, and is not read."""

    operation: c.c_void_p
    layouts: tuple[c.c_void_p, c.c_void_p, c.c_void_p]
    algorithm: Algorithm


Allocate: TypeAlias = Callable[[Sequence[int], str], Array]


class Products:
    """Products on one stream of the current device. `library` stands in for the installed one.

    Raises `GpuUnavailable` where cuBLASLt is not installed.
    """

    def __init__(self, allocate: Allocate, library: Any = None) -> None:
        self._library = load_library() if library is None else library
        self._handle = self._made("cublasLtCreate")
        self._workspace = allocate((WORKSPACE,), "uint8")
        self._plans: OrderedDict[Key, Plan] = OrderedDict()
        self._one, self._zero = c.c_float(1), c.c_float(0)

    def multiply(self, x: Array, weight: Array, out: Array, bias: Array | None, stream: int) -> None:
        """Write x [rows, inner] times the transpose of weight [columns, inner], plus `bias` [columns], to `out`.

        All of one type, accumulated in fp32. `stream` is the address of a CUstream.
        """
        rows, columns = product_shape(x, weight, out, bias)
        if 0 in (rows, columns):
            return
        key = Key(
            x.scalar,
            rows,
            columns,
            x.shape[-1],
            bias is not None,
            (_alignment(weight), _alignment(x), _alignment(out)),
        )
        plan = self._plan(key, bias)
        if bias is not None:
            self._point_to(plan.operation, bias)
        a, b, d = plan.layouts
        self._call(
            "cublasLtMatmul",
            *(self._handle, plan.operation, c.addressof(self._one)),
            *(weight.pointer, a, x.pointer, b),
            *(c.addressof(self._zero), out.pointer, d, out.pointer, d),
            *(c.byref(plan.algorithm), self._workspace.pointer, WORKSPACE, stream),
        )

    def close(self) -> None:
        """Let go of all that the library holds. May be called again."""
        while self._plans:
            self._forget(self._plans.popitem()[1])
        if self._handle:
            self._call("cublasLtDestroy", self._handle)
            self._handle = c.c_void_p()

    def _plan(self, key: Key, bias: Array | None) -> Plan:
        plan = self._plans.get(key)
        if plan is not None:
            self._plans.move_to_end(key)
            return plan
        if len(self._plans) >= MOST_PLANS:
            self._forget(self._plans.popitem(last=False)[1])
        self._plans[key] = plan = self._planned(key, bias)
        return plan

    def _planned(self, key: Key, bias: Array | None) -> Plan:
        """The library counts columns first: out' [columns, rows] = weight [columns, inner] x' [inner, rows]."""
        operation = self._made("cublasLtMatmulDescCreate", Compute.CUBLAS_COMPUTE_32F, DataType.CUDA_R_32F)
        kind = DATA_TYPES[key.scalar]
        sizes = ((key.inner, key.columns), (key.inner, key.rows), (key.columns, key.rows))
        layouts = [self._made("cublasLtMatrixLayoutCreate", kind, *size, size[0]) for size in sizes]
        a, b, d = layouts
        self._set(operation, Attribute.CUBLASLT_MATMUL_DESC_TRANSA, c.c_int32(Operation.CUBLAS_OP_T))
        self._set(operation, Attribute.CUBLASLT_MATMUL_DESC_TRANSB, c.c_int32(Operation.CUBLAS_OP_N))
        if bias is not None:
            self._set(operation, Attribute.CUBLASLT_MATMUL_DESC_EPILOGUE, c.c_uint32(Epilogue.CUBLASLT_EPILOGUE_BIAS))
            self._point_to(operation, bias)
        found, count = Heuristic(), c.c_int(0)
        preference = self._preference(key)
        try:
            layouts_of_all = (a, b, d, d)
            self._call(
                "cublasLtMatmulAlgoGetHeuristic",
                *(self._handle, operation, *layouts_of_all, preference, 1, c.byref(found), c.byref(count)),
            )
        finally:
            self._call("cublasLtMatmulPreferenceDestroy", preference)
        if count.value < 1 or found.state != 0:
            raise RuntimeError(f"cuBLASLt knows no algorithm for {key}: {named(self._library, found.state)}")
        return Plan(operation, (a, b, d), found.algo)

    def _preference(self, key: Key) -> c.c_void_p:
        made = self._made("cublasLtMatmulPreferenceCreate")
        weight, x, out = key.alignments
        wanted: dict[Preference, Any] = {
            Preference.CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: c.c_uint64(WORKSPACE),
            Preference.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: c.c_uint32(weight),
            Preference.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: c.c_uint32(x),
            Preference.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: c.c_uint32(out),
            Preference.CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: c.c_uint32(out),
        }
        for name, value in wanted.items():
            self._call("cublasLtMatmulPreferenceSetAttribute", made, name, c.addressof(value), c.sizeof(value))
        return made

    def _forget(self, plan: Plan) -> None:
        self._call("cublasLtMatmulDescDestroy", plan.operation)
        for layout in plan.layouts:
            self._call("cublasLtMatrixLayoutDestroy", layout)

    def _point_to(self, operation: c.c_void_p, bias: Array) -> None:
        self._set(operation, Attribute.CUBLASLT_MATMUL_DESC_BIAS_POINTER, c.c_void_p(bias.pointer))

    def _set(self, operation: c.c_void_p, name: Attribute, value: Any) -> None:
        self._call("cublasLtMatmulDescSetAttribute", operation, name, c.addressof(value), c.sizeof(value))

    def _made(self, name: str, *arguments: Any) -> c.c_void_p:
        made = c.c_void_p()
        self._call(name, c.byref(made), *arguments)
        return made

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} answered {named(self._library, status)}")


def product_shape(x: Array, weight: Array, out: Array | None = None, bias: Array | None = None) -> tuple[int, int]:
    """Rows and columns of a product. Raises `ValueError` for what cannot be multiplied."""
    if (
        x.scalar != weight.scalar
        or x.scalar not in DATA_TYPES
        or len(weight.shape) != 2
        or x.shape[-1:] != weight.shape[1:]
    ):
        raise ValueError(f"{x.scalar} {x.shape} cannot be multiplied with {weight.scalar} {weight.shape}")
    inner = x.shape[-1]
    if inner == 0:
        raise ValueError(f"{x.shape} has no numbers to multiply")
    shape = (x.size // inner, weight.shape[0])
    if out is not None and (out.shape != shape or out.scalar != x.scalar):
        raise ValueError(f"{out.scalar} {out.shape} cannot take a product of {x.scalar} {shape}")
    if bias is not None and (bias.size != shape[1] or bias.scalar != x.scalar):
        raise ValueError(f"a bias of {bias.scalar} {bias.shape} for {x.scalar} {shape}")
    return shape


def _alignment(array: Array) -> int:
    """Bytes that the address is a multiple of, at most `ALIGNED`."""
    return min(array.pointer & -array.pointer, ALIGNED)
