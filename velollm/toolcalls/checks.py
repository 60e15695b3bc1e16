"""The keywords that measure a final value: range, length, uniqueness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from velollm.toolcalls.fitting import Mismatch

__all__ = ["check_length", "check_number", "has_twins"]


def check_number(value: float, spec: Mapping[str, Any], path: str) -> None:
    """minimum, maximum, their exclusive forms (a bound, or draft 4's flag) and multipleOf."""
    low, high = _bound(spec, "minimum"), _bound(spec, "maximum")
    above, below = _bound(spec, "exclusiveMinimum"), _bound(spec, "exclusiveMaximum")
    if spec.get("exclusiveMinimum") is True:
        above, low = low, None
    if spec.get("exclusiveMaximum") is True:
        below, high = high, None
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        raise Mismatch(path, f"{value} is out of range")
    step = _bound(spec, "multipleOf")
    if step is not None and step > 0:
        ratio = value / step
        if abs(ratio - round(ratio)) > 1e-9 * max(1.0, abs(ratio)):
            raise Mismatch(path, f"{value} is no multiple of {step}")


def check_length(size: int, spec: Mapping[str, Any], low: str, high: str, path: str) -> None:
    """The pair of keywords that bound a length."""
    least, most = _bound(spec, low), _bound(spec, high)
    if least is not None and size < least:
        raise Mismatch(path, f"is shorter than {least}")
    if most is not None and size > most:
        raise Mismatch(path, f"is longer than {most}")


def _bound(spec: Mapping[str, Any], word: str) -> float | None:
    value = spec.get(word)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def has_twins(items: list[Any]) -> bool:
    """Whether two items are equal, as JSON sees it."""
    seen = set()
    for item in items:
        mark = _mark(item)
        if mark in seen:
            return True
        seen.add(mark)
    return False


def _mark(item: Any) -> Any:
    if isinstance(item, bool) or item is None or isinstance(item, str):
        return type(item), item
    if isinstance(item, int | float):
        return float, item
    if isinstance(item, dict):
        return dict, frozenset((key, _mark(value)) for key, value in item.items())
    return list, tuple(_mark(value) for value in item)
