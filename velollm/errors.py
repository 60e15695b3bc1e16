"""The one tree of errors. Each class carries the HTTP status and the stable `code` word that clients see.

    VeloError                          500 internal_error
    ├── ConfigError                    --- a setting is wrong; raised at start, never rendered
    ├── RequestError                   400 invalid_request        the client's fault
    │   ├── UnsupportedError           400 unsupported            the backend cannot do what was asked
    │   ├── AuthenticationError        401 invalid_api_key
    │   ├── PermissionDenied           403 permission_denied
    │   ├── PathNotFound               404 path_not_found
    │   ├── ModelNotFound              404 model_not_found
    │   ├── MethodNotAllowed           405 method_not_allowed
    │   ├── RequestTimeout             408 request_timeout        the request itself did not arrive in time
    │   ├── BodyTooLarge               413 body_too_large
    │   ├── ContextLengthExceeded      422 context_length_exceeded
    │   └── RateLimited                429 rate_limited
    ├── Overloaded                     503 queue_full
    └── BackendError                   502 backend_error          the engine's fault
        ├── BackendUnreachable         503 backend_unreachable    no connection
        ├── BackendTimeout             504 backend_timeout        connected, but silent for too long
        ├── BackendProtocolError       502 backend_protocol_error answered nonsense, or broke off
        └── BackendRefused             (its own status)           answered with an error of its own

Only the door (velollm.middleware) turns these into JSON, in the dialect of the client.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

__all__ = [
    "AuthenticationError",
    "BackendError",
    "BackendProtocolError",
    "BackendRefused",
    "BackendTimeout",
    "BackendUnreachable",
    "BodyTooLarge",
    "ConfigError",
    "ContextLengthExceeded",
    "MethodNotAllowed",
    "ModelNotFound",
    "Overloaded",
    "PathNotFound",
    "PermissionDenied",
    "RateLimited",
    "RequestError",
    "RequestTimeout",
    "UnsupportedError",
    "VeloError",
    "let_go",
]

MOST_CAUSES = 100


class VeloError(Exception):
    """Base of every error that VeloLLM raises on purpose.

    `message` says what was wrong and what to do; it reaches the client, so it never holds prompts, keys or answers.
    `param` names the offending field (`messages[0].role`); `retry_after` is in seconds; `details` is dialect-specific
    extra JSON for the error object.
    """

    status: int = 500
    code: str = "internal_error"
    retryable: ClassVar[bool] = False
    headers: tuple[tuple[bytes, bytes], ...] = ()  # what HTTP wants in a response that says this

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.details = details
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class ConfigError(VeloError):
    """A setting is unknown or has a wrong value; the message names the key and where it stands."""

    code = "invalid_config"


class RequestError(VeloError):
    """The request is malformed or asks for something impossible."""

    status = 400
    code = "invalid_request"


class UnsupportedError(RequestError):
    """Well-formed, but the backend behind the door cannot do it."""

    code = "unsupported"


class AuthenticationError(RequestError):
    """No key, or a wrong one."""

    status = 401
    code = "invalid_api_key"


class PermissionDenied(RequestError):
    """The key (or the absence of one) does not allow this."""

    status = 403
    code = "permission_denied"


class PathNotFound(RequestError):
    """Neither the door nor the backend serves this path."""

    status = 404
    code = "path_not_found"


class ModelNotFound(RequestError):
    """No backend serves a model of this name."""

    status = 404
    code = "model_not_found"


class MethodNotAllowed(RequestError):
    """The path exists, but not with this method: only with those that are `allowed`."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, path: str, method: str, allowed: Iterable[str]) -> None:
        methods = ", ".join(allowed)
        super().__init__(f"{path[:200]} answers {methods}, not {method[:20]}")
        self.headers = ((b"allow", methods.encode()),)


class RequestTimeout(RequestError):
    """The client did not send its request in time."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(RequestError):
    """The request body exceeds the configured limit."""

    status = 413
    code = "body_too_large"


class ContextLengthExceeded(RequestError):
    """The prompt does not fit into the model's context."""

    status = 422
    code = "context_length_exceeded"


class RateLimited(RequestError):
    """The key has used up its requests or tokens for now."""

    status = 429
    code = "rate_limited"


class Overloaded(VeloError):
    """Too much work is waiting; come back after `retry_after` seconds."""

    status = 503
    code = "queue_full"
    retryable = True


class BackendError(VeloError):
    """The engine failed. `backend` is the configured name of the one that did."""

    status = 502
    code = "backend_error"

    def __init__(self, message: str, *, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.backend = backend


class BackendUnreachable(BackendError):
    """No connection could be made; nothing was sent, so another backend may be asked."""

    status = 503
    code = "backend_unreachable"
    retryable = True


class BackendTimeout(BackendError):
    """The connection stands, but no byte came in time."""

    status = 504
    code = "backend_timeout"


class BackendProtocolError(BackendError):
    """What came back is not HTTP, not JSON, not an answer, or broke off."""

    code = "backend_protocol_error"


class BackendRefused(BackendError):
    """The engine answered with an error; `status` is its own where a client can act on it."""


def let_go(error: BaseException) -> None:
    """Forget where an error, and what it came from, was raised: call it when the error was dealt with, or is kept.

    The frames it was raised in hold what had been received by then, and often the error again. Such a circle is found
    by the collector of garbage only, which comes round seldom, and an error that is kept and raised again grows.
    """
    left: list[BaseException] = [error]
    for _ in range(MOST_CAUSES):  # they may go round in a circle
        if not left:
            return
        passed = left.pop()
        passed.__traceback__ = None
        left += [cause for cause in (passed.__cause__, passed.__context__) if cause is not None]
