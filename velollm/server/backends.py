"""Opens the backends that the settings name, and puts them into one pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from velollm.backend import Backend, Limits, open_backend
from velollm.config import AUTO, BackendSettings, Settings
from velollm.errors import ConfigError
from velollm.routing import BackendPool, Turns

__all__ = ["open_pool"]

SCHEMES = {"ollama": "ollama", "llamacpp": "llamacpp"}


def open_pool(
    settings: Settings, *, environ: Mapping[str, str] | None = None, on_health: Callable[[str, bool], None]
) -> BackendPool:
    """All backends of `settings`; with none, whatever engine runs on this machine (`auto`).

    `environ` is where keys of backends are looked up. Nothing is connected or started. Raises `ConfigError`.
    """
    secrets = os.environ if environ is None else environ
    opened = [(one, _open(one, settings, secrets)) for one in settings.backends]
    embedded = [_embed(model, settings) for model in settings.engine.models]
    backends = [*(backend for _, backend in opened), *embedded]
    if not backends:
        backends = [open_backend("auto", limits=_limits(None, settings))]
    aliases = {alias: model for model, one in settings.models.items() for alias in one.aliases}
    for one in settings.backends:
        aliases.update(one.aliases)
    own = {backend.name for backend in embedded}
    asked = {backend.name: _concurrency(one, settings, secrets) for one, backend in opened}
    each = {name: number for name, number in asked.items() if number is not None}
    scheduling = settings.scheduling
    turns = Turns(
        policy=settings.routing.policy,
        concurrency=settings.defaults.concurrency,
        each=each,
        weights={backend.name: one.weight for one, backend in opened},
        slo=scheduling.slo,
        queue_timeout=scheduling.queue_timeout,
        max_queue=scheduling.max_queue,
        ageing=scheduling.ageing,
        quantum=scheduling.model_quantum,
    )
    return BackendPool(
        backends,
        turns=turns,
        aliases=aliases,
        only={backend.name: one.models for one, backend in opened if one.models},
        num_ctx={name: one.num_ctx for name, one in settings.models.items() if one.num_ctx and name not in own},
        on_health=on_health,
    )


def _open(one: BackendSettings, settings: Settings, secrets: Mapping[str, str]) -> Backend:
    key = None
    if one.api_key_env is not None:
        key = secrets.get(one.api_key_env)
        if not key:
            raise ConfigError(f"backend {one.name or one.url}: the variable {one.api_key_env} (api_key_env) is not set")
    return open_backend(_url(one), name=one.name, limits=_limits(one, settings), api_key=key, headers=dict(one.headers))


def _embed(model: str, settings: Settings) -> Backend:
    engine = settings.engine
    own = settings.models.get(model)
    return open_backend(
        model,
        limits=_limits(None, settings),
        ctx=own.num_ctx if own is not None and own.num_ctx else engine.ctx,
        kv_type=engine.kv_type,
        threads=engine.threads,
        parallel=engine.parallel,
        engine=engine.kind,
        num_blocks=engine.blocks,
        batch=engine.batch,
        device=engine.device,
        kv_layout=engine.kv_layout,
    )


def _concurrency(one: BackendSettings, settings: Settings, environ: Mapping[str, str]) -> int | None:
    """What the settings say of this backend, or for an Ollama of this machine, what its own variable says."""
    if one.concurrency is not None or settings.defaults.concurrency != AUTO:
        return one.concurrency
    parts = urlsplit(one.url)
    told = environ.get("OLLAMA_NUM_PARALLEL", "")
    ollama = "ollama" in (parts.scheme, one.kind) and parts.hostname in ("127.0.0.1", "localhost", "::1")
    return int(told) if ollama and told.isascii() and told.isdigit() and int(told[:9]) > 0 else None


def _url(one: BackendSettings) -> str:
    """The URL with the scheme of its kind, where the kind is said."""
    scheme, sep, rest = one.url.partition("://")
    if one.kind is None or not sep or scheme not in ("http", "https"):
        return one.url
    if scheme == "http" and one.kind in SCHEMES:
        return f"{SCHEMES[one.kind]}://{rest}"
    return f"openai+{one.url}"


def _limits(one: BackendSettings | None, settings: Settings) -> Limits:
    given = settings.defaults

    def pick(name: str) -> float:
        own = getattr(one, name, None)
        value: float = getattr(given, name) if own is None else own
        return value

    return Limits(
        connect=pick("connect_timeout"),
        first_byte=pick("ttft_timeout"),
        idle=pick("idle_timeout"),
        max_response=int(pick("max_response")),
    )
