"""All known families, and the patterns that find where their calls and their reasoning begin.

A new family is one file with a `Family` in it, and its line here.
"""

from __future__ import annotations

import re

from velollm.toolcalls.families import harmony, kimi, minimax, react, tags, tokens
from velollm.toolcalls.families.base import Family, Read

__all__ = ["FAMILIES", "Family", "Read", "family_of"]

FAMILIES: tuple[Family, ...] = (
    harmony.FAMILY,
    *kimi.FAMILIES,
    *minimax.FAMILIES,
    *tokens.FAMILIES,
    *tags.FAMILIES,
    *react.FAMILIES,
)
_FOLD = re.compile(r"[^a-z0-9]+")


def family_of(model_or_template: str | None) -> str | None:
    """The family of a model's name or of a chat template; None where neither tells.

    The longest match wins: `qwen3-coder:30b` is qwen3-coder, not qwen3.
    """
    if not model_or_template:
        return None
    if len(model_or_template) > 300 or "{%" in model_or_template or "<|" in model_or_template:
        return _by_cue(model_or_template)
    name = _FOLD.sub("", model_or_template.lower().rsplit("/", 1)[-1])
    known = {family.name for family in FAMILIES}
    if model_or_template in known:
        return model_or_template
    best: tuple[int, str] | None = None
    for family in FAMILIES:
        for part in family.models:
            if part in name and (best is None or len(part) > best[0]):
                best = (len(part), family.name)
    return best[1] if best else None


def _by_cue(template: str) -> str | None:
    scores = [
        (max((len(cue) for cue in family.cues if cue in template), default=0), family.name) for family in FAMILIES
    ]
    length, name = max(scores, key=lambda score: score[0])
    return name if length else None
