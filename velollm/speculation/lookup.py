"""Drafts without a model: what followed the last tokens when they occurred before; replayed on answers that are known.

At temperature 0 a draft never changes an answer, so that one that was given tells exactly which drafts would have been
accepted. The rules are those of llama.cpp (common/ngram-map.cpp, ngram-mod.cpp and speculative.cpp, read at b11549).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import attrs

from velollm.speculation.theory import step_cost

__all__ = ["Lookup", "NgramMod", "NgramSimple", "Replay", "replay"]

AHEAD = 32  # ngram-mod takes new tokens in when so many are there
LOW, LOW_ROUNDS = 0.25, 5  # and forgets everything after so many drafts in a row of which less than that was right


@attrs.define(kw_only=True)
class Replay:
    """What became of the drafts: steps by how many tokens each verified, drafts, tokens drafted, tokens right."""

    steps: dict[int, int] = attrs.field(factory=dict)
    tokens: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that were right."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def speed_up(self, costs: Mapping[int, float] = {}, clients: int = 1) -> float:
        """How many times faster the same tokens come, where a step costs what `costs` say (see `theory.step_cost`).

        Of `clients` at once, the others take steps of average size meanwhile.
        """
        count = sum(self.steps.values())
        if not count:
            return 1.0
        mean = sum(size * times for size, times in self.steps.items()) / count
        plain = step_cost(costs, clients)
        spent = sum(times * step_cost(costs, size + (clients - 1) * mean) for size, times in self.steps.items())
        return self.tokens * plain / spent if spent else 1.0


class Lookup(Protocol):
    """Guesses what comes next."""

    def begin(self, prompt: Sequence[int]) -> None:
        """A new conversation begins."""
        ...

    def draft(self, tokens: Sequence[int]) -> Sequence[int]:
        """The guess behind `tokens`, the last of which was sampled just now; empty for none."""
        ...

    def judge(self, drafted: int, accepted: int) -> None:
        """What became of the last guess."""
        ...


class NgramSimple:
    """`ngram-simple`: the last `size` tokens are looked for in the conversation itself, latest first.

    At most `most` tokens behind them are the draft, and no fewer than `size`.
    """

    def __init__(self, size: int = 12, most: int = 48) -> None:
        self.size = size
        self.most = most
        self._latest: dict[tuple[int, ...], int] = {}
        self._known = 1  # position 0 is never looked at

    def begin(self, prompt: Sequence[int]) -> None:
        """Forget the last conversation."""
        self._latest = {}
        self._known = 1

    def draft(self, tokens: Sequence[int]) -> Sequence[int]:
        """What followed the latest earlier occurrence."""
        size, before = self.size, len(tokens) - 1  # the sampled token is not a part of the history yet
        if before <= size + self.most + 1:
            return ()
        for start in range(self._known, before - size):
            self._latest[tuple(tokens[start : start + size])] = start
        self._known = max(self._known, before - size)
        found = self._latest.get(tuple(tokens[len(tokens) - size :]))
        if found is None:
            return ()
        count = min(self.most, before - (found + size))
        return tokens[found + size : found + size + count] if count >= size else ()

    def judge(self, drafted: int, accepted: int) -> None:
        """Nothing is learnt from it."""


class NgramMod:
    """`ngram-mod`: which token followed each run of `size` tokens, remembered across conversations.

    A draft is followed as far as it is known, up to `most` tokens, and dropped when it is shorter than `least`.
    """

    def __init__(self, size: int = 24, least: int = 48, most: int = 64) -> None:
        self.size = size
        self.least = least
        self.most = most
        self._next: dict[tuple[int, ...], int] = {}
        self._taken = 0
        self._low = 0

    def begin(self, prompt: Sequence[int]) -> None:
        """Take in the prompt."""
        self._taken = 0
        if len(prompt) >= self.size:
            self._take(prompt, 0, len(prompt) - self.size)

    def draft(self, tokens: Sequence[int]) -> Sequence[int]:
        """Follow what is known."""
        before = len(tokens) - 1
        if before < self.size:
            return ()
        if self._taken + AHEAD < before:
            self._take(tokens, self._taken, before - self.size)
        run = list(tokens[len(tokens) - self.size :])
        found: list[int] = []
        while len(found) < self.most:
            token = self._next.get(tuple(run))
            if token is None:
                break
            found.append(token)
            run = [*run[1:], token]
        return found if len(found) >= self.least or len(found) == self.most else ()

    def judge(self, drafted: int, accepted: int) -> None:
        """Forget everything after a row of bad guesses."""
        self._low = self._low + 1 if accepted < LOW * drafted else 0
        if self._low >= LOW_ROUNDS:
            self._next, self._low, self._taken = {}, 0, 0

    def _take(self, tokens: Sequence[int], begin: int, end: int) -> None:
        for start in range(begin, end):
            self._next[tuple(tokens[start : start + self.size])] = tokens[start + self.size]
        self._taken = max(end, 0)


def replay(lookup: Lookup, conversations: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Replay:
    """What `lookup` would have done to `conversations`, each the token ids of a prompt and of its answer."""
    found = Replay()
    for prompt, answer in conversations:
        lookup.begin(prompt)
        tokens = [*prompt, *answer[:1]]  # the first token comes out of the prompt
        end = len(prompt) + len(answer)
        whole = [*prompt, *answer]
        while len(tokens) < end:
            guess = lookup.draft(tokens)[: end - len(tokens) - 1]
            right = 0
            while right < len(guess) and guess[right] == whole[len(tokens) + right]:
                right += 1
            if guess:
                lookup.judge(len(guess), right)
                found.drafts += 1
                found.drafted += len(guess)
                found.accepted += right
            size = len(guess) + 1
            found.steps[size] = found.steps.get(size, 0) + 1
            found.tokens += right + 1
            tokens = whole[: len(tokens) + right + 1]
    return found
