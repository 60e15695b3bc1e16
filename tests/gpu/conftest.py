"""EMULATED_GPU=1 pytest tests/gpu runs these tests over an emulated GPU: whether the tests are right, not the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

PATCHES = pytest.MonkeyPatch()

if os.environ.get("EMULATED_GPU"):
    from emulator.cuda import FakeCuda

    FakeCuda().install(PATCHES)  # before the tests are collected, which look for a GPU


@pytest.fixture(scope="session", autouse=True)
def _remove_what_was_put_in() -> Iterator[None]:
    yield
    PATCHES.undo()
