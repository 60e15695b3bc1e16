"""An answer of a backend: its body decompressed, bounded, and with every failure as a `VeloError`."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from velollm.errors import BackendError, BackendProtocolError, VeloError
from velollm.transport.failures import explain
from velollm.transport.foreign import ForeignBody
from velollm.transport.inflate import ENCODINGS, Inflater
from velollm.transport.pool import PooledBody
from velollm.transport.refusal import refusal

__all__ = ["UpstreamResponse"]

LONGEST_REFUSAL = 64 * 1024  # of an error's body no more is read


class UpstreamResponse:
    """An answer whose body is still to be read. As a context manager it lets go of the connection at the end:

    kept when the body was read, or is about to end; dropped at once when an exception, a cancellation or the closing of
    the generator around it ends the block. `headers` have lower-case names; `limit` bounds the body in bytes.
    """

    __slots__ = ("_begun", "_body", "_inflater", "_limit", "_parts", "_size", "headers", "name", "status")

    def __init__(self, name: str, body: PooledBody | ForeignBody, limit: int) -> None:
        self.name = name
        self.status = body.status
        self.headers = body.headers
        self._body = body
        self._limit = limit
        self._size = 0  # bytes that were read, before and after decompression
        self._begun = False
        self._inflater: Inflater | None = None
        self._parts: Iterator[bytes] = iter(())

    def header(self, name: bytes) -> bytes | None:
        """The first header of this (lower-case) name."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    async def piece(self) -> bytes:
        """Some more of the body, decompressed; empty at its end.

        Raises `BackendTimeout` when none comes in time, `BackendProtocolError` when it breaks off or grows too long.
        """
        if not self._begun:
            self._begun = True
            self._inflater = self._chosen_inflater()
        try:
            if self._inflater is not None:
                return await self._inflated(self._inflater)
            piece = await self._body.read()
        except httpx.HTTPError as error:
            raise explain(self.name, error) from error
        except zlib.error as error:
            raise self._wrong(f"its answer is not the compressed data that it claims to be ({error})") from None
        self._count(piece)
        return piece

    async def _inflated(self, inflater: Inflater) -> bytes:
        while (part := next(self._parts, None)) is None:
            piece = await self._body.read()
            self._count(piece)
            if not piece:
                inflater.end()
                return b""
            self._parts = inflater.feed(piece)
        self._count(part)
        return part

    def _count(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise self._wrong(f"its answer is longer than {self._limit} bytes (--max-response)")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body, piece by piece as it arrives; see `piece`."""
        while piece := await self.piece():
            yield piece

    def _chosen_inflater(self) -> Inflater | None:
        encoding = (self.header(b"content-encoding") or b"identity").strip().lower()
        if encoding in (b"identity", b""):
            return None
        if encoding not in ENCODINGS:
            raise self._wrong(f"it compressed its answer with {encoding.decode('latin-1')[:20]!r}, unasked")
        return Inflater(encoding)

    async def raw_chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, compressed or not, however long."""
        try:
            while piece := await self._body.read():
                yield piece
        except httpx.HTTPError as error:
            raise explain(self.name, error) from error

    def _wrong(self, what: str) -> BackendProtocolError:
        return BackendProtocolError(f"{self.name} failed: {what}", backend=self.name)

    async def read(self) -> bytes:
        """The whole body."""
        first = await self.piece()
        if self._inflater is None and isinstance(self._body, PooledBody) and self._body.is_read:
            return first
        second = await self.piece() if first else b""
        if not second:
            return first
        pieces = [first, second]
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def json(self) -> Any:
        """The whole body as JSON; raises `BackendProtocolError` when it is none."""
        body = await self.read()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise self._wrong("its answer is not JSON") from None

    async def refusal(self) -> VeloError:
        """The error that an answer with a status of 300 or more stands for."""
        body = b""
        try:
            async with aclosing(self.chunks()) as pieces:
                async for piece in pieces:
                    body += piece
                    if len(body) > LONGEST_REFUSAL:
                        break
        except BackendError:
            pass  # the status alone says enough
        return refusal(self.name, self.status, self.header(b"retry-after"), body)

    async def aclose(self) -> None:
        """Let go of it; an unread rest is not waited for."""
        await self._body.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and isinstance(self._body, PooledBody):
            self._body.finish()
        else:
            await self._body.aclose()
