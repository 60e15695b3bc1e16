"""The tests would notice: every mutant of a kernel gives a wrong answer, or does what no kernel may do."""

from __future__ import annotations

import pytest
from emulator.executor import EmulationError
from emulator.sanitizers import run_case
from support.kernel_cases import CASES, right
from support.kernel_mutants import FAST, MUTANTS, RACES

from velollm.gpu.kernels import FAMILIES

ALL = [(stem, name) for stem, mutants in MUTANTS.items() for name in mutants]
SHOWN = [
    pytest.param(stem, name, marks=() if (stem, name) in FAST else pytest.mark.e2e)
    for stem, name in ALL
    if (stem, name) not in RACES
]


def test_every_kernel_has_a_case_and_mutants() -> None:
    assert set(CASES) == set(MUTANTS) == set(FAMILIES)
    assert set(ALL) >= FAST | RACES


@pytest.mark.parametrize(
    "stem", [pytest.param(stem, marks=() if stem == "paged_decode" else pytest.mark.e2e) for stem in CASES]
)
def test_unchanged_kernels_are_right(stem: str) -> None:
    assert right(stem, seeds=range(6))


@pytest.mark.parametrize(("stem", "name"), SHOWN)
def test_mutants_are_noticed(stem: str, name: str) -> None:
    try:
        sound = right(stem, (MUTANTS[stem][name],))
    except EmulationError:
        sound = False
    assert not sound


@pytest.mark.e2e
@pytest.mark.parametrize(("stem", "name"), sorted(RACES))
def test_races_are_noticed_by_the_sanitizer(stem: str, name: str) -> None:
    done = run_case("thread", stem, name)
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr
