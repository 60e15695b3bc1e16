"""Passing a request on to the backend as it is: unknown paths, model downloads, blobs. Bodies stream both ways."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote

from velollm.asgi import ClientLeft, DisconnectWatch, Receive, Scope
from velollm.backend import HttpRequest, HttpResponse
from velollm.errors import PathNotFound

if TYPE_CHECKING:
    from velollm.door import Door
    from velollm.exchange import Exchange

__all__ = ["forward", "forward_known", "forward_unknown"]

Relay: TypeAlias = "Callable[[Exchange, HttpResponse], Awaitable[None]]"

# Up to here a body is read before it is sent on, so that the client can be watched meanwhile; a larger one streams.
SMALL_BODY = 1 << 20

# How engines say that they do not know a path: llama-server, Ollama, and what is built on FastAPI.
NO_SUCH_PATH = (b"File Not Found", b"404 page not found", b'{"detail":"Not Found"}')
SHORT = 1024

# What may travel to an engine besides the body. Credentials and cookies are the client's and ours, never the engine's.
PASSED = frozenset(
    {b"accept", b"content-type", b"content-length", b"content-encoding", b"traceparent", b"tracestate", b"range"}
)


async def forward(door: Door, exchange: Exchange) -> None:
    """Ask the backend, and send its answer back piece by piece."""
    await _forward(door, exchange, _relay)


async def forward_unknown(door: Door, exchange: Exchange) -> None:
    """The same for a path that only the backend may know; where it does not, the client is told in its own dialect."""
    await _forward(door, exchange, _relay_known)


async def _forward(door: Door, exchange: Exchange, relay: Relay) -> None:
    request = HttpRequest(
        method=exchange.scope["method"],
        target=_target(exchange.scope, exchange.path),
        headers=[(name, value) for name, value in exchange.scope["headers"] if name in PASSED or _is_anthropic(name)],
    )
    declared = exchange.context.client_headers.get("content-length", "0")
    if "transfer-encoding" in exchange.context.client_headers or not declared.isdigit() or int(declared) > SMALL_BODY:
        request.body = _pieces(exchange.receive)
        await relay(exchange, await door.backend.forward(request))
        return
    if declared != "0":
        request.body = b"".join([piece async for piece in _pieces(exchange.receive)])
    with DisconnectWatch(exchange.scope, exchange.receive):
        await relay(exchange, await door.backend.forward(request))


async def forward_known(door: Door, exchange: Exchange) -> bool:
    """Pass on a request whose body has been read; False, and nothing is answered, when the backend says 404."""
    headers = [(name, value) for name, value in exchange.scope["headers"] if name in PASSED]
    target = _target(exchange.scope, exchange.path)
    request = HttpRequest(method=exchange.scope["method"], target=target, headers=headers, body=exchange.body)
    with DisconnectWatch(exchange.scope, exchange.receive):
        response = await door.backend.forward(request)
        if response.status == 404:
            await response.body.aclose()
            return False
        await _relay(exchange, response)
    return True


async def _relay_known(exchange: Exchange, response: HttpResponse) -> None:
    """Pass on an answer, unless it says no more than that there is no such path."""
    length = next((value for name, value in response.headers if name == b"content-length"), b"")
    if response.status == 404 and length.isdigit() and int(length) <= SHORT:
        async with aclosing(response.body) as pieces:
            body = b"".join([piece async for piece in pieces])
        if any(words in body for words in NO_SUCH_PATH):
            raise PathNotFound(f"{exchange.path[:200]} is known neither here nor to the engine")
        response.body = _again(body)
    await _relay(exchange, response)


async def _again(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _relay(exchange: Exchange, response: HttpResponse) -> None:
    try:
        headers = [(name, value) for name, value in response.headers if name != b"x-request-id"]
        headers.append((b"x-request-id", exchange.context.request_id.encode()))
        await exchange.respond.start(response.status, headers)
        async for piece in response.body:
            await exchange.respond.write(piece)
        await exchange.respond.end()
    finally:
        await response.body.aclose()


async def _pieces(receive: Receive) -> AsyncGenerator[bytes, None]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return


def _is_anthropic(name: bytes) -> bool:
    return name.startswith(b"anthropic-")


def _target(scope: Scope, path: str) -> str:
    """Path and query for the backend; refuses spellings that two parsers may read differently.

    Dots, double and encoded slashes are how guarded paths are reached behind a proxy's back.
    """
    raw = scope.get("raw_path", b"").lower()
    odd = "//" in path or "\\" in path or any(part in (".", "..") for part in path.split("/"))
    if odd or any(code in raw for code in (b"%2f", b"%2e", b"%5c", b"%00")):
        raise PathNotFound("this spelling of a path is not served: write it without dots, double or encoded slashes")
    query: str = scope.get("query_string", b"").decode("latin-1")
    quoted = quote(path, safe="/:@!$&'()*+,;=~")
    return f"{quoted}?{query}" if query else quoted
