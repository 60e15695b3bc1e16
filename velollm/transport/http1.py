"""One HTTP/1.1 connection to an engine, which may be slow, broken or hostile.

    idle ──send──▶ waiting ──head──▶ reading ──last byte──▶ idle (kept) or closed
                      │                 │
                      └── end, nonsense, silence, too much ──▶ failed (closed; the reader gets the error)

Limits follow what others refuse: heads of 64 KiB (h11, nginx: 8 to 64), 512 headers (Apache: 100, llhttp: none).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

import httptools
import httpx

__all__ = ["Connection", "Patience"]

MAX_HEAD = 64 * 1024
MAX_HEADERS = 512
# A reader that is this many bytes behind stops the sender, and starts it again when it has caught up.
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
BODYLESS = frozenset({204, 304})

Headers = list[tuple[bytes, bytes]]


class Patience:
    """Seconds to wait for the first byte of an answer, and between bytes."""

    __slots__ = ("first_byte", "idle")

    def __init__(self, first_byte: float, idle: float) -> None:
        self.first_byte = first_byte
        self.idle = idle


class Connection(asyncio.Protocol):
    """Speaks HTTP/1.1 for one request at a time. `alive` says whether another may follow."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.alive = True
        self.requests = 0
        self.idle_since = 0.0
        self._deadline = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._patience = Patience(0, 0)
        self._writable = asyncio.Event()
        self._writable.set()
        self._busy = False
        self._reset(b"GET")

    def _reset(self, method: bytes) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head_request = method == b"HEAD"
        self.status = 0
        self.headers: Headers = []
        self.received = False  # any byte of the answer
        self._head_size = 0
        self._framed = False  # the head says where the body ends
        self.head_complete = False
        self._body_begun = False  # until then the engine may still be reading the prompt, head sent or not
        self.complete = False
        self.error: Exception | None = None
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    # ---- what the pool and the reader call ----

    def begin(self, method: bytes, patience: Patience) -> None:
        """A request is about to be written."""
        self._busy = True
        self.requests += 1
        self._reset(method)
        self._patience = patience

    def write(self, data: bytes) -> None:
        """Send bytes; `drain` waits when there are too many."""
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the other side takes more."""
        if not self._writable.is_set():
            await self._writable.wait()
        if self.error is not None and not self.received:
            raise self.error

    def sent(self) -> None:
        """The request is complete: the first byte of the answer is due."""
        self._expect(self._patience.first_byte)

    async def wait_for_head(self) -> None:
        """Until status and headers are there; raises what went wrong instead."""
        while not self.head_complete:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def read(self) -> bytes:
        """Some more of the body; empty at its end."""
        while not self._pieces:
            if self.complete:
                return b""
            if self.error is not None:
                raise self.error
            await self._wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
                self._expect(self._patience.idle)
        return data

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def release(self) -> bool:
        """The answer is read: whether the connection can serve another request."""
        self._deadline = float("inf")
        self._busy = False
        self.idle_since = self._loop.time()
        return self.alive and self.complete and not self._pieces

    def close(self) -> None:
        """Drop the connection at once."""
        self.alive = False
        self._deadline = float("inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    # ---- time ----

    def _expect(self, seconds: float) -> None:
        """Something must come within `seconds`. The timer is moved only when it goes off too early."""
        self._deadline = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._tick)
        elif self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._deadline == float("inf"):
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._tick)
            return
        patience = self._patience.idle if self._body_begun else self._patience.first_byte
        what = "no further byte" if self._body_begun else "no first byte"
        self._fail(httpx.ReadTimeout(f"{what} within {patience:g} seconds"))

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy or self.complete:
            self.close()  # nobody asked: never let it answer the next request
            return
        self.received = True
        if not self.head_complete:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.complete:
                self._fail(httpx.RemoteProtocolError(f"not a valid HTTP answer: {_reason(error)}"))
            self.alive = False
        if not self.head_complete and self._head_size > MAX_HEAD:
            self._fail(httpx.RemoteProtocolError(f"the head of the answer is larger than {MAX_HEAD} bytes"))
        if self._body_begun and self._deadline != float("inf"):
            self._expect(self._patience.idle)
        self._wake()

    def eof_received(self) -> bool:
        self.alive = False
        if self._busy and not self.complete:
            if self.head_complete and not self._framed:
                self.complete = True  # the end of the connection is the end of this body
                self._deadline = float("inf")
            else:
                self._fail(httpx.RemoteProtocolError(self._broke_off()))
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self._busy and not self.complete and self.error is None:
            self._fail(httpx.ReadError(self._broke_off()))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _broke_off(self) -> str:
        if not self.received:
            return "the connection ended before an answer came"
        return "the connection ended in the middle of the answer"

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- httptools ----

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_complete:  # trailers never become headers
            return
        self.headers.append((name.lower(), value))
        if len(self.headers) > MAX_HEADERS:
            raise httptools.HttpParserError(f"more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        if self.complete:
            self.alive = False  # a second answer to one request
            return
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            return
        self._framed = self.status in BODYLESS or any(
            name in (b"content-length", b"transfer-encoding") for name, _ in self.headers
        )
        self.head_complete = True
        if self._head_request:
            self.alive = False  # the parser would wait for a body that never comes
            self._complete()

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return
        self._body_begun = True
        self._pieces.append(body)
        self._size += len(body)
        if self._size > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._deadline = float("inf")  # now the reader is slow, not the sender
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.complete:
            return
        if 100 <= self.status < 200:
            if self.status == 101:
                raise httptools.HttpParserError("the server wants to switch protocols")
            self.headers.clear()
            return
        if not self._framed and not self._head_request:
            return  # ends with the connection
        if not self._parser.should_keep_alive():
            self.alive = False
        self._complete()

    def _complete(self) -> None:
        self.complete = True
        self._deadline = float("inf")


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error.__context__ or error
    return " ".join(str(cause).split())[:120]
