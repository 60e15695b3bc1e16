"""One thing that is wrong."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

__all__ = ["Finding", "Severity"]

Severity: TypeAlias = Literal["error", "warning", "info"]


@attrs.frozen
class Finding:
    """`id` is stable and has a section in docs/doctor.md; `evidence` is what was seen, `remedy` what to do about it.

    An `error` hurts now or is dangerous, a `warning` costs speed or answers, an `info` is worth knowing.
    """

    id: str
    severity: Severity
    evidence: str
    remedy: str
