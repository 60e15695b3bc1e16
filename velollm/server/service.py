"""What the standalone server says of itself: /health, /ready, /metrics, /openapi.json, /velollm/ and /; else 404."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import orjson

from velollm._version import __version__
from velollm.api.openai import render_error
from velollm.api.openapi import openapi
from velollm.asgi import Receive, Responder, Scope, Send
from velollm.errors import MethodNotAllowed, PathNotFound, VeloError
from velollm.observability.metrics import CONTENT_TYPE, Metrics
from velollm.observability.record import note_refusal
from velollm.routing import BackendPool
from velollm.server.dashboard import Dashboard
from velollm.server.dashboard.page import HEADERS

__all__ = ["Service"]

logger = logging.getLogger("velollm.server")

Answer = tuple[int, str, bytes]

DRAIN = "/velollm/api/drain/"
READING = ("GET", "HEAD")

ROOT = f"""VeloLLM {__version__} is running.

/v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /v1/models     OpenAI
/v1/messages, /v1/messages/count_tokens                                              Anthropic
/api/chat, /api/generate, /api/embed, /api/tags, ...                                 Ollama
/velollm/                                                                            dashboard
/openapi.json, /health, /ready, /metrics
""".encode()


class Service:
    """The ASGI app below the door. It starts the backends when the server starts, and does not wait for them.

    `metrics` is None when none are to be shown. With `discreet`, /ready does not say which backend is down, or why.
    """

    def __init__(
        self, pool: BackendPool, metrics: Metrics | None, dashboard: Dashboard, *, discreet: bool = False
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._discreet = discreet
        self._starting: asyncio.Task[None] | None = None
        self._openapi = b""
        self._paths: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/": self._root,
            "/health": self._health,
            "/ready": self._ready,
            "/openapi.json": self._describe,
            **dashboard.paths,
        }
        if metrics is not None:
            self._paths["/metrics"] = self._show_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._http(scope, send)

    async def _http(self, scope: Scope, send: Send) -> None:
        path = scope["path"]
        if path == "/velollm":
            await Responder(send).whole(308, [(b"location", b"/velollm/")], b"")
            return
        more: tuple[tuple[bytes, bytes], ...] = ()
        try:
            if path.startswith(DRAIN):
                status, kind, body = self._drain(path.removeprefix(DRAIN), scope["method"])
            elif path not in self._paths:
                raise PathNotFound(f"{path[:200]!r} is not served here; the API lies under /v1 and /api")
            elif scope["method"] not in READING:
                raise MethodNotAllowed(path, scope["method"], READING)
            else:
                status, kind, body = await self._paths[path]()
        except VeloError as error:
            note_refusal(error)
            more = error.headers
            status, kind, body = error.status, "application/json", orjson.dumps(render_error(error, ""))
        headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store"), *more]
        if path.startswith("/velollm/"):
            headers += HEADERS
        await Responder(send).whole(status, headers, body)

    # ---- the paths ----

    async def _root(self) -> Answer:
        return 200, "text/plain; charset=utf-8", ROOT

    async def _health(self) -> Answer:
        return 200, "application/json", orjson.dumps({"status": "ok", "service": "velollm", "version": __version__})

    async def _ready(self) -> Answer:
        errors = await self._pool.check()
        ready = not all(errors.values())
        state: dict[str, object] = {"status": "ready" if ready else "unavailable"}
        if not self._discreet:
            state["backends"] = {name: error.message if error else "ready" for name, error in errors.items()}
        return 200 if ready else 503, "application/json", orjson.dumps(state)

    def _drain(self, name: str, method: str) -> Answer:
        """PUT: no new requests for this backend; DELETE: some again; GET: whether, and how many it still has."""
        if method not in ("GET", "HEAD", "PUT", "DELETE"):
            raise MethodNotAllowed(f"{DRAIN}NAME", method, (*READING, "PUT", "DELETE"))
        if method in ("PUT", "DELETE"):
            self._pool.drain(name, on=method == "PUT")
        health = self._pool.health(name)
        state = {"backend": name, "draining": health.draining, "running": health.running}
        return 200, "application/json", orjson.dumps(state)

    async def _describe(self) -> Answer:
        if not self._openapi:
            self._openapi = orjson.dumps(openapi(__version__))
        return 200, "application/json", self._openapi

    async def _show_metrics(self) -> Answer:
        assert self._metrics is not None
        await self._pool.check()
        return 200, CONTENT_TYPE, self._metrics.expose()

    # ---- beginning and end ----

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._starting = asyncio.create_task(self._start())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._starting.cancel()
        await asyncio.wait({self._starting})
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        try:
            await self._pool.start()
        except VeloError as error:  # it is tried again with every request
            logger.warning("%s", error.message)
