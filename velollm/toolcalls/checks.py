"""The keywords that measure a final value: range, length, uniqueness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fitting import Mismatch

__all__ = ["check_length", "check_number", "has_twins"]


def check_number(value: float, spec: Mapping[str, Any], path: str) -> None:
    low, high = spec.get("minimum"), spec.get("maximum")
    above, below = spec.get("exclusiveMinimum"), spec.get("exclusiveMaximum")
    if above is True:
        above, low = low, None
    if below is True:
        below, high = high, None
    if (
        (_is_number(low) and value < low)
        or (_is_number(high) and value > high)
        or (_is_number(above) and value <= above)
        or (_is_number(below) and value >= below)
    ):
        raise Mismatch(path, f"{value} is out of range")
    step = spec.get("multipleOf")
    if _is_number(step) and step > 0:
        ratio = value / step
        if ratio != ratio or abs(ratio - round(ratio)) > 1e-9 * max(1.0, abs(ratio)):
            raise Mismatch(path, f"{value} is no multiple of {step}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_length(size: int, spec: Mapping[str, Any], low: str, high: str, path: str) -> None:
    least, most = spec.get(low), spec.get(high)
    if _is_number(least) and size < least:  # type: ignore[operator]
        raise Mismatch(path, f"is shorter than {least}")
    if _is_number(most) and size > most:  # type: ignore[operator]
        raise Mismatch(path, f"is longer than {most}")


def has_twins(items: list[Any]) -> bool:
    seen = set()
    for item in items:
        mark = (isinstance(item, bool), repr(item))
        if mark in seen:
            return True
        seen.add(mark)
    return False
