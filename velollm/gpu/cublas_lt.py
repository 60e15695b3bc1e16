"""The part of cuBLASLt that is called here, through ctypes: names and numbers are those of cublasLt.h (13.0).

Every function has its argument types, so that a pointer is never cut to 32 bits and a wrong argument is refused.
"""

from __future__ import annotations

import ctypes as c
from enum import IntEnum
from functools import cache
from typing import Any

from velollm.gpu.errors import GpuUnavailable

__all__ = [
    "PROTOTYPES",
    "Algorithm",
    "Attribute",
    "Compute",
    "DataType",
    "Epilogue",
    "Heuristic",
    "Operation",
    "Preference",
    "declared",
    "load_library",
    "named",
]


class DataType(IntEnum):
    """cudaDataType_t"""

    CUDA_R_32F = 0
    CUDA_R_16F = 2
    CUDA_R_16BF = 14


class Compute(IntEnum):
    """cublasComputeType_t"""

    CUBLAS_COMPUTE_32F = 68


class Operation(IntEnum):
    """cublasOperation_t"""

    CUBLAS_OP_N = 0
    CUBLAS_OP_T = 1


class Epilogue(IntEnum):
    """cublasLtEpilogue_t"""

    CUBLASLT_EPILOGUE_DEFAULT = 1
    CUBLASLT_EPILOGUE_BIAS = 4


class Attribute(IntEnum):
    """cublasLtMatmulDescAttributes_t. The operations are int32, the epilogue is uint32, the pointer 64 bits."""

    CUBLASLT_MATMUL_DESC_TRANSA = 3
    CUBLASLT_MATMUL_DESC_TRANSB = 4
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8


class Preference(IntEnum):
    """cublasLtMatmulPreferenceAttributes_t. The first is uint64, alignments are uint32."""

    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8


class Algorithm(c.Structure):
    """cublasLtMatmulAlgo_t"""

    _fields_ = (("data", c.c_uint64 * 8),)


class Heuristic(c.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("algo", Algorithm),
        ("workspaceSize", c.c_size_t),
        ("state", c.c_int),
        ("wavesCount", c.c_float),
        ("reserved", c.c_int * 4),
    )


OPAQUE = c.c_void_p
MADE = c.POINTER(OPAQUE)
SETTER = (OPAQUE, c.c_int, c.c_void_p, c.c_size_t)
PROTOTYPES: dict[str, tuple[Any, ...]] = {  # all of them return a cublasStatus_t
    "cublasLtCreate": (MADE,),
    "cublasLtDestroy": (OPAQUE,),
    "cublasLtMatmulDescCreate": (MADE, c.c_int, c.c_int),
    "cublasLtMatmulDescSetAttribute": SETTER,
    "cublasLtMatmulDescDestroy": (OPAQUE,),
    "cublasLtMatrixLayoutCreate": (MADE, c.c_int, c.c_uint64, c.c_uint64, c.c_int64),
    "cublasLtMatrixLayoutDestroy": (OPAQUE,),
    "cublasLtMatmulPreferenceCreate": (MADE,),
    "cublasLtMatmulPreferenceSetAttribute": SETTER,
    "cublasLtMatmulPreferenceDestroy": (OPAQUE,),
    "cublasLtMatmulAlgoGetHeuristic": (
        *(OPAQUE, OPAQUE),  # handle, operation
        *(OPAQUE, OPAQUE, OPAQUE, OPAQUE),  # layouts of A, B, C, D
        *(OPAQUE, c.c_int, c.POINTER(Heuristic), c.POINTER(c.c_int)),  # preference, how many, found, how many found
    ),
    "cublasLtMatmul": (
        *(OPAQUE, OPAQUE, c.c_void_p),  # handle, operation, alpha
        *(c.c_void_p, OPAQUE, c.c_void_p, OPAQUE),  # A, B
        *(c.c_void_p, c.c_void_p, OPAQUE, c.c_void_p, OPAQUE),  # beta, C, D
        *(c.POINTER(Algorithm), c.c_void_p, c.c_size_t, c.c_void_p),  # algorithm, workspace, stream
    ),
}


def declared(library: Any) -> Any:
    """`library` with the types of what is called here."""
    for name, arguments in PROTOTYPES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c.c_int
    library.cublasLtGetStatusName.argtypes, library.cublasLtGetStatusName.restype = (c.c_int,), c.c_char_p
    return library


def named(library: Any, status: int) -> str:
    """What the library calls a status."""
    name: bytes = library.cublasLtGetStatusName(status)
    return f"{name.decode()} ({status})"


@cache
def load_library() -> Any:
    """The library of the wheel, or of the toolkit. Raises `GpuUnavailable` where there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError as error:
        raise GpuUnavailable.missing_package(error) from error
    try:
        return declared(c.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path))
    except (RuntimeError, OSError) as error:  # pathfinder's DynamicLibNotFoundError is a RuntimeError
        raise GpuUnavailable.missing_products(error) from error
