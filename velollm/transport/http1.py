"""One HTTP/1.1 connection to an engine, which may be slow, broken or hostile.

    idle ──send──▶ waiting ──head──▶ reading ──last byte──▶ idle (kept) or closed
                      │                 │
                      └── end, nonsense, silence, too much ──▶ failed (closed; the reader gets the error)

Limits follow what others refuse: heads of 64 KiB (h11, nginx: 8 to 64), 512 headers (Apache: 100, llhttp: none).
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from typing import cast

import httptools
import httpx

from velollm.transport.outbox import Outgoing

__all__ = ["Connection", "Patience"]

MAX_HEAD = 64 * 1024
MAX_HEADERS = 512
# A reader that is this many bytes behind stops the sender, and starts it again when it has caught up.
HIGH_WATER = 256 * 1024
BODYLESS = frozenset({204, 304})
FRAMING = frozenset({b"content-length", b"transfer-encoding"})
NEVER = float("inf")

Headers = list[tuple[bytes, bytes]]


class Patience:
    """Seconds to wait for a connection, for the first byte of an answer, and between bytes."""

    __slots__ = ("connect", "first_byte", "idle")

    def __init__(self, connect: float, first_byte: float, idle: float) -> None:
        self.connect = connect
        self.first_byte = first_byte
        self.idle = idle


class Connection(asyncio.Protocol):
    """Speaks HTTP/1.1 for one request at a time. `alive` says whether another may follow."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: Outgoing | None = None
        self._probe: select.poll | None = None
        self.alive = True
        self.idle_since = 0.0
        self._deadline = NEVER
        self._awaited = ""
        self._timer: asyncio.TimerHandle | None = None
        self._patience = Patience(0, 0, 0)
        self._writable: asyncio.Future[None] | None = None  # while the other side does not take what is written
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._busy = False
        self._parser = httptools.HttpResponseParser(self)  # used again only after answers that it found good
        self._reset(is_head=False)

    def _reset(self, *, is_head: bool) -> None:
        self._is_head = is_head
        self.status = 0
        self.headers: Headers = []
        self.received = False  # any byte of the answer
        self._head_size = 0
        self._framed = False  # the head says where the body ends
        self.head_complete = False
        self._body_begun = False  # until then the engine may still be reading the prompt, head sent or not
        self.complete = False
        self.error: Exception | None = None
        self._size = 0
        self._paused = False
        self._overhead = 0  # bytes that came since the last piece of body

    # ---- what the pool and the reader call ----

    def begin(self, patience: Patience, *, is_head: bool = False) -> None:
        """A request is about to be written; `is_head` says that its answer has no body."""
        self._busy = True
        self._reset(is_head=is_head)
        self._patience = patience

    def write(self, data: bytes) -> None:
        """Send bytes; `drain` waits when there are too many."""
        if self._out is not None:
            self._out.write(data)

    async def drain(self) -> bool:
        """Wait until the other side takes more; False when it has answered already, or is gone."""
        if self._writable is not None:
            self._expect(self._patience.idle, "the request was not taken")
            await self._writable
            self._deadline = NEVER
        return not self.head_complete and self.error is None

    def sent(self) -> None:
        """The request is complete: the first byte of the answer is due."""
        if not self.complete and self.error is None:
            self._expect(self._patience.first_byte, "no first byte")

    async def wait_for_head(self) -> None:
        """Until status and headers are there; raises what went wrong instead."""
        while not self.head_complete:
            if self.error is not None:
                raise _anew(self.error)
            await self._news()

    async def read(self) -> bytes:
        """Some more of the body; empty at its end."""
        pieces = self._pieces
        while not pieces:
            if self.complete:
                return b""
            if self.error is not None:
                raise _anew(self.error)
            await self._news()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        if self._paused:
            self._resume()
        return data

    @property
    def is_read(self) -> bool:
        """Whether the answer is complete, and all of it was read."""
        return self.complete and not self._pieces

    def _resume(self) -> None:
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            if not self.complete:
                self._expect(self._patience.idle, "no further byte")

    def _news(self) -> asyncio.Future[None]:
        """Done when anything has come, good or bad."""
        self._waiter = self.loop.create_future()
        return self._waiter

    def release(self) -> bool:
        """The answer is read: whether the connection can serve another request."""
        self._deadline = NEVER
        self._busy = False
        self.idle_since = self.loop.time()
        return self.alive and self.is_read

    def stale(self) -> bool:
        """Whether bytes, or an end, wait in the socket that the event loop has not come to yet."""
        if self._transport is None or self._transport.is_closing():
            return True
        if self._probe is None:
            if not hasattr(select, "poll"):  # Windows: the loop will tell, a moment later
                return False
            self._probe = select.poll()
            self._probe.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._probe.poll(0))

    def close(self) -> None:
        """Drop the connection at once."""
        self.alive = False
        self._deadline = NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None and self._out is not None:
            self._out.drop()
            self._transport.abort()

    def give_up(self, why: str) -> None:
        """End the exchange as if its time had run out."""
        self._fail(httpx.ReadTimeout(why))

    # ---- time ----

    def _expect(self, seconds: float, awaited: str) -> None:
        """Something must come within `seconds`. The timer is moved only when it goes off too early."""
        self._awaited = awaited
        self._deadline = self.loop.time() + seconds
        if self._timer is None:
            self._timer = self.loop.call_at(self._deadline, self._tick)
        elif self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._deadline == NEVER:
            return
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._tick)
            return
        patience = self._patience.first_byte if self._awaited == "no first byte" else self._patience.idle
        self._fail(httpx.ReadTimeout(f"{self._awaited} within {patience:g} seconds"))

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._out = Outgoing(self._transport, self.loop)

    def data_received(self, data: bytes) -> None:
        if not self._busy or self.complete:
            self.close()  # nobody asked: never let it answer the next request
            return
        self.received = True
        before = self._size
        if not self.head_complete:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.alive = False
            if not self.complete:
                self._fail(httpx.RemoteProtocolError(f"not a valid HTTP answer: {_reason(error)}"))
        if self._size == before and not self.complete:
            self._bound_overhead(len(data))
        if self._body_begun and self._deadline != NEVER:
            self._expect(self._patience.idle, "no further byte")
        self._wake()

    def _bound_overhead(self, size: int) -> None:
        """Bytes came, but nothing of the body: heads, trailers and chunk extensions must not go on for ever."""
        self._overhead += size
        if self._overhead > MAX_HEAD:
            what = "trailer" if self.head_complete else "head"
            self._fail(httpx.RemoteProtocolError(f"the {what} of the answer is larger than {MAX_HEAD} bytes"))

    def eof_received(self) -> bool:
        self.alive = False
        if self._busy and not self.complete:
            if self.head_complete and not self._framed:
                self._complete()  # the end of the connection is the end of this body
            else:
                self._fail(httpx.RemoteProtocolError(self._broke_off()))
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self._out is not None:
            self._out.drop()
        if self._busy and not self.complete and self.error is None:
            self._fail(httpx.ReadError(self._broke_off()))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.resume_writing()
        self._wake()

    def pause_writing(self) -> None:
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _broke_off(self) -> str:
        if not self.received:
            return "the connection ended before an answer came"
        return "the connection ended in the middle of the answer"

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self.close()
        self.resume_writing()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ---- httptools ----

    def on_message_begin(self) -> None:
        if self.complete:
            self.alive = False  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_complete:  # trailers never become headers
            return
        self.headers.append((name.lower(), value))
        if len(self.headers) > MAX_HEADERS:
            raise httptools.HttpParserError(f"more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            return
        if not 200 <= self.status < 600:
            raise httptools.HttpParserError(f"a status of {self.status}")
        if self._head_size > MAX_HEAD and sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD:
            raise httptools.HttpParserError(f"a head larger than {MAX_HEAD} bytes")
        self._framed = self.status in BODYLESS or any(name in FRAMING for name, _ in self.headers)
        self.head_complete = True
        if self._is_head:
            self.alive = False  # the parser would wait for a body that never comes
            self._complete()

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return
        self._body_begun = True
        self._overhead = 0
        self._pieces.append(body)
        self._size += len(body)
        if self._size > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._deadline = NEVER  # now the reader is slow, not the sender
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.complete:
            return
        if 100 <= self.status < 200:
            if self.status == 101:
                raise httptools.HttpParserError("the server wants to switch protocols")
            self.headers.clear()
            return
        if not self._framed:
            return  # ends with the connection
        if not self._parser.should_keep_alive():
            self.alive = False
        self._complete()

    def _complete(self) -> None:
        self.complete = True
        self._deadline = NEVER


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error.__context__ or error
    return " ".join(str(cause).split())[:120] or type(error).__name__


def _anew(error: Exception) -> Exception:
    """The same error once more: the one that is kept must not lead to frames that lead back to it."""
    return type(error)(*error.args)
