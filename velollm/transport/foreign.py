"""Any `httpx.AsyncBaseTransport` in place of the pooled one, held to the same limits of time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import cast

import httpx

from velollm.backend import Limits

__all__ = ["ForeignBody", "ask"]


async def ask(transport: httpx.AsyncBaseTransport, request: httpx.Request, limits: Limits) -> ForeignBody:
    """Exchange heads; raises `httpx.ReadTimeout` when that takes longer than connecting and the first byte may."""
    try:
        async with asyncio.timeout(limits.connect + limits.first_byte):
            return ForeignBody(await transport.handle_async_request(request), limits)
    except TimeoutError:
        raise httpx.ReadTimeout(f"no first byte within {limits.first_byte:g} seconds") from None


class ForeignBody:
    """One answer, whose body is read with patience: `first_byte` for its first piece, `idle` for every other."""

    def __init__(self, response: httpx.Response, limits: Limits) -> None:
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        self._stream = cast("httpx.AsyncByteStream", response.stream)
        self._pieces: AsyncIterator[bytes] | None = None
        self._limits = limits
        self._begun = False

    async def read(self) -> bytes:
        """Some more of the body; empty at its end."""
        if self._pieces is None:
            self._pieces = aiter(cast("AsyncIterable[bytes]", self._stream))
        patience = self._limits.idle if self._begun else self._limits.first_byte
        while True:
            try:
                async with asyncio.timeout(patience):
                    piece = await anext(self._pieces, None)
            except TimeoutError:
                what = "no further byte" if self._begun else "no first byte"
                raise httpx.ReadTimeout(f"{what} within {patience:g} seconds") from None
            if piece is None:
                return b""
            if piece:
                self._begun = True
                return piece

    async def aclose(self) -> None:
        """Let go of it."""
        await self._stream.aclose()
