"""Log probabilities: inside the house always in the shape of chat completions, on `/v1/completions` in the older one.

chat:       {"content": [{"token", "logprob", "bytes", "top_logprobs": [{"token", "logprob", "bytes"}]}]}
completion: {"tokens": [..], "token_logprobs": [..], "top_logprobs": [{token: logprob}], "text_offset": [..]}
"""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["from_legacy", "to_chat", "to_legacy"]

JSON: TypeAlias = dict[str, Any]


def to_chat(logprobs: JSON | None) -> JSON | None:
    """The object with both keys that the schema asks for."""
    return None if logprobs is None else {"content": None, "refusal": None, **logprobs}


def to_legacy(logprobs: JSON | None, offset: int = 0) -> JSON | None:
    """Chat shape to completion shape; `offset` is where in the whole text, in characters, the first token begins."""
    if logprobs is None:
        return None
    entries = [entry for entry in logprobs.get("content") or () if isinstance(entry, dict)]
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(str(entry.get("token", "")))
    return {
        "tokens": [entry.get("token", "") for entry in entries],
        "token_logprobs": [entry.get("logprob") for entry in entries],
        "top_logprobs": [_top(entry) for entry in entries],
        "text_offset": offsets,
    }


def _top(entry: JSON) -> dict[str, float]:
    return {top["token"]: top["logprob"] for top in entry.get("top_logprobs") or () if "token" in top}


def from_legacy(logprobs: JSON) -> JSON:
    """Completion shape to chat shape; what is in chat shape already stays as it is."""
    if isinstance(logprobs.get("content"), list):  # llama-server's completions have chat's, which they should not
        return logprobs
    tokens = _list(logprobs, "tokens")
    values = _list(logprobs, "token_logprobs")
    tops = _list(logprobs, "top_logprobs")
    return {
        "content": [
            {
                "token": token,
                "logprob": values[number] if number < len(values) else None,
                "bytes": list(token.encode("utf-8", "replace")),
                "top_logprobs": _alternatives(tops[number] if number < len(tops) else None),
            }
            for number, token in enumerate(tokens)
            if isinstance(token, str)
        ]
    }


def _alternatives(top: Any) -> list[JSON]:
    if not isinstance(top, dict):
        return []
    return [
        {"token": token, "logprob": value, "bytes": list(token.encode("utf-8", "replace"))}
        for token, value in top.items()
    ]


def _list(logprobs: JSON, key: str) -> list[Any]:
    value = logprobs.get(key)
    return value if isinstance(value, list) else []
