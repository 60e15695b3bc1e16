"""How urgent a request is: the header before the body before the key, and never more than the key allows. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from velollm.admission.keys import CLASSES, Key, Priority
from velollm.control_headers import DEADLINE, PRIORITY, read_milliseconds, read_priority
from velollm.errors import RequestError
from velollm.messages import RequestContext

__all__ = ["read_urgency", "says_urgency"]


def read_urgency(context: RequestContext, extra: Mapping[str, Any], key: Key | None, now: float) -> None:
    """Put class and deadline of a request into its context; raises `RequestError` for what is neither.

    `extra` is the body beside the fields that all know (vLLM's `priority`: below 0 is more urgent). The deadline is
    the latest first byte, on the clock of `context.marks`, counted from `received` (`now`, where that is not known).
    """
    if context.priority is None or key is not None:  # what was allowed already stays
        said = context.client_headers.get(PRIORITY)
        asked = _body(extra) if said is None else read_priority(said)
        context.priority = _allowed(asked or context.priority, key)
    text = context.client_headers.get(DEADLINE)
    if text is not None:
        deadline = context.marks.get("received", now) + read_milliseconds(text) / 1000
        context.deadline = deadline if context.deadline is None else min(context.deadline, deadline)


def says_urgency(context: RequestContext, extra: Mapping[str, Any]) -> bool:
    """Whether `read_urgency` would find anything without a key."""
    headers = context.client_headers
    return PRIORITY in headers or DEADLINE in headers or "priority" in extra


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
