"""What a draft is worth: Leviathan, Kalman & Matias, "Fast Inference from Transformers via Speculative Decoding", ICML
2023.

With `acceptance` the chance that a drafted token is accepted, and `length` tokens drafted each time, a step of the
model yields (1 - acceptance^(length + 1)) / (1 - acceptance) tokens on average (their equation 1). Their Theorem 3.8
divides that by `length * draft + 1`, since on the accelerators they had in mind a step costs the same however many
tokens it verifies. That holds neither on a CPU nor with many clients: here a step is charged with what a step of so
many tokens was measured to cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

__all__ = ["acceptance_of", "best_length", "expected_tokens", "speed_up", "step_cost"]

LONGEST = 64


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that one verifying step yields, from 1 to `length + 1`."""
    if acceptance >= 1.0:
        return float(length + 1)
    return (1 - acceptance ** (length + 1)) / (1 - acceptance)


def step_cost(costs: Mapping[int, float], tokens: float) -> float:
    """The cost of a step of `tokens` tokens against a step of one, linear between the sizes that were measured.

    Beyond the largest it grows as between the last two; without measurements every step costs the same.
    """
    known = sorted({1: 1.0, **costs}.items())
    if len(known) == 1:
        return 1.0
    for (low, one), (high, other) in pairwise(known):
        if tokens <= high:
            return one + (other - one) * (tokens - low) / (high - low)
    (low, one), (high, other) = known[-2:]
    return max(other, other + (other - one) * (tokens - high) / (high - low))


def speed_up(
    acceptance: float, length: int, *, draft: float = 0.0, costs: Mapping[int, float] = {}, clients: int = 1
) -> float:
    """How many times faster tokens come with drafts of `length`, each token of which costs `draft` steps of the model.

    With `clients` at once a step verifies the drafts of all of them: what was one step of so many tokens grows, and
    what was left of the machine for guessing is used up.
    """
    plain = step_cost(costs, clients)
    verify = step_cost(costs, clients * (length + 1))
    return expected_tokens(acceptance, length) / ((verify + length * draft * plain) / plain)


def best_length(
    acceptance: float, *, draft: float = 0.0, costs: Mapping[int, float] = {}, clients: int = 1, longest: int = LONGEST
) -> tuple[int, float]:
    """The length of drafts with the highest speed-up, and that; 0 and 1.0 when none is faster than no draft."""
    best = (0, 1.0)
    for length in range(1, longest + 1):
        gain = speed_up(acceptance, length, draft=draft, costs=costs, clients=clients)
        if gain > best[1]:
            best = (length, gain)
    return best


def acceptance_of(drafted: int, accepted: int, length: int) -> float:
    """The chance of a token from counts of whole drafts of `length`, of which the first wrong token ends each.

    Inverts the mean number accepted of a draft, (a - a^(length+1)) / (1 - a), by bisection.
    """
    if not drafted or length < 1:
        return 0.0
    wanted = min(accepted / drafted, 1.0) * length
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if expected_tokens(middle, length) - 1 < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2
