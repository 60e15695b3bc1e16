"""What is wrong with a set-up, and the command that mends it: `doctor()`."""

from __future__ import annotations

from velollm.diagnosis.examination import IDS, doctor, examine
from velollm.diagnosis.finding import Finding, Severity

__all__ = ["IDS", "Finding", "Severity", "doctor", "examine"]
