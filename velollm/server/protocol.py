"""uvicorn's HTTP protocol with what it leaves out: deadlines, limits, and strictness about what can be misread.

    connection ──▶ head ──▶ body ──▶ (answering) ──▶ head ...
                   20 s     10 KiB
                            every 10 s

A client that is slower is told so (408) and dropped. uvicorn's parser (llhttp) refuses bare CR and LF, NUL, folded
lines, and Content-Length beside Transfer-Encoding; what it lets pass is checked here: other codings than chunked, a
missing Host, long heads, trailers that would become headers.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, NoReturn

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["GuardedProtocol"]

CHECKED = frozenset({b"host", b"transfer-encoding", b"expect"})


class GuardedProtocol(HttpToolsProtocol):
    """One connection of a client. Times in seconds, sizes in bytes."""

    head_seconds = 20.0
    body_window = 10.0  # in each of these, at least `body_least` must come
    body_least = 10 * 1024
    check_every = 2.0
    linger_seconds = 5.0
    most_head = 64 * 1024
    most_headers = 128

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._refusal: tuple[int, str, str] | None = None
        self._seen = self._in_head = self._in_body = self._deaf = False
        self._hosts = 0
        self._head_bytes = self._window_bytes = self._fruitless = 0
        self._since = self._window_start = self._idle_since = self.loop.time()
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(self.check_every, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    # ---- what comes in ----

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        size = len(data)
        self._head_bytes += size
        self._window_bytes += size
        self._fruitless += size  # on_body sets it back
        super().data_received(data)
        if self._in_head:
            if self._head_bytes > self.most_head and not self._deaf:
                self._answer(431, "request_too_large", f"the head of a request may have {self.most_head} bytes")
        elif self._in_body:
            if self._fruitless > self.most_head and not self._deaf:  # trailers, or extensions of chunks
                self._answer(431, "request_too_large", f"beside its body, a request may have {self.most_head} bytes")
            elif self.cycle.transport is self.transport:
                self.cycle.transport = _Lingering(self)  # type: ignore[assignment]
        elif self._is_idle():
            self._begin_head()  # empty lines: the next request is due now
        else:
            return
        if self._timer is None:
            self._timer = self.loop.call_later(self.check_every, self._check)

    def _is_idle(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's annotation says
        return cycle is None or cycle.response_complete

    def _begin_head(self) -> None:
        self._in_head = True
        self._since = self.loop.time()

    def on_response_complete(self) -> None:
        """As uvicorn has it, but for the timer of idle connections, which `_check` takes over."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(self.check_every, self._check)

    def on_message_begin(self) -> None:
        self._seen = True
        self._hosts = 0
        self._begin_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        name = name.lower()
        if name in CHECKED:
            if name == b"host":
                self._hosts += 1
            elif name == b"expect":
                self.expect_100_continue = value.lower() == b"100-continue"
            elif value.lower() != b"chunked" or self.parser.get_http_version() != "1.1":
                self._refuse(400, "the only transfer coding that is understood is chunked, in HTTP/1.1")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(400, "HTTP/1.1 is spoken here")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            self._refuse(400, "exactly one Host header is needed")
        if len(self.headers) > self.most_headers:
            self._refuse(431, f"a request may have {self.most_headers} headers")
        if self._head_bytes > self.most_head:  # with parts of the body, perhaps
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.most_head:
                self._refuse(431, f"the head of a request may have {self.most_head} bytes")
        self._head_bytes = self._fruitless = 0
        super().on_headers_complete()
        self._in_body = True
        self._window_start, self._window_bytes = self._since, self.body_least

    def on_body(self, body: bytes) -> None:
        self._fruitless = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._head_bytes = 0
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """A client that would rather speak HTTP/2 or WebSocket is answered in HTTP/1.1, once."""
        self._deaf = True
        (self.pipeline[0][0] if self.pipeline else self.cycle).keep_alive = False

    # ---- what is refused ----

    def _refuse(self, status: int, message: str) -> NoReturn:
        """Leave the parser, which ends up in `send_400_response`."""
        self._refusal = (status, "invalid_request" if status == 400 else "request_too_large", message)
        raise ValueError(message)

    def send_400_response(self, msg: str) -> None:
        self._answer(*(self._refusal or (400, "invalid_request", "this is not a valid HTTP request")))

    def _answer(self, status: int, code: str, message: str) -> None:
        """Say what was wrong, and close; an answer that is on its way to an earlier request is finished before."""
        self._deaf = True
        cycle = self.cycle
        busy = not self._is_idle()
        if busy and not cycle.more_body:
            (self.pipeline[0][0] if self.pipeline else cycle).keep_alive = False
            return
        if busy:  # its body is at fault: whoever waits for it learns that the client is gone
            started, cycle.disconnected = cycle.response_started, True
            cycle.message_event.set()
            if started:
                self.transport.close()
                return
        error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
        body = orjson.dumps({"error": error})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.linger()

    def linger(self) -> None:
        """Close for writing, and go on reading for a moment: a reset would take the answer from the client's hands."""
        self._deaf = True
        self._in_head = self._in_body = False
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.linger_seconds, self.transport.close)

    # ---- deadlines ----

    def _check(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self._in_head or not self._seen:
            if now - self._since >= self.head_seconds:
                self._too_slow()
                return
        elif self._in_body:
            if self.flow.read_paused:  # we are the slow ones
                self._window_start, self._window_bytes = now, 0
            elif now - self._window_start >= self.body_window:
                if self._window_bytes < self.body_least:
                    self._too_slow()
                    return
                self._window_start, self._window_bytes = now, 0
        elif not self._is_idle():
            return
        elif now - self._idle_since >= self.timeout_keep_alive:
            self.transport.close()
            return
        self._timer = self.loop.call_later(self.check_every, self._check)

    def _too_slow(self) -> None:
        if self._seen:
            self._answer(408, "request_timeout", "the request did not arrive in time")
        else:
            self.transport.close()


class _Lingering:
    """What an answer that may end before its request takes for the transport."""

    __slots__ = ("_protocol", "is_closing", "write")

    def __init__(self, protocol: GuardedProtocol) -> None:
        self._protocol = protocol
        self.write: Any = protocol.transport.write
        self.is_closing: Any = protocol.transport.is_closing

    def close(self) -> None:
        if self._protocol.cycle.more_body:
            self._protocol.linger()
        else:
            self._protocol.transport.close()
