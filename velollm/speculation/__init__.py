"""Speculative decoding: which draft pays for this model, on this machine, with these prompts."""

from velollm.speculation.methods import Method
from velollm.speculation.theory import acceptance_of, best_length, expected_tokens, speed_up

__all__ = ["Method", "acceptance_of", "best_length", "expected_tokens", "speed_up"]
