"""Shadow mode: whether two answers agree, what follows from the evidence, and how much time it may take."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from velollm.cache.evidence import Evidence
from velollm.cache.lexicon import COMMON

__all__ = ["AGREES", "ENOUGH", "Allowance", "RouteReport", "agreement", "answer_text", "answer_tokens", "report"]

AGREES: Final = 0.5
_TEXT = 4000
ENOUGH: Final = 50
_TRUSTED = 0.98
_DOUBTED = 0.9
_WORD = re.compile(r"\w+(?:[.,:/-]\w+)*")


@attrs.frozen(kw_only=True)
class RouteReport:
    """One route's evidence. `agreement` is the share of would-be hits whose answer agreed with the model's own;
    `recommended` is the setting that the evidence supports. `skipped` questions came too fast to be compared. `first`
    and `last` are when it was gathered, in seconds of the epoch."""

    route: str
    compared: int
    agreed: int
    misses: int
    tokens_saved: int
    seconds_saved: float
    skipped: int
    first: float
    last: float
    disagreements: tuple[tuple[str, str, float], ...]

    @property
    def agreement(self) -> float:
        return self.agreed / self.compared if self.compared else 0.0

    @property
    def recommended(self) -> str:
        if self.compared < ENOUGH:
            return "shadow"
        if self.agreement >= _TRUSTED:
            return "on"
        return "shadow" if self.agreement >= _DOUBTED else "off"


def report(evidence: Mapping[str, Evidence]) -> list[RouteReport]:
    """The evidence of every route, the busiest first."""
    reports = [
        RouteReport(
            route=route, compared=e.compared, agreed=e.agreed, misses=e.asked - e.compared, tokens_saved=e.tokens,
            seconds_saved=round(e.seconds, 3), skipped=e.skipped, first=e.first, last=e.last,
            disagreements=tuple((d.asked, d.stored, d.agreement) for d in e.disagreements),
        )
        for route, e in evidence.items()
    ]  # fmt: skip
    return sorted(reports, key=lambda r: -(r.compared + r.misses))


class Allowance:
    """CPU time that shadow mode may take: a share of one core in the long run, and some of it at once.

    A model that takes its time leaves far more than is needed; a flood of requests is compared in part."""

    def __init__(self, clock: Callable[[], float], *, share: float = 0.05, burst: float = 0.05) -> None:
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
