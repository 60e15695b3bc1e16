"""What an engine's error answer means: its own words where it has some, and a status that the client can act on."""

from __future__ import annotations

from typing import Any

import orjson

from velollm.errors import BackendProtocolError, BackendRefused, VeloError

__all__ = ["refusal"]

LONGEST = 2000
LONGEST_WAIT = 86400.0


def refusal(name: str, status: int, retry_after: bytes | None, body: bytes) -> VeloError:
    """The error for an answer with `status` >= 300.

    4xx and 5xx keep their status, but 401 and 403: those say that our own credentials are wrong, not the client's.
    """
    if status < 400:
        return BackendProtocolError(f"{name} answered with a redirect ({status}), which is not followed", backend=name)
    error = _error_object(body)
    words = _words(error) or f"{name} answered with status {status}"
    if status in (401, 403):
        return BackendRefused(
            f"{name} refused the credentials it was given ({status}): check api_key", status=502, backend=name
        )
    return BackendRefused(
        words[:LONGEST],
        backend=name,
        status=status if status < 600 else 502,
        retry_after=_seconds(retry_after),
        details=error if isinstance(error, dict) else None,
        param=_text(error, "param"),
    )


def _error_object(body: bytes) -> Any:
    """OpenAI's `{"error": {...}}`, Ollama's `{"error": "..."}`, vLLM's bare object, FastAPI's `detail`."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(answer, dict):
        return None
    for key in ("error", "detail"):
        if answer.get(key):
            return answer[key]
    return answer


def _words(error: Any) -> str:
    if isinstance(error, str):
        return error
    return _text(error, "message") or _text(error, "msg") or ""


def _text(error: Any, key: str) -> str | None:
    value = error.get(key) if isinstance(error, dict) else None
    return value if isinstance(value, str) else None


def _seconds(header: bytes | None) -> float | None:
    try:
        seconds = float(header) if header is not None else -1.0
    except ValueError:  # a date: rare, and no engine sends one
        return None
    return seconds if 0 <= seconds <= LONGEST_WAIT else None
