"""The kernels run on the processor, in every schedule; without a C++ compiler there is nothing that could run them."""

from __future__ import annotations

import pytest
from emulator.executor import Emulator, compiler


@pytest.fixture(scope="session", autouse=True)
def _needs_a_compiler() -> None:
    if compiler() is None:
        pytest.skip("there is no C++ compiler (g++) to emulate kernels with")


@pytest.fixture(params=["in order", "depth first", "by chance"])
def on(request: pytest.FixtureRequest) -> Emulator:
    """An emulator for each schedule; asynchronous copies land at once in one of them."""
    number = ["in order", "depth first", "by chance"].index(request.param)
    return Emulator(seed=number + 3, eager=number == 1)
