"""Matrix products on a GPU by cuBLAS, through ctypes. Numbers of its enumerations: cublas_api.h and library_types.h."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

from velollm.gpu.arrays import Array
from velollm.gpu.errors import GpuUnavailable

if TYPE_CHECKING:
    from velollm.gpu.executor import CudaExecutor

__all__ = ["multiply"]

DATA_TYPES = {"fp32": 0, "fp16": 2, "bf16": 14}
NOT_TRANSPOSED, TRANSPOSED = 0, 1
COMPUTE_FP32, DEFAULT_ALGORITHM = 68, -1


def multiply(on: CudaExecutor, x: Array, weight: Array) -> Array:
    """x [rows, inner] times the transpose of weight [columns, inner], accumulated in fp32, on the stream of `on`.

    Raises `GpuUnavailable` where cuBLAS is not installed, `ValueError` for what cannot be multiplied.
    """
    if x.scalar != weight.scalar or x.scalar not in DATA_TYPES or x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"{x.scalar} {x.shape} cannot be multiplied with {weight.scalar} {weight.shape}")
    rows, inner = x.size // x.shape[-1], x.shape[-1]
    columns = weight.shape[0]
    out = on.empty((rows, columns), x.scalar)
    if 0 in (rows, columns):
        return out
    library, handle = _cublas(on.device.device_id)
    _check(library.cublasSetStream_v2(handle, ctypes.c_void_p(int(on.stream.handle))))
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    kind = DATA_TYPES[x.scalar]
    # cuBLAS counts columns first: out' [columns, rows] = weight [columns, inner] x' [inner, rows]
    _check(
        library.cublasGemmEx(
            handle, TRANSPOSED, NOT_TRANSPOSED, columns, rows, inner,
            ctypes.byref(one), ctypes.c_void_p(weight.pointer), kind, inner,
            ctypes.c_void_p(x.pointer), kind, inner,
            ctypes.byref(zero), ctypes.c_void_p(out.pointer), kind, columns,
            COMPUTE_FP32, DEFAULT_ALGORITHM,
        )
    )  # fmt: skip
    return out


@cache
def _cublas(device: int) -> tuple[Any, ctypes.c_void_p]:
    """The library, and a handle for the current context of `device`."""
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        library: Any = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except (DynamicLibNotFoundError, OSError) as error:
        raise GpuUnavailable(f"matrix products need cuBLAS: pip install nvidia-cublas ({error})") from error
    handle = ctypes.c_void_p()
    _check(library.cublasCreate_v2(ctypes.byref(handle)))
    return library, handle


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"cuBLAS refused with status {status}")
