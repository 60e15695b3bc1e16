"""Arguments of tool calls as the object that Anthropic's and Ollama's dialects promise."""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

__all__ = ["arguments_object"]

JSON: TypeAlias = dict[str, Any]

INVALID = "__invalid_json__"


def arguments_object(arguments: str) -> JSON:
    """The object in the text. What is none is handed over under a key of its own, which no tool's schema has: the
    client's validation sees what the model wrote, and nothing runs with invented arguments."""
    if not arguments.strip():
        return {}
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {INVALID: arguments}
    if isinstance(value, dict) and _writable(value):
        return value
    return {INVALID: arguments}


def _writable(value: JSON) -> bool:
    """Whether the object can be written again inside a message (orjson reads deeper than it writes)."""
    try:
        orjson.dumps([[[[[value]]]]])
    except orjson.JSONEncodeError:
        return False
    return True
