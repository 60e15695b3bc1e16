"""Prompts that an engine cuts without a word: noticed, and refused or told of."""

from velollm.truncation.estimates import Estimates, was_cut
from velollm.truncation.layer import TruncationLayer

__all__ = ["Estimates", "TruncationLayer", "was_cut"]
