"""The headers by which a request says what it wants of VeloLLM, and what may stand in them. No I/O.

The door checks them all, whether or not anything behind it will read them: a wish that is misspelled is an error, never
silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

from velollm.errors import RequestError

__all__ = [
    "CACHE_TTL",
    "DEADLINE",
    "PRIORITY",
    "TOOL_CALLS",
    "Mode",
    "Priority",
    "check_control_headers",
    "read_milliseconds",
    "read_mode",
    "read_priority",
    "read_ttl",
]

Mode: TypeAlias = Literal["repair", "strict", "off"]
Priority: TypeAlias = Literal["interactive", "normal", "batch"]

PRIORITY: Final = "x-velollm-priority"
DEADLINE: Final = "x-velollm-deadline-ms"
TOOL_CALLS: Final = "x-velollm-tool-calls"
CACHE_TTL: Final = "x-velollm-cache-ttl"

PRIORITIES: Final[Mapping[str, Priority]] = {"interactive": "interactive", "normal": "normal", "batch": "batch"}
MODES: Final[Mapping[str, Mode]] = {"repair": "repair", "strict": "strict", "off": "off"}
MOST_DIGITS = 11


def check_control_headers(headers: Mapping[str, str]) -> None:
    """Raise `RequestError`, with `param` naming the header, for a value that makes no sense."""
    if READERS.keys().isdisjoint(headers):
        return
    for name, read in READERS.items():
        text = headers.get(name)
        if text is not None:
            read(text)


def read_priority(text: str) -> Priority:
    """The class of a request."""
    found = PRIORITIES.get(text.strip().lower())
    if found is None:
        raise _wrong(PRIORITY, f"one of {', '.join(PRIORITIES)}", text)
    return found


def read_mode(text: str) -> Mode:
    """What is done about malformed tool calls."""
    found = MODES.get(text.strip().lower())
    if found is None:
        raise _wrong(TOOL_CALLS, f"one of {', '.join(MODES)}", text)
    return found


def read_milliseconds(text: str) -> float:
    """A time in milliseconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not math.isfinite(value) or value <= 0:
        raise _wrong(DEADLINE, "a number of milliseconds above 0", text)
    return value


def read_ttl(text: str) -> float:
    """How long an answer is kept, in seconds."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= MOST_DIGITS):
        raise _wrong(CACHE_TTL, "a whole number of seconds", text)
    return float(digits)


def _wrong(name: str, wanted: str, text: str) -> RequestError:
    return RequestError(f"{name} must be {wanted}, not {text[:40]!r}", param=name)


READERS: Final[Mapping[str, Callable[[str], object]]] = {
    PRIORITY: read_priority,
    DEADLINE: read_milliseconds,
    TOOL_CALLS: read_mode,
    CACHE_TTL: read_ttl,
}
