"""Who may ask: checks the Host header, the Origin of web pages, and the key, before anything is executed.

A web page must not use the models of whoever looks at it: names that were made to resolve to this machine (DNS
rebinding) are refused by their Host, pages of other origins by their Origin.
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Awaitable, Collection, Iterable, Mapping

import orjson

from velollm.admission.keys import CURRENT, Key
from velollm.admission.layer import Finder, bearer
from velollm.asgi import ASGIApp, Message, Receive, Scope, Send
from velollm.errors import AuthenticationError, PermissionDenied, VeloError
from velollm.exchange import RENDER_ERROR, dialect_of
from velollm.observability.record import note_refusal

__all__ = ["Gate"]

OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = frozenset({"/health", "/ready"})
CONTROL = "/velollm/"
MOST_HOSTS = 64
WANTED = frozenset({b"host", b"origin", b"authorization", b"x-api-key", b"access-control-request-method"})
BASIC = b'Basic realm="VeloLLM: the password is an API key", charset="UTF-8"'
EXPOSED = (
    b"x-request-id, x-velollm-backend, x-velollm-cache, x-velollm-tool-calls, x-velollm-truncated, server-timing, "
    b"retry-after, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens"
)


class Gate:
    """ASGI middleware. `hosts` are the names under which this server may be addressed; None allows all.

    `origins` are the web origins that may ask (`*`: all). With `keys`, every path but /health and /ready needs one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None = None,
        origins: Iterable[str] = (),
        keys: Finder | None = None,
    ) -> None:
        self.app = app
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._keys = keys
        self._allowed: set[bytes] = set()  # Host headers that were found to be in order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in reversed(scope["headers"]) if name in WANTED}
        origin = headers.get(b"origin")
        try:
            self._check_host(headers.get(b"host"))
            if origin is not None:
                self._check_origin(origin, headers)
                if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                    await _preflight(scope, send, origin)
                    return
                send = _with_cors(send, origin)
            key = None
            if self._keys is not None and scope["path"] not in OPEN_PATHS:
                key = _check_key(self._keys, headers, scope)
        except VeloError as error:
            await _refuse(scope, send, error)
            return
        if key is None:
            await self.app(scope, receive, send)
            return
        token = CURRENT.set(key)
        try:
            await self.app(scope, receive, send)
        finally:
            CURRENT.reset(token)

    def _check_host(self, host: bytes | None) -> None:
        if self._hosts is None or host is None:  # without one, it is no browser; HTTP/1.1 has none without
            return
        if host in self._allowed:
            return
        name = _name_of(host.decode("latin-1")).lower()
        if name not in self._hosts and "*" not in self._hosts:
            raise PermissionDenied(
                f"this server is not addressed as {name[:100]!r}; if it is to be, start it with --allowed-host",
                code="host_not_allowed",
            )
        if len(self._allowed) < MOST_HOSTS:
            self._allowed.add(host)

    def _check_origin(self, origin: bytes, headers: Mapping[bytes, bytes]) -> None:
        text = origin.decode("latin-1").lower()
        if text in self._origins or "*" in self._origins:
            return
        own = text.partition("://")[2].encode("latin-1")
        if own and own == headers.get(b"host", b"").lower():
            return  # a page of our own
        raise PermissionDenied(
            f"pages of {text[:100]} may not use this server; to allow them, start it with --cors-origin {text[:100]}",
            code="origin_not_allowed",
        )


def _check_key(keys: Finder, headers: Mapping[bytes, bytes], scope: Scope) -> Key:
    given = bearer(
        *(value.decode("utf-8", "surrogateescape") if (value := headers.get(name)) is not None else None
          for name in (b"authorization", b"x-api-key"))
    )  # fmt: skip
    if given is None and _is_page(scope):
        given = _password(headers.get(b"authorization", b""))
    if given is None:
        raise AuthenticationError("an API key is needed: send authorization: Bearer KEY, or x-api-key")
    key = keys.find(given)
    if key is None:
        raise AuthenticationError("this API key is not known here")
    if not key.admin and scope["path"].startswith(CONTROL) and scope["method"] not in ("GET", "HEAD"):
        raise PermissionDenied("this changes the server, which needs an admin key")
    scope.setdefault("state", {})["velollm_key"] = key.name
    return key


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def _is_page(scope: Scope) -> bool:
    """Whether a browser may ask its user for the key, as the password of whatever name."""
    path: str = scope["path"]
    return path.startswith(CONTROL)


def _password(authorization: bytes) -> str | None:
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        return b64decode(token.strip(), validate=True).partition(b":")[2].decode("utf-8", "surrogateescape")
    except ValueError:
        return None


def _with_cors(send: Send, origin: bytes) -> Send:
    def cors_send(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            own = [
                (name, value) for name, value in message.get("headers", ()) if not name.startswith(b"access-control-")
            ]
            message["headers"] = [
                *own,
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", EXPOSED),
                (b"vary", b"origin"),
            ]
        return send(message)

    return cors_send


async def _preflight(scope: Scope, send: Send, origin: bytes) -> None:
    asked = {name: value for name, value in scope["headers"] if name.startswith(b"access-control-request-")}
    headers = [
        (b"access-control-allow-origin", origin),
        (b"vary", b"origin"),
        (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"),
        (b"access-control-allow-headers", asked.get(b"access-control-request-headers", b"*")),
        (b"access-control-max-age", b"600"),
    ]
    if b"access-control-request-private-network" in asked:
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: Scope, send: Send, error: VeloError) -> None:
    note_refusal(error)
    number = "req_" + os.urandom(12).hex()
    body = orjson.dumps(RENDER_ERROR[dialect_of(scope["path"])](error, number))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", number.encode()),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", BASIC if _is_page(scope) else b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
