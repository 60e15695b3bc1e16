"""Who is asked: a server found at an address, or a backend of our own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import orjson

from velollm.backend import Backend, Limits, open_backend
from velollm.bench.backend_asker import BackendAsker
from velollm.bench.connection import HttpClient
from velollm.bench.counters import read_counters
from velollm.bench.http_asker import HttpAsker
from velollm.bench.runner import Asker
from velollm.bench.wires import Asking
from velollm.discovery import ENGINES, find_engines, identify, places
from velollm.errors import BackendUnreachable, ConfigError, VeloError

__all__ = ["Target", "engine_here", "open_target"]

# Schemes that say what answers there, with the scheme of its HTTP.
EXPLICIT: Mapping[str, tuple[str, str]] = {
    "ollama": ("ollama", "http"),
    "ollama+https": ("ollama", "https"),
    "llamacpp": ("llamacpp", "http"),
    "openai+http": ("openai", "http"),
    "openai+https": ("openai", "https"),
}
PORTS = {"ollama": 11434, "llamacpp": 8080}


@attrs.frozen(kw_only=True)
class Target:
    """A server of `kind` at `url`, or a backend in this process, whose kind is `backend` and whose URL is empty."""

    kind: str
    url: str
    client: HttpClient | None = None
    backend: Backend | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.url or (self.backend.name if self.backend is not None else self.kind)

    def asker(self, asking: Asking) -> Asker:
        """What asks it."""
        if self.client is not None:
            return HttpAsker(self.client, self.kind, asking)
        assert self.backend is not None
        return BackendAsker(self.backend, asking)

    async def models(self) -> list[str]:
        """The names of what it serves."""
        if self.backend is not None:
            return [model.id for model in await self.backend.models()]
        assert self.client is not None
        path, key, name = ("/api/tags", "models", "name") if self.kind == "ollama" else ("/v1/models", "data", "id")
        items = (await self._get(path)).get(key) or ()
        return [item[name] for item in items if isinstance(item, dict) and isinstance(item.get(name), str)]

    async def counters(self) -> dict[str, float]:
        """What it counts at `/metrics`; nothing where it counts nothing."""
        if self.client is None:
            return {}
        try:
            reply = await self.client.get("/metrics")
        except VeloError:
            return {}
        text = b"".join(piece for _, piece in reply.pieces).decode("utf-8", "replace")
        return read_counters(text) if reply.status == 200 else {}

    async def _get(self, path: str) -> dict[str, Any]:
        assert self.client is not None
        reply = await self.client.get(path)
        body = b"".join(piece for _, piece in reply.pieces)
        if reply.status in (401, 403):
            raise ConfigError(f"{self.url} wants a key: name its variable with --api-key-env")
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        if reply.status != 200 or not isinstance(value, dict):
            raise ConfigError(f"{self.url} answers {path} with {reply.status} and no list of models: say --model")
        return value


@asynccontextmanager
async def open_target(
    place: str | Backend, *, headers: Mapping[str, str], patience: float, api_key: str = ""
) -> AsyncGenerator[Target, None]:
    """The target at `place`: an http(s) URL, any URL of `open_backend`, `auto`, or a backend.

    Raises `BackendUnreachable` or `ConfigError`.
    """
    if api_key:
        headers = {**headers, "authorization": f"Bearer {api_key}"}
    found = await _address(place, headers) if isinstance(place, str) else None
    if found is not None:
        kind, url = found
        client = HttpClient(url, headers=headers, patience=patience)
        try:
            yield Target(kind=kind, url=url, client=client)
        finally:
            await client.aclose()
        return
    if isinstance(place, str):
        limits = Limits(first_byte=patience, idle=patience)
        async with open_backend(place, limits=limits) as backend:
            yield Target(kind="backend", url="", backend=backend)
    else:
        await place.start()
        yield Target(kind="backend", url="", backend=place)


async def engine_here(environ: Mapping[str, str]) -> str:
    """The URL of the first engine that runs on this machine, or of a VeloLLM; `environ` may say where Ollama listens.

    Raises `BackendUnreachable` when there is none.
    """
    engines = await find_engines(places(environ), proxies=True)
    if not engines:
        looked = ", ".join(f"{name} ({url.rpartition(':')[2]})" for url, name in ENGINES.items())
        raise BackendUnreachable(f"no engine runs on this machine; looked for {looked}: say --backend URL")
    return engines[0].url


async def _address(place: str, headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Kind and http URL of a server; None for what is opened as a backend."""
    if place == "auto":
        place = await engine_here({})
    scheme, sep, rest = place.partition("://")
    if sep and scheme in EXPLICIT:
        kind, http = EXPLICIT[scheme]
        host = rest.partition("/")[0]
        if http == "http" and ":" not in host.rpartition("]")[2] and kind in PORTS:
            rest = rest.replace(host, f"{host}:{PORTS[kind]}", 1)
        return kind, f"{http}://{rest.rstrip('/')}"
    if sep and scheme in ("http", "https"):
        sent = {name: value for name, value in headers.items() if name.lower() != "content-type"}
        engine = await identify(place, headers=sent)
        return (engine.kind, engine.url) if engine is not None else ("openai", place)
    return None
