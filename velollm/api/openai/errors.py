"""OpenAI's error object."""

from __future__ import annotations

from typing import Any

from velollm.errors import VeloError

__all__ = ["render_error"]

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


def render_error(error: VeloError, request_id: str) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`; the request id travels in the `x-request-id` header alone."""
    fallback = "server_error" if error.status >= 500 else "invalid_request_error"
    body = dict(error.details or {})
    body.update(message=error.message, type=TYPES.get(error.status, fallback), param=error.param, code=error.code)
    return {"error": body}
