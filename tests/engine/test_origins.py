"""Who computed what: what was shared is found again, and nothing that only lies at the same place."""

from __future__ import annotations

from typing import Any

from velollm.engine.origins import Origins


def shared(origins: Origins, slots: list[int]) -> dict[int, tuple[list[int], list[Any]]]:
    return {slot: (own.nonzero()[0].tolist(), runs) for slot, own, runs in origins.shares(slots)}


def test_a_prefix_is_written_once() -> None:
    origins = Origins()
    origins.computed(0, 0, 8)
    for slot in (1, 2):
        origins.copied(0, slot, 0, 4)
        origins.computed(slot, 4, 6)
    origins.copied(1, 3, 0, 5)
    assert shared(origins, [3, 0, 1, 2]) == {
        3: ([0, 1, 2, 3, 4], []),
        0: ([4, 5, 6, 7], [(3, 0, 4)]),
        1: ([5], [(3, 0, 5)]),
        2: ([4, 5], [(3, 0, 4)]),
    }


def test_what_is_computed_anew_is_something_else() -> None:
    origins = Origins()
    origins.computed(0, 0, 4)
    origins.copied(0, 1, 0, 4)
    origins.dropped(0, 2, -1)
    origins.computed(0, 2, 4)
    assert shared(origins, [0, 1]) == {0: ([0, 1, 2, 3], []), 1: ([2, 3], [(0, 0, 2)])}
    assert origins.positions(1).tolist() == [0, 1, 2, 3]
    origins.dropped(0)
    origins.computed(0, 0, 2)
    assert shared(origins, [0, 1]) == {0: ([0, 1], []), 1: ([0, 1, 2, 3], [])}


def test_holes() -> None:
    origins = Origins()
    origins.computed(0, 0, 9)
    origins.dropped(0, 3, 6)
    origins.copied(0, 1, 0, 9)
    origins.copied(5, 1, 20, 30)
    assert origins.positions(1).tolist() == [0, 1, 2, 6, 7, 8]
    assert shared(origins, [0, 1])[1] == ([], [(0, 0, 3), (0, 6, 9)])
    origins.dropped(1)
    origins.dropped(7)
    assert origins.slots() == [0]
    assert shared(origins, []) == {}
