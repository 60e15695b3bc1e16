"""`velollm kernels check` finds sound kernels sound, and would find others out."""

from __future__ import annotations

import pytest
from emulator.executor import Emulator

from velollm.gpu import check as checking
from velollm.gpu.kernels import FAMILIES


@pytest.fixture
def on() -> Emulator:
    return Emulator(seed=1)


def some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "HEAD_DIMS", (64,))
    monkeypatch.setattr(checking, "SCALARS", ("fp16",))


def test_sound_kernels_are_sound(on: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    some(monkeypatch)
    found = list(checking.check(on))
    assert [one for one in found if not one.ok] == []
    assert len({one.name for one in found}) == len(found) >= 2


def test_broken_kernels_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    some(monkeypatch)
    on = Emulator(changes={"paged_decode": (("return behind >= 0 &&", "return behind >= 1 &&"),)})
    wrong = [one.name for one in checking.check(on) if not one.ok]
    assert wrong == ["paged_attention decode fp16 d64"]


@pytest.mark.e2e
def test_every_case(on: Emulator) -> None:
    """Sound in every type of number, and no kernel is left out."""
    on.processors = 60  # so that contexts are split
    assert [one for one in checking.check(on) if not one.ok] == []
    assert {stem for stem in FAMILIES if not any(name.startswith(stem) for name in on.launched)} == set()
