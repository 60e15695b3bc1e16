"""What a draft is worth, and what lookups would have guessed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.speculation.lookup import NgramMod, NgramSimple, Replay, replay
from velollm.speculation.theory import acceptance_of, best_length, expected_tokens, speed_up, step_cost

SHARE = st.floats(0, 1)


@given(SHARE, st.integers(1, 20))
def test_expected_tokens_are_those_of_chance(acceptance: float, length: int) -> None:
    by_hand = 1 + sum(acceptance**place for place in range(1, length + 1))
    assert expected_tokens(acceptance, length) == pytest.approx(by_hand)


def test_the_papers_own_figures() -> None:
    """Table 1 of Leviathan et al.: speed-ups at a draft that costs nothing, and at c = 0.05."""
    assert speed_up(0.6, 2) == pytest.approx(1.96)
    assert speed_up(0.8, 5) == pytest.approx(3.69, abs=0.01)
    assert speed_up(0.9, 10) == pytest.approx(6.86, abs=0.01)
    assert speed_up(0.75, 7, draft=0.02) == pytest.approx(expected_tokens(0.75, 7) / 1.14)


@given(SHARE, st.integers(1, 20))
def test_acceptance_is_found_again(acceptance: float, length: int) -> None:
    accepted = expected_tokens(acceptance, length) - 1
    found = acceptance_of(1_000_000 * length, round(1_000_000 * accepted), length)
    assert expected_tokens(found, length) == pytest.approx(expected_tokens(acceptance, length), abs=1e-3)


@given(st.floats(0.3, 0.95), st.floats(0, 0.5))
def test_the_best_length_is_the_best(acceptance: float, draft: float) -> None:
    length, gain = best_length(acceptance, draft=draft, longest=12)
    assert all(gain >= speed_up(acceptance, other, draft=draft) - 1e-9 for other in range(1, 13))
    assert (length == 0) == (gain == 1.0)


def test_a_step_costs_what_was_measured() -> None:
    costs = {1: 1.0, 4: 1.3, 16: 3.7}
    assert step_cost(costs, 1) == 1.0
    assert step_cost(costs, 10) == pytest.approx(2.5)
    assert step_cost(costs, 28) == pytest.approx(6.1)
    assert step_cost({}, 99) == 1.0


def test_many_clients_leave_nothing_to_guess_with() -> None:
    costs = {1: 1.0, 8: 1.4, 64: 11.0}
    assert speed_up(0.8, 4, costs=costs) > 2
    assert speed_up(0.8, 4, costs=costs, clients=16) < 1
    assert best_length(0.8, costs=costs, clients=16)[1] < best_length(0.8, costs=costs)[1]


# ---- lookups ---------------------------------------------------------------------------------------------------------


def test_what_is_repeated_is_guessed() -> None:
    text = list(range(1, 41))
    found = replay(NgramSimple(4, 8), [(text, text)])
    assert found.tokens == len(text) - 1
    assert found.accepted == found.drafted > 20
    assert found.speed_up() > 3
    assert found.speed_up({1: 1.0, 9: 9.0}) < 1.1  # a step that costs as much as its tokens gains nothing


def test_what_is_new_is_not() -> None:
    found = replay(NgramSimple(4, 8), [(list(range(100)), list(range(100, 160)))])
    assert (found.drafts, found.speed_up()) == (0, 1.0)
    assert found.steps == {1: 59}


def test_a_wrong_guess_costs_its_step() -> None:
    prompt = [*range(1, 21), 99, *range(1, 5)]
    found = replay(NgramSimple(4, 4), [(prompt, [5, 6, 77, 78, 79])])
    assert found.drafts >= 1
    assert found.accepted < found.drafted
    assert found.acceptance < 1


def test_it_remembers_across_conversations() -> None:
    text = [7 * number % 101 for number in range(90)]
    fresh = [200 + number for number in range(20)]
    mod = NgramMod(8, 4, 16)
    first = replay(mod, [(fresh, text)])
    again = replay(mod, [(text[:12], text[12:])])
    assert first.accepted < again.accepted
    assert again.accepted == again.drafted
    assert replay(NgramSimple(8, 16), [(text[:12], text[12:])]).accepted == 0


def test_bad_guesses_in_a_row_are_forgotten() -> None:
    mod = NgramMod(2, 1, 4)
    mod.begin([1, 2, 3, 4, 5, 6, 7])
    assert list(mod.draft([9, 1, 2])) == [3, 4, 5, 6]
    for _ in range(5):
        mod.judge(4, 0)
    assert list(mod.draft([9, 1, 2])) == []


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 12))
def test_replays_account_for_every_token(seed: int, size: int, most: int) -> None:
    random = Random(seed)
    conversations = [
        ([random.randrange(4) for _ in range(random.randrange(1, 40))], [random.randrange(4) for _ in range(30)])
        for _ in range(3)
    ]
    for lookup in (NgramSimple(size, most), NgramMod(size, 1, most)):
        found = replay(lookup, conversations)
        assert found.tokens == 3 * 29
        assert found.tokens == sum(found.steps.values()) + found.accepted
        assert sum(times * (length - 1) for length, times in found.steps.items()) == found.drafted
        assert 0 <= found.accepted <= found.drafted


def test_nothing_was_answered() -> None:
    assert Replay().speed_up() == 1.0
    assert replay(NgramSimple(), [([1, 2], [])]).tokens == 0
