"""What can go wrong before a kernel runs."""

from __future__ import annotations

from velollm.errors import ConfigError

__all__ = ["GpuUnavailable", "KernelCompileError"]

EXTRA = 'pip install "velollm[cuda]"'
PRODUCTS = 'pip install "velollm[cuda,cublas]"'


class GpuUnavailable(ConfigError):
    """CUDA kernels cannot run here; the message says what was found, what is missing, and what mends it."""

    code = "gpu_unavailable"

    @classmethod
    def missing_package(cls, error: ImportError) -> GpuUnavailable:
        """One of the Python packages is not there."""
        return cls(f"CUDA kernels need cuda-python, and {error.name or 'a part of it'} is not installed: {EXTRA}")

    @classmethod
    def missing_compiler(cls, error: Exception) -> GpuUnavailable:
        """cuda-python is there, but not the library that compiles."""
        return cls(f"cuda-python is installed, but its compiler NVRTC cannot be loaded ({error}): {EXTRA}")

    @classmethod
    def missing_products(cls, error: Exception) -> GpuUnavailable:
        """cuda-python is there, but not the library of matrix products."""
        return cls(f"matrix products need cuBLAS: {PRODUCTS} ({str(error).splitlines()[0]})")


class KernelCompileError(ConfigError):
    """A kernel could not be compiled."""

    code = "kernel_compile_error"
