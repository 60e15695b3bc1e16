"""Compiles kernels with NVRTC, for any architecture and without a driver, and keeps what came of it on disk.

An entry of the cache is named by the hash of all that decides about it: the source, the macros, the architecture, the
options and the version of NVRTC. Beside the machine code lies what ptxas said about it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs
import orjson

from velollm.gpu.errors import GpuUnavailable, KernelCompileError
from velollm.gpu.kernels import Kernel
from velollm.gpu.source import read_source

__all__ = ["ARCHITECTURES", "Compiled", "Compiler", "Resources", "default_cache"]

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
STANDARD = "c++17"
OPTIONS = ("-v", "-warn-spills")
CACHE_VARIABLE = "VELOLLM_KERNEL_CACHE"
REPORT = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.DOTALL
)


@attrs.frozen(kw_only=True)
class Resources:
    """What one thread of a kernel takes, as ptxas reports it: 32-bit `registers`, and bytes of local memory."""

    registers: int
    stack_bytes: int
    spill_bytes: int


@attrs.frozen(kw_only=True)
class Compiled:
    """The machine code (`cubin`) of `kernel` for `architecture`."""

    kernel: Kernel
    architecture: str
    cubin: bytes = attrs.field(repr=False)
    resources: Resources
    cached: bool


def default_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of compiled kernels: that of the environment, else one in the user's cache."""
    given = environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    root = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "velollm" / "kernels"


class Compiler:
    """Compiles into `cache` (None: without one). Raises `GpuUnavailable` when NVRTC is not installed."""

    def __init__(self, cache: Path | None) -> None:
        try:
            from cuda.bindings import nvrtc
            from cuda.core import Program, ProgramOptions
        except ImportError as error:
            raise GpuUnavailable.missing_package(error) from error
        try:
            _, major, minor = nvrtc.nvrtcVersion()
        except RuntimeError as error:
            raise GpuUnavailable.missing_compiler(error) from error
        self.version = f"{major}.{minor}"
        self.architectures = tuple(nvrtc.nvrtcGetSupportedArchs()[1])  # 75, 80, ...
        self._program, self._options = Program, ProgramOptions
        self._cache = cache

    def compile(self, kernel: Kernel, architecture: str) -> Compiled:
        """The machine code of `kernel` for `architecture` (`sm_90`), from the cache where it is there.

        Raises `KernelCompileError` with what the compiler said.
        """
        if int(architecture.removeprefix("sm_").rstrip("af")) < kernel.minimum:
            raise KernelCompileError(f"{kernel.name} needs sm_{kernel.minimum} or later, not {architecture}")
        source = read_source(kernel.source)
        key = self._key(source, kernel, architecture)
        found = self._read(key)
        if found is not None:
            cubin, resources = found
            return Compiled(kernel=kernel, architecture=architecture, cubin=cubin, resources=resources, cached=True)
        options = self._options(
            name=kernel.source,
            std=STANDARD,
            arch=architecture,
            define_macro=list(kernel.macros),
            ptxas_options=list(OPTIONS),
        )
        said = io.StringIO()
        try:
            cubin = bytes(self._program(source, "c++", options).compile("cubin", logs=said).code)
        except Exception as error:  # whatever the bindings raise: NVRTCError has no public name
            raise KernelCompileError(f"{kernel.name} for {architecture}: {error}") from error
        resources = parse_report(said.getvalue())
        self._write(key, cubin, resources)
        return Compiled(kernel=kernel, architecture=architecture, cubin=cubin, resources=resources, cached=False)

    def architecture(self, capability: int) -> str:
        """What to compile for, so that it runs on a GPU of this compute capability (90 is 9.0).

        It is the same, or the nearest below it of its generation. Raises `KernelCompileError` where NVRTC knows none.
        """
        fit = [one for one in self.architectures if one // 10 == capability // 10 and one <= capability]
        if not fit:
            known = ", ".join(map(str, self.architectures))
            raise KernelCompileError(f"NVRTC {self.version} compiles for {known}, and not for {capability}")
        return f"sm_{max(fit)}"

    def _key(self, source: str, kernel: Kernel, architecture: str) -> str:
        parts = (source, repr(kernel.macros), architecture, STANDARD, repr(OPTIONS), self.version)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]

    def _read(self, key: str) -> tuple[bytes, Resources] | None:
        if self._cache is None:
            return None
        try:
            cubin = (self._cache / f"{key}.cubin").read_bytes()
            resources = Resources(**orjson.loads((self._cache / f"{key}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return cubin, resources

    def _write(self, key: str, cubin: bytes, resources: Resources) -> None:
        """Each file appears whole or not at all, the machine code last; a cache that cannot be written is none."""
        if self._cache is None:
            return
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            for ending, data in (("json", orjson.dumps(attrs.asdict(resources))), ("cubin", cubin)):
                with tempfile.NamedTemporaryFile(dir=self._cache, delete=False) as file:
                    file.write(data)
                os.replace(file.name, self._cache / f"{key}.{ending}")
        except OSError:
            self._cache = None


def parse_report(said: str) -> Resources:
    """What `ptxas -v` says about the one kernel of a program."""
    found = REPORT.search(said)
    if found is None:
        raise KernelCompileError(f"the compiler did not say what the kernel takes: {said[:500]!r}")
    stack, stores, loads, registers = map(int, found.groups())
    return Resources(registers=registers, stack_bytes=stack, spill_bytes=stores + loads)
