"""One HTTP server as adapters see it: pooled, bounded, timed, and with every failure as a `VeloError`."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import httpx
import orjson

from velollm.backend import HttpRequest, HttpResponse, Limits
from velollm.errors import ConfigError, RequestError
from velollm.transport.failures import explain
from velollm.transport.foreign import ForeignBody, ask
from velollm.transport.head import header_lines, request_line
from velollm.transport.http1 import Patience
from velollm.transport.pool import PooledBody, PooledTransport, origin_of
from velollm.transport.response import UpstreamResponse

__all__ = ["Upstream"]

Headers = list[tuple[bytes, bytes]]

# RFC 9110, 7.6.1: these concern one connection, not the message.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
JSON_HEADERS: Headers = [(b"content-type", b"application/json"), (b"accept", b"*/*")]
MAX_HEADS = 64
ENDLESS = 1 << 62


class Upstream:
    """A server at `base_url`, called `name` in messages. `transport` takes the place of the pooled one.

    Nothing but `headers`, and what a call adds, is sent; no compression is asked of a server that is usually local.
    Proxies named in the environment are not used. Raises `ConfigError` when `base_url` is no http or https URL.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        limits: Limits = Limits(),
        headers: Mapping[str, str] = {},
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        url = _base(base_url)
        self.base_url = url.copy_with(username=None, password=None)
        self.name = name
        self.limits = limits
        self._transport = transport or PooledTransport()
        self._pool = self._transport if isinstance(self._transport, PooledTransport) else None
        self._origin = origin_of(url)
        self._prefix = url.raw_path.rstrip(b"/")
        self._headers: Headers = [(b"host", url.netloc), (b"accept-encoding", b"identity")]
        if url.userinfo:
            credentials = b64encode(f"{url.username}:{url.password}".encode())
            self._headers.append((b"authorization", b"Basic " + credentials))
        self._headers += [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
        self._patience = Patience(limits.connect, limits.first_byte, limits.idle)
        self._heads: dict[tuple[str, str, bool], bytes] = {}  # of the paths that are asked for again and again

    async def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | AsyncIterable[bytes] | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
        json: bool = False,
        limit: int | None = None,
    ) -> UpstreamResponse:
        """One exchange; any status is returned, no redirect followed. `path` is below the base URL, query included.

        `json` says that `content` is. `limit` bounds the body of the answer, in bytes, in place of
        `limits.max_response`. Raises `BackendUnreachable`, `BackendTimeout` or `BackendProtocolError`.
        """
        body: PooledBody | ForeignBody
        try:
            if self._pool is not None:
                size = None
                if not (content is None or isinstance(content, bytes)):
                    headers = list(headers)
                    size = _declared(headers)
                head = self._head(method, path, json)
                if headers:
                    head += header_lines(headers)
                pool, patience = self._pool, self._patience
                body = await pool.exchange(self._origin, method, head, content or b"", patience, size=size)
            else:
                body = await ask(
                    self._transport, self._request(method, path, content, [*self._kind(json), *headers]), self.limits
                )
        except httpx.HTTPError as error:
            raise explain(self.name, error) from error
        except httpx.InvalidURL as error:
            raise RequestError(f"the path cannot be passed on to {self.name}: {error}") from error
        return UpstreamResponse(self.name, body, self.limits.max_response if limit is None else limit)

    def _head(self, method: str, path: str, json: bool) -> bytes:
        """The part of the head that all requests to `path` share."""
        head = self._heads.get((method, path, json))
        if head is None:
            head = request_line(method, self._url(path).raw_path) + header_lines([*self._headers, *self._kind(json)])
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[method, path, json] = head
        return head

    def _kind(self, json: bool) -> Headers:
        return JSON_HEADERS if json else []

    def _url(self, path: str) -> httpx.URL:
        return self.base_url.copy_with(raw_path=self._prefix + path.encode())

    def _request(
        self,
        method: str,
        path: str,
        content: bytes | AsyncIterable[bytes] | None,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> httpx.Request:
        """For transports other than the pooled one."""
        sent = [*self._headers, *headers]
        stream: httpx.AsyncByteStream
        if content is None or isinstance(content, bytes):
            stream = httpx.ByteStream(content or b"")
            if content is not None:
                sent.append((b"content-length", b"%d" % len(content)))
        else:
            stream = _Pieces(content)
            if _declared(sent) is None:
                sent.append((b"transfer-encoding", b"chunked"))
        silence = max(self.limits.idle, self.limits.first_byte)
        patience = {"connect": self.limits.connect, "read": silence, "write": silence, "pool": self.limits.connect}
        return httpx.Request(method, self._url(path), headers=sent, stream=stream, extensions={"timeout": patience})

    async def post_json(
        self, path: str, payload: Any, *, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> UpstreamResponse:
        """POST JSON (bytes are taken as encoded already). Raises `BackendRefused` when the status is 400 or more."""
        if not isinstance(payload, bytes):
            try:
                payload = orjson.dumps(payload)
            except orjson.JSONEncodeError as error:
                raise RequestError(f"the request cannot be passed on as JSON: {error}") from error
        response = await self.send("POST", path, content=payload, headers=headers, json=True)
        return response if response.status < 300 else await self._checked(response)

    async def get_json(self, path: str) -> Any:
        """GET JSON, with the same errors."""
        async with await self._checked(await self.send("GET", path)) as response:
            return await response.json()

    async def _checked(self, response: UpstreamResponse) -> UpstreamResponse:
        if response.status < 300:
            return response
        async with response:
            raise await response.refusal()

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """Pass a request on as it is, without the headers that concern one connection; bodies stream, unbounded."""
        own = {name for name, _ in self._headers}
        headers = [(name, value) for name, value in _end_to_end(request.headers) if name not in own]
        body = request.body
        if isinstance(body, bytes):
            headers = [(name, value) for name, value in headers if name != b"content-length"]
        response = await self.send(request.method, request.target, content=body or None, headers=headers, limit=ENDLESS)
        return HttpResponse(status=response.status, headers=_end_to_end(response.headers), body=_relay(response))

    def break_off(self, why: str) -> None:
        """End all exchanges that are under way with `BackendTimeout`; only the pooled transport can."""
        if self._pool is not None:
            self._pool.break_off(why)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


class _Pieces(httpx.AsyncByteStream):
    """A request body that arrives in pieces."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._source = pieces

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        async for piece in self._source:
            yield piece


def _declared(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The length that the headers announce, if it is one."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and len(value) < 19:
            return int(value)
    return None


def _base(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL as error:
        raise ConfigError(f"{text!r} is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise ConfigError(f"{text!r} is not the URL of an HTTP server: http://host:port is wanted")
    return url


def _end_to_end(headers: Headers) -> Headers:
    """Without the hop-by-hop headers, known ones and those that `Connection` names."""
    dropped = HOP_BY_HOP
    for name, value in headers:
        if name == b"connection":
            dropped = dropped | {token.strip().lower() for token in value.split(b",")}
    return [(name, value) for name, value in headers if name not in dropped]


async def _relay(response: UpstreamResponse) -> AsyncGenerator[bytes, None]:
    """The body as it came, compressed or not: its headers travel with it."""
    async with response, aclosing(response.raw_chunks()) as pieces:
        async for piece in pieces:
            yield piece
