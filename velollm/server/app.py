"""The standalone app: the door with all layers, what a server says of itself, and the gate in front.

AccessLog → Gate → VeloLLM (the door) → Observe → Admission → ... → BackendPool → engines
                      └─▶ Service (/health, /metrics, ...)

app = create_app(load_settings(config=Path("velollm.toml")))       # uvicorn, granian, hypercorn: any ASGI server
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from velollm.admission import AdmissionLayer, KeyFile
from velollm.asgi import Receive, Scope, Send
from velollm.backend import Backend
from velollm.cache.layer import cache_of
from velollm.config import ServerSettings, Settings
from velollm.hardware import LocalHost
from velollm.hardware.cgroup import read_limits
from velollm.hardware.memory import read_memory
from velollm.middleware import VeloLLM
from velollm.observability import Metrics, ObserveLayer
from velollm.observability.access import AccessLog
from velollm.observability.recent import RecentRequests
from velollm.profiling.stopwatch import Spans, watch
from velollm.routing import BackendPool
from velollm.server.backends import open_pool
from velollm.server.cache import CacheApi
from velollm.server.dashboard import Dashboard
from velollm.server.gate import OWN_NAMES, Gate
from velollm.server.service import Service
from velollm.stack import build

__all__ = ["ServerApp", "create_app", "is_loopback"]

LEAST_ROOM = 512 << 20


class ServerApp:
    """An ASGI app with everything in it. `backend` is the whole stack of layers, `pool` its lowest one."""

    def __init__(self, settings: Settings, pool: BackendPool, metrics: Metrics, keys: KeyFile | None) -> None:
        self.settings = settings
        self.pool = pool
        self.metrics = metrics
        metrics.registry.register(pool.turns.metrics)
        self.backend: Backend = ObserveLayer(AdmissionLayer(build(pool, settings, metrics)), metrics)
        recent = RecentRequests()
        spans = Spans() if settings.observability.traces else None
        if spans is not None:
            self.backend = watch(self.backend, pool.members, spans)
        dashboard = Dashboard(pool, metrics, recent, spans)
        shown = metrics if settings.observability.metrics else None
        service = Service(pool, shown, dashboard, discreet=keys is not None)
        cache = cache_of(self.backend)
        door = VeloLLM(
            service if cache is None else CacheApi(service, cache),
            backend=self.backend,
            max_body=settings.server.max_body,
            max_bodies=settings.server.max_bodies or _room(),
            forward_unknown=True,
            tool_calls=False,
        )
        gate = Gate(door, hosts=_hosts(settings.server), origins=settings.server.cors_origins, keys=keys)
        self._app = AccessLog(gate, recent=recent)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def create_app(settings: Settings | None = None, *, environ: Mapping[str, str] | None = None) -> ServerApp:
    """The app that `settings` describe (without any: the engine that runs on this machine).

    The keys of backends (`api_key_env`) are looked up in `environ`. Raises `ConfigError`.
    """
    settings = settings or Settings()
    metrics = Metrics()
    keys = KeyFile(Path(settings.server.keys).expanduser()) if settings.server.keys else None
    pool = open_pool(settings, environ=environ, on_health=metrics.set_backend)
    return ServerApp(settings, pool, metrics, keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _hosts(server: ServerSettings) -> frozenset[str] | None:
    """The names under which the server may be addressed: on loopback, its own; elsewhere, what is allowed, if any."""
    allowed = frozenset(server.allowed_hosts)
    if is_loopback(server.host):
        return allowed | OWN_NAMES | {server.host}
    return allowed | OWN_NAMES if allowed else None


def _room() -> int:
    """How many bytes request bodies may take together while they are being received: an eighth of the memory."""
    host = LocalHost()
    memory = read_memory(host, read_limits(host))
    return max((memory.limit or memory.total) // 8, LEAST_ROOM)
