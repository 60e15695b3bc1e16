"""CUDA kernels of our own, compiled at run time: paged attention and all that a llama model needs around it.

    on = CudaExecutor()                                  # or leave it out: the first GPU
    out = paged_attention(q, keys, values, tables, lengths, on=on)

Arrays are NumPy's, or anything with `__cuda_array_interface__` or DLPack; PyTorch is not needed. Without a driver,
everything that runs raises `GpuUnavailable`, which says what is missing; compiling works on any machine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velollm.gpu.arrays import Array
    from velollm.gpu.attention import paged_attention
    from velollm.gpu.compiler import Compiled, Compiler, Resources
    from velollm.gpu.device import look
    from velollm.gpu.errors import GpuUnavailable, KernelCompileError
    from velollm.gpu.executor import CudaExecutor, Executor
    from velollm.gpu.kernels import Kernel, catalogue

__all__ = [
    "Array",
    "Compiled",
    "Compiler",
    "CudaExecutor",
    "Executor",
    "GpuUnavailable",
    "Kernel",
    "KernelCompileError",
    "Resources",
    "catalogue",
    "look",
    "paged_attention",
]

HOME = {
    "Array": "arrays",
    "Compiled": "compiler",
    "Compiler": "compiler",
    "CudaExecutor": "executor",
    "Executor": "executor",
    "GpuUnavailable": "errors",
    "Kernel": "kernels",
    "KernelCompileError": "errors",
    "Resources": "compiler",
    "catalogue": "kernels",
    "look": "device",
    "paged_attention": "attention",
}


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOME[name]}"), name)
