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
    from velollm.gpu.kv import copy_blocks, write_kv
    from velollm.gpu.layers import embed, gelu_mul, rms_norm, silu_mul
    from velollm.gpu.recording import Recorder
    from velollm.gpu.rope import RopeScaling, llama3_divisors, rotations
    from velollm.gpu.sampling import argmax, sample, verify_greedy

__all__ = [
    "Array",
    "Compiled",
    "Compiler",
    "CudaExecutor",
    "Executor",
    "GpuUnavailable",
    "Kernel",
    "KernelCompileError",
    "Recorder",
    "Resources",
    "RopeScaling",
    "argmax",
    "catalogue",
    "copy_blocks",
    "embed",
    "gelu_mul",
    "llama3_divisors",
    "look",
    "paged_attention",
    "rms_norm",
    "rotations",
    "sample",
    "silu_mul",
    "verify_greedy",
    "write_kv",
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
    "Recorder": "recording",
    "Resources": "compiler",
    "RopeScaling": "rope",
    "argmax": "sampling",
    "catalogue": "kernels",
    "copy_blocks": "kv",
    "embed": "layers",
    "gelu_mul": "layers",
    "llama3_divisors": "rope",
    "look": "device",
    "paged_attention": "attention",
    "rms_norm": "layers",
    "rotations": "rope",
    "sample": "sampling",
    "silu_mul": "layers",
    "verify_greedy": "sampling",
    "write_kv": "kv",
}


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOME[name]}"), name)
