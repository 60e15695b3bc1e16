"""What /velollm/ answers. The page loads nothing from elsewhere, and shows what was said by others as text only."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files

import orjson

from velollm.admission.keys import CURRENT
from velollm.errors import PathNotFound, PermissionDenied
from velollm.observability.metrics import Metrics
from velollm.observability.recent import RecentRequests
from velollm.profiling.stopwatch import Spans
from velollm.routing import BackendPool
from velollm.server.dashboard.status import status

__all__ = ["Dashboard"]

Answer = tuple[int, str, bytes]

JSON = "application/json"
STATIC = {
    "/velollm/": ("index.html", "text/html; charset=utf-8"),
    "/velollm/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/velollm/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "/velollm/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = [
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Dashboard:
    """`paths` maps each path to what answers it; all their answers carry `HEADERS`.

    `spans` are those of traces, where layers are timed.
    """

    def __init__(self, pool: BackendPool, metrics: Metrics, recent: RecentRequests, spans: Spans | None = None) -> None:
        self._pool = pool
        self._metrics = metrics
        self._recent = recent
        self._spans = spans
        self._begun = time.time()
        self.paths: Mapping[str, Callable[[], Awaitable[Answer]]] = {
            "/velollm/api/status": self._status,
            "/velollm/api/requests": self._requests,
            "/velollm/api/traces": self._traces,
            **{path: _static(*file) for path, file in STATIC.items()},
        }

    async def _status(self) -> Answer:
        await self._pool.check()
        state = status(self._pool, self._metrics, self._recent, begun=self._begun)
        return 200, JSON, orjson.dumps(state)

    async def _requests(self) -> Answer:
        key = CURRENT.get()
        own = None if key is None or key.admin else key.name  # others' requests are their own business
        return 200, JSON, orjson.dumps({"requests": self._recent.show(own)})

    async def _traces(self) -> Answer:
        if self._spans is None:
            raise PathNotFound("no layer is timed here: start it with --traces on")
        key = CURRENT.get()
        if key is not None and not key.admin:
            raise PermissionDenied("traces are for administrators")
        return 200, JSON, orjson.dumps({"traces": self._spans.show()})


def _static(name: str, kind: str) -> Callable[[], Awaitable[Answer]]:
    async def answer() -> Answer:
        return 200, kind, (files("velollm.server.dashboard") / "static" / name).read_bytes()

    return answer
