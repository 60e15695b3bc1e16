"""OpenAI's Responses API, stateless: every request brings its whole conversation. No I/O."""

from __future__ import annotations

from velollm.api.responses.endpoint import Responses

__all__ = ["Responses"]
