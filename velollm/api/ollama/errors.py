"""Ollama's error object: one string. It is also the line that ends a broken stream; the clients raise it."""

from __future__ import annotations

from velollm.errors import VeloError

__all__ = ["render_error"]


def render_error(error: VeloError, request_id: str) -> dict[str, str]:
    """`{"error": message}`; the request id travels in the `x-request-id` header alone."""
    return {"error": error.message}
