"""Requests, answers and entries for the tests of the cache."""

from __future__ import annotations

from typing import Any

from velollm.cache.entry import Entry

__all__ = ["Clock", "answer", "ask", "entry"]


class Clock:
    """A clock that a test moves."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def ask(prompt: Any, *earlier: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An OpenAI chat body that every tier is open to."""
    return {"model": "m", "temperature": 0, "messages": [*earlier, {"role": "user", "content": prompt}], **fields}


def answer(text: str = "Paris.", finish: str = "stop", **message: Any) -> dict[str, Any]:
    """A complete OpenAI chat answer."""
    said = {"role": "assistant", "content": text, **message}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    }


def entry(number: int, *, size: int = 20, expires: float = 1_700_003_600.0, **fields: Any) -> Entry:
    """An entry whose key says its number."""
    return Entry(
        **{
            "key": number.to_bytes(16, "big"),
            "check": bytes(16),
            "tenant": b"t" * 16,
            "model": "m",
            "created": 1_700_000_000.0 + number,
            "expires": expires,
            "answer": b"x" * size,
            "alias": b"",
            **fields,
        }
    )
