"""From logits to the next token. NumPy only; randomness comes from the seed.

    logits ─bias, penalties─▶ constraint ─▶ top-k ─▶ typical ─▶ top-p ─▶ min-p ─▶ temperature ─▶ draw

The order is llama.cpp's: what is cut off is decided at temperature 1.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import attrs
import numpy as np
import numpy.typing as npt

__all__ = ["Constraint", "Draw", "Logprob", "NothingAllowed", "Sampler", "SamplingParams"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
HOTTEST, MOST = 1e30, 2**31 - 1
NEAR_TOP = 1024  # so many candidates nearly always hold all the mass that top_p asks for


class NothingAllowed(Exception):
    """The constraint leaves no token."""


class Constraint(Protocol):
    """What a grammar allows next. `accept` must be told every token; `done` says that nothing may follow."""

    done: bool

    def restrict(self, logits: Floats) -> Floats:
        """The logits with -inf for what is not allowed, in place or anew."""
        ...

    def accept(self, token: int) -> None:
        """`token` was taken."""
        ...

    def copy(self) -> Constraint:
        """The same state, for a fork."""
        ...


@attrs.frozen(kw_only=True)
class SamplingParams:
    """How to choose. The defaults are llama.cpp's.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 are off. `repeat_penalty` looks at the
    last `repeat_last_n` tokens, prompt included (-1: at all); the presence and the frequency penalty look at what was
    generated. `logprobs` is how many alternatives are reported (None: not even the token's own).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = MappingProxyType({})
    seed: int | None = None
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """The likeliest token, and nothing that could change which one that is."""
        return self.temperature <= 0 and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        """Whether a token's history or name counts, beside its logit."""
        return bool(
            self.logit_bias or self.presence_penalty or self.frequency_penalty or self.repeat_penalty not in (0, 1)
        )


@attrs.frozen
class Logprob:
    """The log probability of a token before any penalty or cut, and the likeliest alternatives."""

    token: int
    value: float
    top: tuple[tuple[int, float], ...] = ()


@attrs.frozen(kw_only=True)
class Draw:
    """All that decides about one token beside its logits. With a `temperature` of 0 it is the likeliest, else the draw
    is that of `seed` (64 bits) at `position`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    position: int


class Sampler:
    """Chooses the tokens of one sequence."""

    def __init__(self, params: SamplingParams, constraint: Constraint | None = None) -> None:
        self.params = params
        self.constraint = constraint
        self._seed = (params.seed if params.seed is not None else secrets.randbits(64)) % 2**64
        self._random = np.random.Generator(np.random.PCG64(self._seed))

    def sample(self, logits: Floats, tokens: Sequence[int], num_prompt: int) -> int:
        """The token that follows `tokens`, the first `num_prompt` of which were the prompt.

        Raises `NothingAllowed`.
        """
        if self.params.changes_logits:
            logits = self._penalised(logits, tokens, num_prompt)
        if self.constraint is not None:
            logits = self.constraint.restrict(logits)
        token = int(logits.argmax())
        if self.constraint is not None and logits[token] == -np.inf:
            raise NothingAllowed
        if self.params.temperature > 0:
            token = self._draw(logits)
        if self.constraint is not None:
            self.constraint.accept(token)
        return token

    def draw(self, position: int) -> Draw | None:
        """How the token at `position` is drawn by whoever has the logits; None where that takes more to know, as
        constraints, what was said before, or probabilities to report."""
        params = self.params
        if self.constraint is not None or params.changes_logits or params.logprobs is not None:
            return None
        if params.temperature <= 0:
            return Draw(temperature=0, top_k=0, top_p=1, min_p=0, seed=0, position=position)
        if params.typical_p < 1:
            return None
        return Draw(  # within what 32 bits hold: beyond that nothing changes
            temperature=min(params.temperature, HOTTEST),
            top_k=max(0, min(params.top_k, MOST)),
            top_p=max(0.0, min(params.top_p, 1.0)),
            min_p=max(0.0, min(params.min_p, 1.0)),
            seed=self._seed,
            position=position,
        )

    def logprob(self, logits: Floats, token: int) -> Logprob:
        """What is to be reported of `token`."""
        top = logits.max()
        total = float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
        count = min(self.params.logprobs or 0, len(logits))
        best = _largest(logits, count)
        alternatives = tuple((int(one), float(logits[one]) - total) for one in best)
        return Logprob(token, float(logits[token]) - total, alternatives)

    def fork(self, number: int) -> Sampler:
        """A sampler for the choice `number` of the same request, with a randomness of its own."""
        seed = self.params.seed
        params = self.params if seed is None else attrs.evolve(self.params, seed=seed + number)
        return Sampler(params, self.constraint.copy() if self.constraint is not None else None)

    def _penalised(self, logits: Floats, tokens: Sequence[int], num_prompt: int) -> Floats:
        params = self.params
        logits = logits.copy()
        if params.repeat_penalty not in (0, 1):
            window = (
                tokens[-params.repeat_last_n :] if params.repeat_last_n > 0 else tokens if params.repeat_last_n else []
            )
            seen = np.unique(np.asarray(window, np.int64))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / params.repeat_penalty, values * params.repeat_penalty)
        if params.presence_penalty or params.frequency_penalty:
            for token, count in Counter(tokens[num_prompt:]).items():
                logits[token] -= params.presence_penalty + params.frequency_penalty * count
        for token, bias in params.logit_bias.items():
            if 0 <= token < len(logits):
                logits[token] += bias
        return logits

    def _draw(self, logits: Floats) -> int:
        params = self.params
        candidates, p = self._likeliest(logits)
        if params.typical_p < 1:
            candidates, p = _typical(candidates, p, params.typical_p)
        if params.top_p < 1:
            keep = max(1, int(np.searchsorted(np.cumsum(p), params.top_p * p.sum()) + 1))
            candidates, p = candidates[:keep], p[:keep]
        if params.min_p > 0:
            likely = p >= min(params.min_p, 1.0) * p[0]
            candidates, p = candidates[likely], p[likely]
        chosen = logits[candidates].astype(np.float64)
        weights = np.exp((chosen - chosen.max()) / params.temperature)
        cumulated = np.cumsum(weights)
        at = np.searchsorted(cumulated, self._random.random() * cumulated[-1], side="right")
        return int(candidates[min(int(at), len(candidates) - 1)])

    def _likeliest(self, logits: Floats) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Candidates with their probabilities, the likeliest first; all of them only where that is needed."""
        params = self.params
        size = len(logits)
        if 0 < params.top_k < size:
            best = _largest(logits, params.top_k)
            return best, _softmax(logits[best])
        p = _softmax(logits)
        if params.top_p < 1 and params.typical_p >= 1 and size > NEAR_TOP:
            best = _largest(logits, NEAR_TOP)
            if p[best].sum() >= params.top_p:
                return best, p[best]
        order = np.argsort(-logits, kind="stable")
        return order, p[order]


def _largest(logits: Floats, count: int) -> Ints:
    if count <= 0:
        return np.empty(0, np.int64)
    best = np.argpartition(logits, -count)[-count:]
    return best[np.argsort(-logits[best], kind="stable")]


def _softmax(logits: Floats) -> npt.NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(weights / weights.sum())


def _typical(candidates: Ints, p: npt.NDArray[np.float64], mass: float) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Those whose surprise is nearest to the expected one (arXiv:2202.00666), until they have `mass`."""
    p = p / p.sum()
    surprise = -np.log(np.maximum(p, 1e-300))
    order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
    keep = order[: int(np.searchsorted(np.cumsum(p[order]), mass)) + 1]
    keep = keep[np.argsort(-p[keep], kind="stable")]
    return candidates[keep], p[keep]
