"""One HTTP server as adapters see it: pooled, bounded, timed, and with every failure as a `VeloError`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from velollm.backend import HttpRequest, HttpResponse, Limits
from velollm.errors import (
    BackendError,
    BackendProtocolError,
    BackendTimeout,
    BackendUnreachable,
    RequestError,
    VeloError,
)
from velollm.transport.pool import PooledTransport
from velollm.transport.refusal import refusal

__all__ = ["Upstream", "UpstreamResponse"]

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


class Upstream:
    """A server at `base_url`, called `name` in messages. `transport` takes the place of the pooled one.

    Nothing but `headers`, and what a call adds, is sent; no compression is asked of a server that is usually local.
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
        self.base_url = httpx.URL(base_url.rstrip("/"))
        self.name = name
        self.limits = limits
        self._transport = transport or PooledTransport()
        self._timed = isinstance(self._transport, PooledTransport)
        self._prefix = self.base_url.raw_path.rstrip(b"/")
        self._urls: dict[str, httpx.URL] = {}
        self._headers: Headers = [(b"host", self.base_url.netloc), (b"accept-encoding", b"identity")]
        self._headers += [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
        self._extensions = {
            "timeout": {
                "connect": limits.connect,
                "first_byte": limits.first_byte,
                "read": limits.idle if self._timed else max(limits.idle, limits.first_byte),
                "write": limits.idle,
                "pool": limits.connect,
            }
        }

    async def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | AsyncIterable[bytes] | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
        limit: int | None = None,
    ) -> UpstreamResponse:
        """One exchange; any status is returned. `path` is below the base URL, query included.

        `limit` bounds the body of the answer, in bytes, in place of `limits.max_response`. Raises
        `BackendUnreachable`, `BackendTimeout` or `BackendProtocolError`.
        """
        request = httpx.Request(
            method,
            self._url(path),
            headers=[*self._headers, *headers],
            stream=httpx.ByteStream(content or b"")
            if content is None or isinstance(content, bytes)
            else _Pieces(content),
            extensions=self._extensions,
        )
        if content is None or isinstance(content, bytes):
            request._content = content or b""
            if content is not None and not self._timed:
                request.headers["content-length"] = str(len(content))
        try:
            if self._timed:
                response = await self._transport.handle_async_request(request)
            else:
                async with asyncio.timeout(self.limits.connect + self.limits.first_byte):
                    response = await self._transport.handle_async_request(request)
        except TimeoutError:
            raise self._silent(f"no first byte within {self.limits.first_byte:g} seconds") from None
        except httpx.TransportError as error:
            raise self.explain(error) from error
        return UpstreamResponse(self, response, self.limits.max_response if limit is None else limit)

    async def post_json(
        self, path: str, payload: Any, *, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> UpstreamResponse:
        """POST JSON (bytes are taken as encoded already). Raises `BackendRefused` when the status is 400 or more."""
        if not isinstance(payload, bytes):
            try:
                payload = orjson.dumps(payload)
            except orjson.JSONEncodeError as error:
                raise RequestError(f"the request cannot be passed on as JSON: {error}") from error
        response = await self.send("POST", path, content=payload, headers=[*JSON_HEADERS, *headers])
        return await self._checked(response)

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
        own = {name for name, _ in self._headers} | {b"accept-encoding", b"host"}
        headers = [(name, value) for name, value in request.headers if name not in HOP_BY_HOP and name not in own]
        body = request.body
        if isinstance(body, bytes):
            headers = [(name, value) for name, value in headers if name != b"content-length"]
        response = await self.send(request.method, request.target, content=body or None, headers=headers, limit=1 << 62)
        kept = [(name, value) for name, value in response.headers if name not in HOP_BY_HOP]
        return HttpResponse(status=response.status, headers=kept, body=_relay(response))

    def explain(self, error: httpx.TransportError) -> VeloError:
        """A failure of the transport as the error that says what to do."""
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return BackendUnreachable(
                f"{self.name} cannot be reached: {error}; is it running?", backend=self.name, retry_after=1
            )
        if isinstance(error, httpx.TimeoutException):
            return self._silent(str(error))
        return BackendProtocolError(f"{self.name} failed: {error}", backend=self.name)

    def _silent(self, what: str) -> BackendError:
        return BackendTimeout(
            f"{self.name} kept silent: {what}; raise --ttft-timeout or --idle-timeout if it is only slow",
            backend=self.name,
        )

    def _url(self, path: str) -> httpx.URL:
        url = self._urls.get(path)
        if url is None:
            url = self.base_url.copy_with(raw_path=self._prefix + path.encode())
            if len(self._urls) < 64:
                self._urls[path] = url
        return url

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


class UpstreamResponse:
    """An answer whose body is still to be read. As a context manager it lets go of the connection at the end:

    kept when the body was read, or is about to end; dropped when an exception ends the block.
    """

    def __init__(self, upstream: Upstream, response: httpx.Response, limit: int) -> None:
        self._upstream = upstream
        self._response = response
        self._limit = limit
        self.status = response.status_code
        self.headers: Headers = [(name.lower(), value) for name, value in response.headers.raw]

    def header(self, name: bytes) -> bytes | None:
        """The first header of this (lower-case) name."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body in pieces as they arrive, decompressed.

        Raises `BackendTimeout` when none comes in time, `BackendProtocolError` when it breaks off or grows too long.
        """
        inflate = self._inflater()
        size = 0
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                for part in inflate(piece) if inflate is not None else (piece,):
                    size += len(part)
                    if size > self._limit:
                        raise self._wrong(f"its answer is longer than {self._limit} bytes (--max-response)")
                    yield part

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        stream = self._response.stream
        assert isinstance(stream, AsyncIterable)
        try:
            if self._upstream._timed:
                async for piece in stream:
                    yield piece
                return
            idle = self._upstream.limits.idle
            pieces = aiter(stream)
            while True:
                async with asyncio.timeout(idle):
                    try:
                        piece = await anext(pieces)
                    except StopAsyncIteration:
                        return
                yield piece
        except TimeoutError:
            raise self._upstream._silent("no further byte in time") from None
        except httpx.TransportError as error:
            raise self._upstream.explain(error) from error

    def _inflater(self) -> Any:
        encoding = (self.header(b"content-encoding") or b"identity").strip().lower()
        if encoding in (b"identity", b""):
            return None
        if encoding not in (b"gzip", b"x-gzip", b"deflate"):
            raise self._wrong(f"it compressed its answer with {encoding.decode('latin-1')[:20]}, unasked")
        return self._inflate

    def _inflate(self, piece: bytes) -> Iterable[bytes]:
        if not hasattr(self, "_decompressor"):
            self._decompressor = zlib.decompressobj(wbits=47)  # gzip and zlib, told apart by their heads
        data = piece
        try:
            while data:
                part = self._decompressor.decompress(data, 1 << 20)
                if part:
                    yield part
                data = self._decompressor.unconsumed_tail
        except zlib.error:
            raise self._wrong("its answer is not the compressed data that it claims to be") from None

    def _wrong(self, what: str) -> BackendProtocolError:
        return BackendProtocolError(f"{self._upstream.name} failed: {what}", backend=self._upstream.name)

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.chunks()])

    async def json(self) -> Any:
        """The whole body as JSON; raises `BackendProtocolError` when it is none."""
        body = await self.read()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise self._wrong("its answer is not JSON") from None

    async def refusal(self) -> VeloError:
        """The error that an answer with a status of 300 or more stands for."""
        try:
            body = await self.read()
        except BackendError:
            body = b""
        return refusal(self._upstream.name, self.status, self.header(b"retry-after"), body)

    async def aclose(self) -> None:
        """Let go of it; an unread rest is not waited for."""
        await self._response.stream.aclose()  # type: ignore[union-attr]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finish = getattr(self._response.stream, "finish", None)
        if kind is None and finish is not None:
            finish()
        else:
            await self.aclose()


class _Pieces(httpx.AsyncByteStream):
    """A request body that arrives in pieces."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._source = pieces

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        async for piece in self._source:
            yield piece


async def _relay(response: UpstreamResponse) -> AsyncGenerator[bytes, None]:
    """The body as it came, compressed or not: its headers travel with it."""
    async with response, aclosing(response._pieces()) as pieces:
        async for piece in pieces:
            yield piece
