"""How urgent a request is: the header before the body before the key, and never more than the key allows. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from velollm.admission.keys import CLASSES, Key, Priority
from velollm.errors import RequestError
from velollm.messages import RequestContext

__all__ = ["read_urgency", "says_urgency"]

PRIORITY_HEADER = "x-velollm-priority"
DEADLINE_HEADER = "x-velollm-deadline-ms"


def read_urgency(context: RequestContext, extra: Mapping[str, Any], key: Key | None, now: float) -> None:
    """Put class and deadline of a request into its context; raises `RequestError` for what is neither.

    `extra` is the body beside the fields that all know (vLLM's `priority`: below 0 is more urgent). The deadline is
    the latest first byte, on the clock of `context.marks`, counted from `received` (`now`, where that is not known).
    """
    if context.priority is None or key is not None:  # what was allowed already stays
        context.priority = _allowed(_header(context.client_headers) or _body(extra) or context.priority, key)
    text = context.client_headers.get(DEADLINE_HEADER)
    if text is not None:
        deadline = context.marks.get("received", now) + _milliseconds(text) / 1000
        context.deadline = deadline if context.deadline is None else min(context.deadline, deadline)


def says_urgency(context: RequestContext, extra: Mapping[str, Any]) -> bool:
    """Whether `read_urgency` would find anything without a key."""
    headers = context.client_headers
    return PRIORITY_HEADER in headers or DEADLINE_HEADER in headers or "priority" in extra


def _header(headers: Mapping[str, str]) -> Priority | None:
    text = headers.get(PRIORITY_HEADER)
    if text is None:
        return None
    for name in CLASSES:
        if text.strip().lower() == name:
            return name
    raise RequestError(f"{PRIORITY_HEADER} must be one of {', '.join(CLASSES)}", param=PRIORITY_HEADER)


def _body(extra: Mapping[str, Any]) -> Priority | None:
    value = extra.get("priority")
    if value is None:
        return None
    if type(value) is not int:
        raise RequestError("priority must be a whole number: below 0 interactive, above 0 batch", param="priority")
    return "interactive" if value < 0 else "batch" if value > 0 else "normal"


def _allowed(asked: Priority | None, key: Key | None) -> Priority | None:
    if key is None:
        return asked
    wanted = asked or key.priority
    highest = key.max_priority or key.priority
    if wanted is None or highest is None:
        return wanted
    return CLASSES[max(CLASSES.index(wanted), CLASSES.index(highest))]


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not math.isfinite(value) or value <= 0:
        raise RequestError(f"{DEADLINE_HEADER} must be a number of milliseconds above 0", param=DEADLINE_HEADER)
    return value
