"""OpenAI's Responses API, stateless: every request brings its whole conversation. No I/O."""

from __future__ import annotations

from velollm.api.responses.endpoint import Responses, render_input_tokens

__all__ = ["Responses", "render_input_tokens"]
