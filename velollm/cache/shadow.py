"""Shadow mode's books: what the semantic tier would have answered, against what the model did answer. Bounded by
route."""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from velollm.cache.lexicon import COMMON

__all__ = ["Allowance", "RouteReport", "ShadowBook", "agreement", "answer_text", "answer_tokens"]

_ROUTES = 256
_EXAMPLES = 20
_TEXT = 4000
_AGREES = 0.5
_ENOUGH = 50
_TRUSTED = 0.98
_WORD = re.compile(r"\w+(?:[.,:/-]\w+)*")


@attrs.frozen(kw_only=True)
class RouteReport:
    """One route's evidence. `agreement` is the share of would-be hits whose answer agreed with the model's own;
    `recommended` is the setting that the evidence supports."""

    route: str
    compared: int
    agreed: int
    misses: int
    tokens_saved: int
    seconds_saved: float
    disagreements: tuple[tuple[str, str, float], ...]

    @property
    def agreement(self) -> float:
        return self.agreed / self.compared if self.compared else 0.0

    @property
    def recommended(self) -> str:
        if self.compared < _ENOUGH:
            return "shadow"
        return "on" if self.agreement >= _TRUSTED else "off"


@attrs.define(kw_only=True)
class _Route:
    compared: int = 0
    agreed: int = 0
    misses: int = 0
    tokens: int = 0
    seconds: float = 0.0
    disagreements: deque[tuple[str, str, float]] = attrs.field(factory=lambda: deque(maxlen=_EXAMPLES))


class Allowance:
    """Time that shadow mode may take: a share of one core in the long run, and some of it at once.

    A model that takes its time leaves far more than is needed; a flood of requests is compared in part."""

    def __init__(self, clock: Callable[[], float], *, share: float = 0.05, burst: float = 2.0) -> None:
        self._clock, self._share, self._burst = clock, share, burst
        self._level, self._at = burst, clock()

    def left(self) -> bool:
        """Whether there is anything left to spend."""
        now = self._clock()
        self._level = min(self._burst, self._level + self._share * max(0.0, now - self._at))
        self._at = now
        return self._level > 0

    def spend(self, seconds: float) -> None:
        """It took so long."""
        self._level -= seconds


class ShadowBook:
    """Counts per route; the last disagreements are kept with both prompts, for a person to read."""

    def __init__(self) -> None:
        self._routes: OrderedDict[str, _Route] = OrderedDict()

    def compare(self, route: str, asked: str, stored: str, would: Any, answer: Any, seconds: float) -> bool:
        """Enter one would-be hit. Returns whether both answers agree."""
        book = self._route(route)
        score = agreement(answer_text(would), answer_text(answer))
        agrees = score >= _AGREES
        book.compared += 1
        if agrees:
            book.agreed += 1
            book.tokens += answer_tokens(answer)
            book.seconds += max(0.0, seconds)
        else:
            book.disagreements.append((asked[:200], stored[:200], round(score, 3)))
        return agrees

    def miss(self, route: str) -> None:
        """Enter a request that no tier would have answered."""
        self._route(route).misses += 1

    def report(self) -> list[RouteReport]:
        """The evidence of every route, the busiest first."""
        reports = [
            RouteReport(
                route=name, compared=r.compared, agreed=r.agreed, misses=r.misses, tokens_saved=r.tokens,
                seconds_saved=round(r.seconds, 3), disagreements=tuple(r.disagreements),
            )
            for name, r in self._routes.items()
        ]  # fmt: skip
        return sorted(reports, key=lambda r: -(r.compared + r.misses))

    def _route(self, name: str) -> _Route:
        route = self._routes.pop(name, None) or _Route()
        self._routes[name] = route
        while len(self._routes) > _ROUTES:
            self._routes.popitem(last=False)
        return route


def answer_text(answer: Any) -> str:
    """The text of an OpenAI chat answer, cut to a bounded length; empty where there is none."""
    if not isinstance(answer, Mapping):
        return ""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return ""
    message = choices[0].get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    return content[:_TEXT] if isinstance(content, str) else ""


def answer_tokens(answer: Any) -> int:
    """Completion tokens that the answer reports, else a quarter of its letters."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    reported = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return reported if isinstance(reported, int) else len(answer_text(answer)) // 4


def agreement(a: str, b: str) -> float:
    """How far two answers say the same, 0 to 1: the overlap of their content words, where the shorter one decides; a
    number in both of them must be shared, and a yes against a no is a disagreement."""
    left, right = _content(a), _content(b)
    if not left or not right:
        return 1.0 if a.strip() == b.strip() else 0.0
    if {_verdict(a), _verdict(b)} == {"yes", "no"}:
        return 0.0
    numbers_left, numbers_right = {w for w in left if w[0].isdigit()}, {w for w in right if w[0].isdigit()}
    if numbers_left and numbers_right and not numbers_left & numbers_right:
        return 0.0
    return len(left & right) / min(len(left), len(right))


def _content(text: str) -> set[str]:
    return {w for w in _WORD.findall(text[:_TEXT].lower()) if w not in COMMON}


def _verdict(text: str) -> str:
    return next(iter(_WORD.findall(text[:40].lower())), "")
