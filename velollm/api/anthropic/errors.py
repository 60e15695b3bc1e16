"""Anthropic's error object. The HTTP status stays our own: a 503 is never turned into Anthropic's private 529."""

from __future__ import annotations

from typing import Any

from velollm.errors import VeloError

__all__ = ["render_error"]

TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def render_error(error: VeloError, request_id: str) -> dict[str, Any]:
    """`{"type": "error", "error": {"type", "message", "details"}, "request_id"}`.

    `details.error_code` is the error's stable code, where the SDKs look for one; `details.param` the offending field.
    """
    fallback = "api_error" if error.status >= 500 else "invalid_request_error"
    details: dict[str, Any] = {"error_code": error.code}
    if error.param is not None:
        details["param"] = error.param
    details.update(error.details or {})
    body = {"type": TYPES.get(error.status, fallback), "message": error.message, "details": details}
    return {"type": "error", "error": body, "request_id": request_id}
