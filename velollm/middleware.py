"""VeloLLM as ASGI middleware. It adds the API to an app that has none, or stands around an app that serves it already.

app.add_middleware(VeloLLM, backend="ollama://localhost:11434")     # adds /v1, /api to the app
app.add_middleware(VeloLLM)                                         # the app's own /v1/chat/completions, improved
routes = [Mount("/llm", app=VeloLLM(backend="auto"))]               # on its own, below a prefix
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson

from velollm.asgi import OUTER_SCOPE, ASGIApp, Message, Receive, Scope, Send
from velollm.backend import Backend, open_backend
from velollm.door import ROUTES, Door
from velollm.exchange import dialect_of
from velollm.spelling import as_served
from velollm.stack import build

if TYPE_CHECKING:
    from velollm.cache import ResponseCache
    from velollm.config import CacheSettings, Settings, ToolCallSettings

__all__ = ["CacheMiddleware", "ToolCallMiddleware", "VeloLLM"]

DIALECTS = ("openai", "ollama", "anthropic")
Mode: TypeAlias = Literal["repair", "strict", "off"]
MODES: dict[Any, Mode] = {True: "repair", False: "off", "repair": "repair", "strict": "strict", "off": "off"}
MOST_PATHS, LONGEST_PATH = 256, 256  # that are remembered
CHAT_COMPLETIONS = "/v1/chat/completions"


class VeloLLM:
    """The middleware.

    `backend` is a `Backend`, or a URL for `velollm.open_backend`; without one, the app below is the backend, and keeps
    all of its OpenAI paths but `/v1/chat/completions`, which VeloLLM answers by asking it. `prefix` is where the API
    hangs ("" is the root); `dialects` says which APIs are added. `forward_unknown` passes paths under /v1 and /api that
    VeloLLM does not know on to the backend: by default only when there is no app below to own them. What belongs to
    neither goes to `app` untouched, as does every scope that is not HTTP. `tool_calls` says what is done about calls
    that models get wrong: "repair", "strict", "off", or the settings in full. `cache` answers repeated questions:
    True, the settings in full, or a `velollm.cache.ResponseCache` of the app's own.

    The backend is opened by the first request that needs it, and closed when the app shuts down.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        backend: Backend | str | None = None,
        prefix: str = "",
        dialects: Iterable[str] = DIALECTS,
        forward_unknown: bool | None = None,
        max_body: int = 16 << 20,
        max_bodies: int = 1 << 30,
        heartbeat: float = 15.0,
        tool_calls: ToolCallSettings | Mode | bool = "repair",
        cache: CacheSettings | ResponseCache | bool = False,
    ) -> None:
        self.app = app
        self.prefix = _checked_prefix(prefix)
        self.dialects = _checked_dialects(dialects)
        self.wraps = backend is None
        self._owned: dict[tuple[str, str, str], str] = {}
        engine = _backend(app, backend)
        self.backend = build(engine, _settings(tool_calls))
        if cache:
            self.backend = _cached(self.backend, engine, cache)
        self.door = Door(
            self.backend,
            max_body=max_body,
            max_bodies=max_bodies,
            heartbeat=heartbeat,
            forward_unknown=app is None if forward_unknown is None else forward_unknown,
        )

    @classmethod
    def wsgi(cls, app: Callable[..., Iterable[bytes]] | None = None, **options: Any) -> Any:
        """The same around a WSGI app: `flask_app.wsgi_app = VeloLLM.wsgi(flask_app.wsgi_app, backend="auto")`."""
        from velollm.wsgi import VeloWSGI

        return VeloWSGI(app, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = self._own(scope["method"], scope["path"], scope.get("root_path", ""))
            if path is not None:
                token = OUTER_SCOPE.set(scope) if self.wraps else None
                try:
                    await self.door.serve(scope, receive, send, path)
                finally:
                    if token is not None:
                        OUTER_SCOPE.reset(token)
                return
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if self.app is not None:
            await self.app(scope, receive, send)
        else:
            await _refuse(scope, receive, send)

    def _own(self, method: str, path: str, root_path: str) -> str | None:
        """The path within VeloLLM's API; None when the request is not VeloLLM's to answer."""
        asked = (method, path, root_path)
        found = self._owned.get(asked)
        if found is None:
            found = self.path(path, root_path)
            if found is None or not self.knows(method, found):
                return None
            if len(self._owned) < MOST_PATHS and len(path) < LONGEST_PATH:
                self._owned[asked] = found
        return found

    def path(self, path: str, root_path: str = "") -> str | None:
        """`path` relative to where VeloLLM is mounted and to its prefix; None when it lies outside."""
        relative = _below(path, root_path) or path  # some servers leave the mount's path out of `path`
        found = _below(relative, self.prefix)
        return found if found is None else as_served(found, ROUTES, alone=self.door.forward_unknown)

    def knows(self, method: str, path: str) -> bool:
        """Whether VeloLLM answers this itself, rather than the app below."""
        dialect = dialect_of(path)
        if self.wraps and dialect == "openai" and path != CHAT_COMPLETIONS:
            return False  # the app that serves OpenAI's API keeps the rest of it
        return dialect in self.dialects and self.door.knows(method, path)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is None:
            await self._own_lifespan(receive, send)
            return

        async def closing_send(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self.backend.aclose()
            await send(message)

        await self.app(scope, receive, closing_send)

    async def _own_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.backend.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class CacheMiddleware(VeloLLM):
    """The cache alone, around an app that serves `/v1/chat/completions` itself.

    `options` are those of `velollm.cache.ResponseCache`. Requests that bring other credentials are other tenants.
    """

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        from velollm.cache import ResponseCache

        super().__init__(app, dialects=("openai",), tool_calls=False, cache=ResponseCache(**options))


class ToolCallMiddleware(VeloLLM):
    """The tool-call fixer alone, around an app that serves `/v1/chat/completions` itself.

    `mode` is "repair" or "strict"; `reask` is how often a model is asked again when none of its calls can be used;
    `dedupe` drops calls that repeat another one of the same answer.
    """

    def __init__(self, app: ASGIApp, *, mode: Mode = "repair", reask: int = 0, dedupe: bool = True) -> None:
        from velollm.config import ToolCallSettings

        chosen = ToolCallSettings(mode=mode, reask=reask, dedupe=dedupe)
        super().__init__(app, dialects=("openai",), tool_calls=chosen)


def _backend(app: ASGIApp | None, backend: Backend | str | None) -> Backend:
    if isinstance(backend, str):
        return open_backend(backend)
    if backend is not None:
        return backend
    if app is None:
        raise TypeError("VeloLLM needs a backend, an app to stand around, or both")
    from velollm.wrapped import AppTransport, WrappedApp

    return WrappedApp(AppTransport(app))


def _settings(tool_calls: ToolCallSettings | Mode | bool) -> Settings:
    from velollm.config import CacheSettings, Settings, ToolCallSettings

    if isinstance(tool_calls, ToolCallSettings):
        return Settings(toolcalls=tool_calls, cache=CacheSettings(enabled=False))
    if tool_calls not in MODES:
        raise ValueError(f"tool_calls must be repair, strict or off, not {tool_calls!r}")
    return Settings(toolcalls=ToolCallSettings(mode=MODES[tool_calls]), cache=CacheSettings(enabled=False))


def _cached(backend: Backend, engine: Backend, cache: CacheSettings | ResponseCache | bool) -> Backend:
    """The cache around `backend`. An app that is asked itself may look at the credentials that requests bring, and it
    knows no builds of models."""
    from velollm.cache import ResponseCache
    from velollm.cache.layer import CacheLayer
    from velollm.cache.layer.opening import open_cache
    from velollm.config import CacheSettings
    from velollm.wrapped import WrappedApp

    is_app = isinstance(engine, WrappedApp)
    if isinstance(cache, ResponseCache):
        return CacheLayer(backend, cache, by_credentials=is_app, models=not is_app, owns=False)
    chosen = cache if isinstance(cache, CacheSettings) else CacheSettings()
    header = chosen.tenant_header
    return CacheLayer(
        backend, open_cache(chosen, backend), by_credentials=is_app, models=not is_app, tenant_header=header
    )


def _checked_prefix(prefix: str) -> str:
    prefix = prefix.rstrip("/")
    if prefix and not prefix.startswith("/"):
        raise ValueError(f"prefix must start with a slash, not {prefix!r}")
    return prefix


def _checked_dialects(dialects: Iterable[str]) -> frozenset[str]:
    chosen = frozenset([dialects] if isinstance(dialects, str) else dialects)
    unknown = chosen - frozenset(DIALECTS)
    if unknown:
        raise ValueError(f"unknown dialect {sorted(unknown)[0]!r}: choose from {', '.join(DIALECTS)}")
    return chosen


def _below(path: str, prefix: str) -> str | None:
    """The part of `path` behind `prefix`, which must end at a segment boundary."""
    if not prefix or prefix == "/":
        return path
    if not path.startswith(prefix):
        return None
    rest = path[len(prefix) :]
    if not rest.startswith("/"):
        return "/" if not rest else None
    return rest


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """There is no app below: unknown paths are 404, WebSockets are closed."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})
    elif scope["type"] == "http":
        error = {
            "message": f"{scope['path']} is not served here; the API lies under /v1 and /api",
            "type": "not_found_error",
            "code": "path_not_found",
            "param": None,
        }
        body = orjson.dumps({"error": error})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})
