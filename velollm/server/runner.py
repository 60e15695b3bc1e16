"""uvicorn underneath `velollm serve`: binding, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from types import FrameType
from typing import Any

import uvicorn

from velollm.asgi import ASGIApp
from velollm.errors import ConfigError
from velollm.server.app import ServerApp
from velollm.server.protocol import GuardedProtocol

__all__ = ["Server", "bind", "run_server", "server_config"]

logger = logging.getLogger("velollm.server")

KEEP_ALIVE_SECONDS = 75
FORCED_SECONDS = 0.7
BACKLOG = 2048
GC_THRESHOLDS = (10_000, 20, 20)
HANGUP = getattr(signal, "SIGHUP", None)  # there is none on Windows


class Server(uvicorn.Server):
    """Stops at the first signal when the running requests are done, at the second at once.

    SIGHUP is such a first one: its terminal is closed. It comes twice then, from the shell and from the system, and so
    it never insists; who has it ignored (nohup) is not ended by it.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(config)
        self._on_start = on_start
        self.background: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell who asked to be told; that may take its time."""
        await super().startup(sockets=sockets)
        _settle_down()
        if self.started and self._on_start is not None:
            self.background = asyncio.create_task(self._tell(self._on_start))

    async def _tell(self, on_start: Callable[[], Awaitable[None]]) -> None:
        try:
            await on_start()
        except Exception:
            logger.exception("could not say what is served")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let running requests end, close."""
        if self.background is not None:
            self.background.cancel()
        running = len(self.server_state.tasks)
        logger.info("stopping%s", f" when {running} running requests are done" if running else "")
        await super().shutdown(sockets=sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle the signals while serving; a signal that was obeyed is not raised again, so that the end is exit 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = [signal.SIGINT, signal.SIGTERM]
        if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
            handled.append(HANGUP)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks, the second insists, unless it says only that the terminal is closed."""
        if not self.should_exit or sig == HANGUP:
            self.should_exit = True
            return
        self.force_exit = True
        timer = threading.Timer(FORCED_SECONDS, os._exit, (1,))  # whatever still hangs
        timer.daemon = True
        timer.start()


def _settle_down() -> None:
    """Spare every request what a process that serves for days does not need.

    What was made so far is not looked at again by the collector of garbage, which comes round less often; and streams
    are not registered one by one for the end of the loop (the hook for those that were dropped half-way stays).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.set_asyncgen_hooks(firstiter=None)


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`, all on one port. Raises `ConfigError` that says what to do."""
    try:
        infos = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address ({error})") from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            if sys.platform != "win32":
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = port or sockets[0].getsockname()[1]
            bound.bind((address[0], port, *address[2:]))
            bound.setblocking(False)
    except OSError as error:
        for bound in sockets:
            bound.close()
        raise ConfigError(_why_not(host, port, error)) from error
    return sockets


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another program; choose another with --port {port + 1}"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one above 1023 with --port"
    return f"cannot listen on {host}, port {port}: {error.strerror}"


def run_server(
    app: ServerApp, sockets: list[socket.socket], on_start: Callable[[], Awaitable[None]] | None = None
) -> int:
    """Serve until a signal comes; returns the exit status. `on_start` runs once the server listens."""
    _raise_file_limit()
    server = Server(server_config(app, drain_timeout=app.settings.server.drain_timeout), on_start)
    server.run(sockets=sockets)
    return 0 if server.started else 3


def server_config(
    app: ASGIApp, *, drain_timeout: float, protocol: type[asyncio.Protocol] = GuardedProtocol
) -> uvicorn.Config:
    """How uvicorn is to serve: without its own log, headers and trust in proxies. `drain_timeout` is in seconds."""
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_timeout,  # type: ignore[arg-type]  # fractions of seconds work as well
    )


def _raise_file_limit() -> None:
    """Every client and every backend connection is an open file; the usual limit of 1024 is soon reached."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
