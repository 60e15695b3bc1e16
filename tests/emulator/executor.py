"""Runs the kernels of velollm.gpu on the processor: an `Executor` around emulator.h, which a C++ compiler builds.

Every array lies between guards of 0xff, memory that nobody wrote to is 0xff as well (NaN in every floating type), and
after each launch the guards of all living arrays are looked at. Built libraries are kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from emulator.cublas_lt import FakeCublasLt

from velollm.gpu.arrays import Array, scalar_of, storage
from velollm.gpu.executor import Executor, Work, same_size
from velollm.gpu.kernels import Kernel
from velollm.gpu.matmul import Products, product_shape
from velollm.gpu.source import read_source

__all__ = ["EmulationError", "Emulator", "build", "compiler"]

HERE = Path(__file__).parent
GUARD = 64 * 1024
HEADERS = ("emulator.h", "primitives.h")
SANITIZERS = {
    "": ("-O1",),
    "address": ("-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"),
    "thread": ("-O1", "-g", "-fsanitize=thread"),
    "undefined": ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
}
FLAGS = (
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-ffp-contract=off",
    "-w",
    "-x",
    "c++",
)
ENTRY = """
EMULATE({name})
extern "C" __attribute__((visibility("default"))) int emulate(
    const unsigned* grid, unsigned block, size_t shared, unsigned long long seed, int eager, void** arguments,
    const size_t* sizes, int count, char* message, size_t size) {{
  const char* wrong = entry_{name}.check(sizes, count);
  if (wrong) {{ snprintf(message, size, "%s", wrong); return 1; }}
  emulator::Launch launch;
  launch.grid = {{grid[0], grid[1], grid[2]}};
  launch.block = {{block, 1, 1}};
  launch.shared_size = shared;
  launch.seed = seed;
  launch.eager = eager;
  launch.body = [](void* data) {{ entry_{name}.call((void**)data); }};
  launch.body_data = arguments;
  return emulator::launch(launch, message, size);
}}
"""


class EmulationError(Exception):
    """What no kernel may do: the message says which block and thread did it."""


@cache
def compiler() -> str | None:
    """The C++ compiler that there is."""
    return shutil.which(os.environ.get("CXX", "g++"))


@cache
def build(kernel: Kernel, sanitizer: str = "", changes: tuple[tuple[str, str], ...] = ()) -> ctypes.CDLL:
    """The library that emulates `kernel`. Each of `changes` replaces one place of its source: (old, new)."""
    text = read_source(kernel.source)
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"{kernel.source} has {text.count(old)} places like {old!r}")
        text = text.replace(old, new)
    text += ENTRY.format(name=kernel.name)
    tool = compiler()
    if tool is None:
        raise EmulationError("there is no C++ compiler")
    flags = (
        *SANITIZERS[sanitizer],
        *FLAGS,
        '-DEMULATED="primitives.h"',
        *(f"-D{key}={value}" for key, value in kernel.macros),
    )
    headers = "".join((HERE / name).read_text() for name in HEADERS)
    key = hashlib.sha256("\0".join((text, headers, *flags, _version(tool))).encode()).hexdigest()[:40]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "velollm" / "emulated"
    library = folder / f"{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "made.so"
            command = [tool, *flags, f"-I{HERE}", "-o", str(made), "-"]
            # the sanitizer's own library is loaded into the process before Python, and must not be loaded here
            done = subprocess.run(
                command, input=text, text=True, capture_output=True, check=False, env={**os.environ, "LD_PRELOAD": ""}
            )
            if done.returncode:
                raise EmulationError(f"{kernel.name} does not compile: {done.stderr[:3000]}")
            os.replace(made, library)
    return ctypes.CDLL(str(library))


@cache
def _version(tool: str) -> str:
    return subprocess.run(
        [tool, "--version"], capture_output=True, text=True, check=True, env={**os.environ, "LD_PRELOAD": ""}
    ).stdout


class Emulator:
    """An executor that is no GPU.

    `seed` decides the schedule: by its rest of three in order, depth first or by chance. With `eager`, asynchronous
    copies land at once, else as late as they may. `changes` are made to the sources of the kernels that they fit,
    by stem.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        eager: bool = False,
        capability: int = 80,
        sanitizer: str | None = None,
        changes: Mapping[str, tuple[tuple[str, str], ...]] = {},
    ) -> None:
        self.seed = seed
        self.eager = eager
        self.capability = capability
        self.processors = 2
        self.free = 300 << 20
        self.launched: list[str] = []
        self._sanitizer = os.environ.get("EMULATOR_SANITIZER", "") if sanitizer is None else sanitizer
        self._changes = changes
        self._late: list[Callable[[], None]] | None = None
        self._products: Products | None = None
        self._alive: weakref.WeakSet[_Memory] = weakref.WeakSet()

    def array(self, given: Any, scalar: str | None = None) -> Array:
        """See `velollm.gpu.executor.Executor.array`."""
        if isinstance(given, Array):
            return given
        source = np.ascontiguousarray(given)
        made = self.empty(np.shape(given), scalar or scalar_of(source.dtype))
        made.view()[...] = source.view(storage(made.scalar))
        return made

    def empty(self, shape: Sequence[int], scalar: str) -> Array:
        """See `velollm.gpu.executor.Executor.empty`."""
        shape = tuple(int(size) for size in shape)
        memory = _Memory(
            Array(pointer=0, shape=shape, scalar=scalar).nbytes, guard=0 if self._sanitizer == "address" else GUARD
        )
        self._alive.add(memory)
        return Array(pointer=memory.pointer, shape=shape, scalar=scalar, owner=memory)

    def pinned(self, shape: Sequence[int], scalar: str) -> Array:
        """See `velollm.gpu.executor.Executor.pinned`."""
        return self.empty(shape, scalar)

    def host(self, array: Array) -> npt.NDArray[Any]:
        """See `velollm.gpu.executor.Executor.host`."""
        self.finish()
        return array.view().copy()

    def launch(
        self, kernel: Kernel, *, grid: tuple[int, int, int], block: int, arguments: Sequence[Any], shared: int = 0
    ) -> None:
        """See `velollm.gpu.executor.Executor.launch`. Raises `EmulationError`."""
        if 0 in grid:
            return
        if self._late is not None:
            self._late.append(lambda: self._run(kernel, grid, block, arguments, shared))
        else:
            self._run(kernel, grid, block, arguments, shared)

    def _run(
        self, kernel: Kernel, grid: tuple[int, int, int], block: int, arguments: Sequence[Any], shared: int
    ) -> None:
        assert kernel.minimum <= self.capability, f"{kernel.name} on sm_{self.capability}"
        assert block <= 1024
        assert shared <= 99 * 1024, "more shared memory than an sm_86 has"
        assert max(grid[1:]) < 65536, "no GPU takes such a grid"
        self.launched.append(kernel.name)
        values = [_value(argument) for argument in arguments]
        slots = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = (ctypes.c_size_t * len(values))(*(value.nbytes for value in values))
        message = ctypes.create_string_buffer(1024)
        failed = build(kernel, self._sanitizer, self._changes.get(kernel.stem, ())).emulate(
            (ctypes.c_uint * 3)(*grid), block, ctypes.c_size_t(shared), ctypes.c_ulonglong(self.seed), int(self.eager),
            slots, sizes, len(values), message, ctypes.c_size_t(len(message)),
        )  # fmt: skip
        if failed:
            raise EmulationError(f"{kernel.name}: {message.value.decode()}")
        for memory in self._alive:
            memory.check(kernel.name)

    def multiply(self, x: Array, weight: Array, *, bias: Array | None = None, out: Array | None = None) -> Array:
        """See `velollm.gpu.executor.Executor.multiply`: the library's calls are made, and NumPy stands for it."""
        if self._products is None:
            self._products = Products(self.empty, FakeCublasLt())
        out = self.empty(product_shape(x, weight), x.scalar) if out is None else out
        self._products.multiply(x, weight, out, bias, stream=0)
        return out

    def copy(self, source: Array, target: Array) -> None:
        """See `velollm.gpu.executor.Executor.copy`."""
        same_size(source, target)
        target.view()[...] = source.view()

    def capture(self, work: Sequence[Work]) -> Callable[[], None]:
        """See `velollm.gpu.executor.Executor.capture`; what is captured may not allocate."""
        noted = tuple(work)
        for one in noted:
            one(self)

        def replay() -> None:
            before = len(self._alive)
            for one in noted:
                one(self)
            assert len(self._alive) == before, "captured work allocated memory"

        return replay

    def beside(self) -> Emulator:
        """See `velollm.gpu.executor.Executor.beside`: what is launched there runs as late as it may."""
        other = copy(self)
        other._late, other._products = [], None
        return other

    def wait_for(self, other: Executor) -> None:
        """See `velollm.gpu.executor.Executor.wait_for`."""
        assert isinstance(other, Emulator)
        other.finish()

    def finish(self) -> None:
        """Run what was put off."""
        late, self._late = self._late, None
        for run in late or ():
            run()
        self._late = None if late is None else []

    def free_memory(self) -> int:
        """See `velollm.gpu.executor.Executor.free_memory`."""
        return self.free


class _Memory:
    """Bytes between two guards."""

    def __init__(self, size: int, guard: int) -> None:
        self.size = size
        self.guard = guard
        self._raw = np.full(max(1, size) + 2 * guard + 256, 0xFF, np.uint8)
        start = -(self._raw.ctypes.data + guard) % 256 + guard
        if not guard:  # AddressSanitizer watches the end of what was allocated: there must be nothing behind it
            self._raw = np.full(max(1, size), 0xFF, np.uint8)
            start = 0
        self._start = start
        self.pointer = self._raw.ctypes.data + start

    def check(self, kernel: str) -> None:
        before = self._raw[self._start - self.guard : self._start]
        after = self._raw[self._start + self.size : self._start + self.size + self.guard]
        if not ((before == 0xFF).all() and (after == 0xFF).all()):
            raise EmulationError(f"{kernel} wrote outside of an array")


def _value(argument: Any) -> npt.NDArray[Any]:
    if isinstance(argument, Array):
        return np.array(argument.pointer, np.uint64)
    if argument is None:
        return np.array(0, np.uint64)
    if isinstance(argument, np.generic):
        return np.array(argument)
    return np.array(argument, np.int32 if isinstance(argument, int) else np.float32)
