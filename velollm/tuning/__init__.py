"""Configures engines for the machine they run on: `tune()`, and what applies, verifies and searches."""

from __future__ import annotations

from velollm.tuning.tuner import TARGETS, tune
from velollm.tuning.values import Setting, Target, Tuning, Workload

__all__ = ["TARGETS", "Setting", "Target", "Tuning", "Workload", "tune"]
