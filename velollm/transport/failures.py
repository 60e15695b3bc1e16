"""A failure of the transport as the error that says what to do about it."""

from __future__ import annotations

import httpx

from velollm.errors import BackendProtocolError, BackendTimeout, BackendUnreachable, RequestError, VeloError

__all__ = ["explain"]

# In all of these nothing was sent.
UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def explain(name: str, error: httpx.HTTPError) -> VeloError:
    """What to raise for `error`, which the exchange with the server called `name` ended in."""
    if isinstance(error, UNREACHABLE):
        message = f"{name} cannot be reached: {error}; is it running?"
        return BackendUnreachable(message, backend=name, retry_after=1)
    if isinstance(error, httpx.TimeoutException):
        message = f"{name} kept silent: {error}; raise --ttft-timeout or --idle-timeout if it is only slow"
        return BackendTimeout(message, backend=name)
    if isinstance(error, httpx.LocalProtocolError):
        return RequestError(f"the request cannot be passed on to {name}: {error}")
    return BackendProtocolError(f"{name} failed: {error}", backend=name)
