"""What every object of one answer shares: id, creation time, model; and the counts at its end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from velollm.messages import ChatRequest, ResponseMeta, Usage

__all__ = ["Identity", "Minter", "render_usage"]

JSON: TypeAlias = dict[str, Any]

FINGERPRINT = "fp_velollm"


@attrs.frozen
class Minter:
    """Source of time (Unix seconds) and of random names, so that tests can have fixed ones."""

    clock: Callable[[], float] = time.time
    token: Callable[[], str] = lambda: secrets.token_hex(12)

    def name(self, prefix: str) -> str:
        """A fresh id such as `call_3f…`."""
        return prefix + self.token()


@attrs.frozen
class Identity:
    """Identity of one answer; the engine's own where it gave one in this dialect."""

    id: str
    created: int
    model: str
    fingerprint: str

    @classmethod
    def of(cls, request: ChatRequest, meta: ResponseMeta | None, prefix: str, mint: Minter) -> Identity:
        """Take over what `meta` says, an id only when it begins with `prefix`, and make up the rest."""
        meta = meta or ResponseMeta()
        fingerprint = meta.extra.get("system_fingerprint")
        return cls(
            meta.id if meta.id.startswith(prefix) else mint.name(prefix),
            meta.created or int(mint.clock()),
            meta.model or request.model,
            fingerprint if isinstance(fingerprint, str) else FINGERPRINT,
        )

    def head(self, kind: str) -> JSON:
        """The leading fields of an object of this answer."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def render_usage(usage: Usage) -> JSON:
    """Token counts as OpenAI gives them; what the engine did not say counts as 0."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
    }
