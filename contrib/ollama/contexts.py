"""Which `num_ctx` to send, so that clients who differ in it do not have the model loaded anew at every turn. No I/O.

What is asked for is rounded up to a power of two, and what is loaded is kept where it is large enough. A client that
asks for none gets what others have asked for, once it is known that Ollama's own default is no more than that.
"""

from __future__ import annotations

import attrs

__all__ = ["Contexts"]

HELD_SECONDS = 600.0
MOST_MODELS = 256


@attrs.define
class _Held:
    """What is known of one model: the context that somebody needed, until when it is held, and Ollama's default."""

    tokens: int = 0
    until: float = 0.0
    default: int | None = None
    sent_none: bool = False


class Contexts:
    """The contexts of all models of one Ollama. Times are in seconds of any one clock."""

    def __init__(self) -> None:
        self._models: dict[str, _Held] = {}

    def asked(self, model: str, tokens: int, now: float, *, loaded: int | None, limit: int | None) -> int:
        """The context for a request that wants `tokens`.

        `loaded` is the context that the model has now, `limit` what it was trained for; None where that is unknown.
        """
        held = self._held(model)
        if loaded is not None and held.sent_none:
            held.default = loaded
        held.sent_none = False
        wanted = _rounded(tokens, limit)
        if held.until < now:
            held.tokens = 0
        if wanted >= held.tokens:
            held.tokens, held.until = wanted, now + HELD_SECONDS
        return max(held.tokens, loaded or 0)

    def unasked(self, model: str, now: float) -> int | None:
        """The context for a request that says nothing; None leaves it to Ollama."""
        held = self._held(model)
        if held.default is not None and held.default <= held.tokens and held.until >= now:
            return held.tokens
        held.sent_none = True
        return None

    def _held(self, model: str) -> _Held:
        found = self._models.get(model)
        if found is None:
            if len(self._models) >= MOST_MODELS:
                del self._models[next(iter(self._models))]
            found = self._models[model] = _Held()
        return found


def _rounded(tokens: int, limit: int | None) -> int:
    """Ollama cuts what exceeds the model's own context down to it, but loads the model anew for each other number."""
    rounded = 1 << (tokens - 1).bit_length()
    return rounded if limit is None else min(rounded, limit)
