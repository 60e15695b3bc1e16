"""What Ollama means by the one string that its errors are. No I/O."""

from __future__ import annotations

import re
from typing import Any

from velollm.errors import (
    BackendRefused,
    ContextLengthExceeded,
    ModelNotFound,
    Overloaded,
    UnsupportedError,
    VeloError,
)

__all__ = ["failure"]

LONGEST = 2000
RETRY_SECONDS = 2.0
TOO_LONG = (
    "exceeds maximum context length", "exceed_context_size", "context size", "exceeds the context length",
    "input length exceeds", "exceeds the available context",
)  # fmt: skip
BUSY = ("server busy", "maximum pending requests", "llm server loading model")
NOT_SUPPORTED = re.compile(r"does not support|not supported for this model|doesn't support|is not multimodal")
MISSING = re.compile(r"model ['\"`]?[^'\"`]*['\"`]? not found|try pulling it first")
PARAMS = {"tools": "tools", "thinking": "think", "think value": "think", "insert": "suffix", "vision": "messages"}


def failure(error: Any, status: int, backend: str, retry_after: float | None = None) -> VeloError:
    """The error behind `error`, the engine's own words; `status` is what it was answered with."""
    words = error if isinstance(error, str) else error.get("message") if isinstance(error, dict) else None
    message = words[:LONGEST] if isinstance(words, str) and words else f"{backend} reported an error"
    lowered = message.lower()
    if any(phrase in lowered for phrase in TOO_LONG):
        return ContextLengthExceeded(message)
    if any(phrase in lowered for phrase in BUSY):
        return Overloaded(f"{backend}: {message}", retry_after=retry_after or RETRY_SECONDS)
    if MISSING.search(lowered):
        return ModelNotFound(message, param="model")
    if NOT_SUPPORTED.search(lowered):
        param = next((param for word, param in PARAMS.items() if word in lowered), None)
        return UnsupportedError(message, param=param)
    return BackendRefused(f"{backend}: {message}", backend=backend, status=status, retry_after=retry_after)
