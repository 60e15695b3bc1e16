"""What `ResponseCache.explain` returns: the verdict of every tier, and the guards that refused."""

from __future__ import annotations

from typing import Literal

import attrs

from velollm.cache.eligibility import Tier

__all__ = ["Explanation", "TierVerdict"]


@attrs.frozen(kw_only=True)
class TierVerdict:
    """One tier's word. `closed`: the tier is off or not open to the request. `refused` holds the nearest stored
    prompts, each with its similarity and the guard that refused it."""

    tier: Tier
    outcome: Literal["hit", "shadow", "miss", "closed"]
    reason: str = ""
    prompt: str = ""
    similarity: float = 0.0
    refused: tuple[tuple[str, float, str], ...] = ()


@attrs.frozen(kw_only=True)
class Explanation:
    """`tier` is the one that would answer. `canonical`, `intents` and `body` show how the prompt was read."""

    key: str
    reason: str
    tier: Tier | None
    verdicts: tuple[TierVerdict, ...]
    canonical: str = ""
    intents: tuple[str, ...] = ()
    body: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"answered by: {self.tier or 'the model'}" + (f"  ({self.reason})" if self.reason else "")]
        if self.canonical:
            lines.append(f"read as: {self.canonical}")
        for verdict in self.verdicts:
            detail = verdict.reason or (f"{verdict.prompt!r} at {verdict.similarity:.2f}" if verdict.prompt else "")
            lines.append(f"{verdict.tier:<9} {verdict.outcome}  {detail}".rstrip())
            lines += [f"          {near:.2f}  {prompt!r}  {why}" for prompt, near, why in verdict.refused]
        return "\n".join(lines)
