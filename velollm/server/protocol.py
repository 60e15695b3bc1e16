"""HTTP/1.1 as clients are spoken to: one connection, with deadlines, limits, and strict about what can be misread.

    connection ──▶ head ──▶ body ──▶ (answering) ──▶ head ...
                   20 s     10 KiB
                            every 10 s

A client that is slower is told so (408) and dropped. The parser (llhttp) refuses bare CR and LF, NUL, folded lines, and
Content-Length beside Transfer-Encoding; what it lets pass is checked here: other codings than chunked, a missing Host,
long heads, trailers that would become headers. Runs in uvicorn's server, in the place of uvicorn's own protocol, which
takes twice the time for a request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Any, ClassVar, NoReturn, cast
from urllib.parse import unquote

import httptools
import orjson
from uvicorn import Config
from uvicorn.server import ServerState

from velollm.asgi import ASGIApp
from velollm.server.cycle import Cycle
from velollm.transport.outbox import Outgoing

__all__ = ["GuardedProtocol"]

CHECKED = frozenset({b"host", b"transfer-encoding", b"expect"})
MOST_TARGETS, LONGEST_TARGET = 256, 256  # that are remembered
ASGI = {"version": "3.0", "spec_version": "2.3"}


class GuardedProtocol(asyncio.Protocol):
    """One connection of a client. Times in seconds, sizes in bytes."""

    head_seconds = 20.0
    body_window = 10.0  # in each of these, at least `body_least` must come
    body_least = 10 * 1024
    check_every = 2.0
    linger_seconds = 5.0
    most_head = 64 * 1024
    most_headers = 128

    _known: ClassVar[list[tuple[bytes, bytes]]] = []
    _own_lines: ClassVar[bytes] = b""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.loop = _loop or asyncio.get_running_loop()
        self._app = cast("ASGIApp", config.loaded_app)
        self._root_path: str = config.root_path
        self._app_state = app_state
        self._keep_alive_seconds: float = config.timeout_keep_alive
        self._server = server_state
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # it is not read, but no error either
        self._pipeline: deque[Cycle] = deque()
        self._cycle: Cycle | None = None  # of the last request that came
        self._reads = True
        self.writable: asyncio.Event | None = None  # while the client does not take what is written
        self._refusal: tuple[int, str, str] | None = None
        self._seen = self._in_head = self._in_body = self._deaf = False
        self._hosts = 0
        self._expects = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = self._window_bytes = self._fruitless = 0
        self._since = self._window_start = self._idle_since = self.loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.out = Outgoing(self.transport, self.loop)
        self._server.connections.add(cast("Any", self))
        self._local = _address(transport.get_extra_info("sockname"))
        self._client = _address(transport.get_extra_info("peername"))
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(self.check_every, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(cast("Any", self))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._deaf = True
        self.out.drop()
        for cycle in (*self._pipeline, self._cycle):
            if cycle is not None:
                cycle.disconnect()
        self._pipeline.clear()
        self._cycle = self._parser = None  # type: ignore[assignment]  # they hold this connection, and it them
        self.resume_writing()

    def shutdown(self) -> None:
        """The server ends: what is being answered is the last of this connection."""
        if self._is_idle():
            self.close()
        else:
            self._last_cycle().keep_alive = False

    # ---- what comes in ----

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        size = len(data)
        self._head_bytes += size
        self._window_bytes += size
        self._fruitless += size  # on_body sets it back
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # HTTP/2 or WebSocket would be liked better: it is answered in HTTP/1.1, once
            self._last_cycle().keep_alive = False
        except httptools.HttpParserError:
            self._answer(*(self._refusal or (400, "invalid_request", "this is not a valid HTTP request")))
        if self._in_head:
            if self._head_bytes > self.most_head and not self._deaf:
                self._answer(431, "request_too_large", f"the head of a request may have {self.most_head} bytes")
        elif self._in_body:
            if self._fruitless > self.most_head and not self._deaf:  # trailers, or extensions of chunks
                self._answer(431, "request_too_large", f"beside its body, a request may have {self.most_head} bytes")
        elif self._is_idle():
            self._begin_head()  # empty lines: the next request is due now
        else:
            return
        if self._timer is None:
            self._timer = self.loop.call_later(self.check_every, self._check)

    def _is_idle(self) -> bool:
        return self._cycle is None or self._cycle.complete

    def _last_cycle(self) -> Cycle:
        """Whose answer is the last that was asked for: the newest of those that wait."""
        assert self._cycle is not None
        return self._cycle

    def _begin_head(self) -> None:
        self._in_head = True
        self._since = self.loop.time()

    def pause_reading(self) -> None:
        """There is more than can be worked off."""
        if self._reads:
            self._reads = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """There is room again."""
        if not self._reads:
            self._reads = True
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # ---- httptools ----

    def on_message_begin(self) -> None:
        self._seen = True
        self._hosts = 0
        self._expects = False
        self._url = b""
        self._headers = []
        self._begin_head()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        name = name.lower()
        if name in CHECKED:
            if name == b"host":
                self._hosts += 1
            elif name == b"expect":
                self._expects = value.lower() == b"100-continue"
            elif value.lower() != b"chunked" or self._parser.get_http_version() != "1.1":
                self._refuse(400, "the only transfer coding that is understood is chunked, in HTTP/1.1")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        version = parser.get_http_version()
        if version != "1.1" and version != "1.0":
            self._refuse(400, "HTTP/1.1 is spoken here")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            self._refuse(400, "exactly one Host header is needed")
        if len(self._headers) > self.most_headers:
            self._refuse(431, f"a request may have {self.most_headers} headers")
        if self._head_bytes > self.most_head:  # with parts of the body, perhaps
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if size > self.most_head:
                self._refuse(431, f"the head of a request may have {self.most_head} bytes")
        self._head_bytes = self._fruitless = 0
        keep_alive = version == "1.1" and parser.should_keep_alive()
        cycle = Cycle(self, self._scope(version), keep_alive=keep_alive, expects=self._expects)
        idle, self._cycle = self._is_idle(), cycle
        if idle:
            self._run(cycle)
        else:  # it came before the one before it was answered
            self.pause_reading()
            self._pipeline.append(cycle)
        self._in_body = True
        self._window_start, self._window_bytes = self._since, self.body_least

    def _scope(self, version: str) -> dict[str, Any]:
        path, raw_path, query = TARGETS.get(self._url) or _target(self._url)
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": self._scheme,
            "path": self._root_path + path,
            "raw_path": self._root_path.encode("ascii") + raw_path,
            "query_string": query,
            "root_path": self._root_path,
            "headers": self._headers,
            "server": self._local,
            "client": self._client,
            "state": self._app_state.copy(),
        }

    def on_body(self, body: bytes) -> None:
        self._fruitless = 0
        cycle = self._last_cycle()
        if not cycle.complete and cycle.add_body(body):
            self.pause_reading()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._head_bytes = 0
        self._last_cycle().end_body()

    # ---- what is answered ----

    def _run(self, cycle: Cycle) -> None:
        cycle.task = self.loop.create_task(cycle.run(self._app))
        self._server.tasks.add(cycle.task)

    def ended(self, cycle: Cycle) -> None:
        """The task of `cycle` is about to be done."""
        if cycle.task is not None:
            self._server.tasks.discard(cycle.task)
            cycle.task = None  # it holds the cycle

    def answered(self, cycle: Cycle) -> None:
        """The answer of `cycle` is complete: the next one is due, if there is one."""
        self._server.total_requests += 1
        if not cycle.keep_alive:
            if cycle.more_body:
                self.linger()
            else:
                self.close()
        if self.transport.is_closing():
            return
        self.resume_reading()
        if self._pipeline:
            self._run(self._pipeline.popleft())
            return
        self._idle_since = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(self.check_every, self._check)

    def own_headers(self) -> bytes:
        """The header lines that every answer has: the date, which uvicorn keeps."""
        known = self._server.default_headers  # another list, whenever anything in it changes
        if known is not GuardedProtocol._known:
            GuardedProtocol._known = known
            GuardedProtocol._own_lines = b"".join([b"%b: %b\r\n" % header for header in known])
        return GuardedProtocol._own_lines

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self.writable is not None:
            self.writable.set()
            self.writable = None

    async def drain(self) -> None:
        """Wait until the client takes more, or is gone."""
        while self.writable is not None:
            await self.writable.wait()

    # ---- what is refused ----

    def _refuse(self, status: int, message: str) -> NoReturn:
        """Leave the parser, which ends up in `send_400_response`."""
        self._refusal = (status, "invalid_request" if status == 400 else "request_too_large", message)
        raise ValueError(message)

    def _answer(self, status: int, code: str, message: str) -> None:
        """Say what was wrong, and close; an answer that is on its way to an earlier request is finished before."""
        self._deaf = True
        cycle = self._cycle
        if cycle is not None and not cycle.complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                return
            cycle.disconnect()  # its body is at fault: whoever waits for it learns that the client is gone
            if cycle.started:
                self.close()
                return
        error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
        body = orjson.dumps({"error": error})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.out.write(head.encode() + body)
        self.linger()

    def close(self) -> None:
        """Close it, when all that was answered has left."""
        self.out.flush()
        self.transport.close()

    def linger(self) -> None:
        """Close for writing, and go on reading for a moment: a reset would take the answer from the client's hands."""
        self._deaf = True
        self._in_head = self._in_body = False
        if self.transport.is_closing():
            return
        self.out.flush()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume_reading()
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
            if not self._reads:  # we are the slow ones
                self._window_start, self._window_bytes = now, 0
            elif now - self._window_start >= self.body_window:
                if self._window_bytes < self.body_least:
                    self._too_slow()
                    return
                self._window_start, self._window_bytes = now, 0
        elif not self._is_idle():
            return
        elif now - self._idle_since >= self._keep_alive_seconds:
            self.close()
            return
        self._timer = self.loop.call_later(self.check_every, self._check)

    def _too_slow(self) -> None:
        if self._seen:
            self._answer(408, "request_timeout", "the request did not arrive in time")
        else:
            self.close()


# Path, path as it came and query of targets that were asked for before.
TARGETS: dict[bytes, tuple[str, bytes, bytes]] = {}


def _target(url: bytes) -> tuple[str, bytes, bytes]:
    parts = httptools.parse_url(url)
    raw_path: bytes = parts.path or b"/"
    path = raw_path.decode("ascii")
    found = unquote(path) if "%" in path else path, raw_path, parts.query or b""
    if len(TARGETS) < MOST_TARGETS and len(url) < LONGEST_TARGET:
        TARGETS[url] = found
    return found


def _address(name: Any) -> tuple[str, int] | None:
    """Host and port of a socket's end; None for those that have none."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
