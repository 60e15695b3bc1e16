"""How hard a request looks, by rules that can be read, and which model is large enough for it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import attrs

from velollm.messages import ChatRequest, ModelInfo
from velollm.scheduling.reading import prompt_size

__all__ = ["AUTO", "Tier", "Verdict", "choose", "judge"]

Tier: TypeAlias = Literal["small", "medium", "large"]

AUTO = "auto"  # the name of the model that is chosen for each request
MOST_CHARACTERS = 10_000  # at the beginning and at the end of the last question: so much is looked at
LONG, VERY_LONG = 500, 3000  # tokens
MANY_TURNS = 10
CODE = re.compile(
    r"```|\b(?:def|class|import|function|const|select|public|void|struct|fn|func)\s+\w|[;{}]\s*\n|\bTraceback\b"
)
CODE_WORDS = re.compile(
    r"\b(?:code|bug|debug|refactor|compile|regex|sql|algorithm|unit tests?|stack ?trace)\b", re.IGNORECASE
)
REASONING = re.compile(
    r"\b(?:step by step|prove|proof|derive|analy[sz]e|compare|evaluate|trade-?offs?|design|plan|optimi[sz]e|why does"
    r"|explain why|calculate|solve|root cause|strategy)\b",
    re.IGNORECASE,
)
PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)\s*([KMBT])\b", re.IGNORECASE)
FACTORS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@attrs.frozen
class Verdict:
    """How hard a request looks, and why."""

    tier: Tier
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.tier}; reason={', '.join(self.reasons) or 'short and plain'}"


def judge(request: ChatRequest) -> Verdict:
    """One point for each sign of difficulty (two for a very long prompt, or reasoning that is asked for): none makes a
    request small, one or two medium, three large.
    """
    signs: list[tuple[str, int]] = []
    tokens = prompt_size(request)
    if tokens >= LONG:
        signs.append((f"{tokens} tokens", 2 if tokens >= VERY_LONG else 1))
    if request.tools:
        signs.append((f"{len(request.tools)} tools", 1))
    if request.think and request.think not in ("none", "minimal", "low"):
        signs.append(("reasoning is asked for", 2))
    question = _question(request)
    if len(question) > 2 * MOST_CHARACTERS:
        question = f"{question[:MOST_CHARACTERS]}\n{question[-MOST_CHARACTERS:]}"
    if CODE.search(question) or CODE_WORDS.search(question):
        signs.append(("code", 1))
    found = REASONING.search(question)
    if found is not None:
        signs.append((f"{found[0].lower()!r}", 1))
    if len(request.messages) > MANY_TURNS:
        signs.append((f"{len(request.messages)} turns", 1))
    points = sum(weight for _, weight in signs)
    tier: Tier = "small" if points == 0 else "medium" if points < 3 else "large"
    return Verdict(tier, tuple(words for words, _ in signs))


def choose(tier: Tier, models: Sequence[ModelInfo]) -> str | None:
    """The smallest, the middle or the largest of the models that generate text; None when there is none."""
    able = [model for model in models if model.id != AUTO and "embedding" not in model.capabilities]
    ranked = sorted(able, key=lambda model: (_parameters(model), model.size, model.id))
    if not ranked:
        return None
    return ranked[{"small": 0, "medium": len(ranked) // 2, "large": len(ranked) - 1}[tier]].id


def _question(request: ChatRequest) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return next((message.text for message in reversed(request.messages) if message.role == "user"), "")


def _parameters(model: ModelInfo) -> float:
    """How many parameters it has: as the engine says, or as its name does."""
    for text in (model.parameter_size, model.id.replace("-", " ").replace(":", " ").replace("_", " ")):
        found = PARAMETERS.search(text)
        if found is not None:
            return float(found[1]) * FACTORS[found[2].upper()]
    return 0.0
