"""Every kernel under the sanitizers of threads, addresses and undefined behaviour, and proof that they notice."""

from __future__ import annotations

import pytest
from emulator.sanitizers import run_case
from support.kernel_cases import CASES

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("sanitizer", ["thread", "address", "undefined"])
@pytest.mark.parametrize("stem", CASES)
def test_kernels_are_clean(stem: str, sanitizer: str) -> None:
    done = run_case(sanitizer, stem)
    assert done.returncode == 0, done.stderr[-4000:]


def test_what_lies_outside_of_an_array_is_noticed() -> None:
    done = run_case("address", "write_kv", "no slot is a slot")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
