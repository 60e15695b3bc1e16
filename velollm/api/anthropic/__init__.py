"""Anthropic's dialect: messages, count_tokens, models and errors. No I/O."""

from __future__ import annotations

from velollm.api.anthropic.errors import render_error
from velollm.api.anthropic.messages import Messages, parse_count_tokens, render_count_tokens
from velollm.api.anthropic.models import render_model, render_models

__all__ = [
    "Messages",
    "parse_count_tokens",
    "render_count_tokens",
    "render_error",
    "render_model",
    "render_models",
]
