"""Runs a case of support/kernel_cases.py in a process of its own, with the library of a sanitizer before Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulator.executor import compiler

__all__ = ["run_case"]

TESTS = Path(__file__).parent.parent
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so", "undefined": "libubsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",  # Python is no friend of leak detection
    "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "OPENBLAS_NUM_THREADS": "1",
}


def run_case(sanitizer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The case named by `arguments` under `sanitizer`; skips the test where that is not installed."""
    library = _library(sanitizer)
    command = [sys.executable, "-m", "support.kernel_cases", *arguments]
    if setarch := shutil.which("setarch"):  # ThreadSanitizer of gcc 12 knows only addresses that are not too random
        command = [setarch, "-R", *command]
    environment = {**os.environ, **OPTIONS, "EMULATOR_SANITIZER": sanitizer, "LD_PRELOAD": library}
    environment["PYTHONPATH"] = str(TESTS)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def _library(sanitizer: str) -> str:
    tool = compiler()
    assert tool is not None
    command = [tool, f"-print-file-name={LIBRARIES[sanitizer]}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip(f"{tool} has no {LIBRARIES[sanitizer]}")
    return str(Path(found).resolve())
