"""Every setting there is: one class for each section of the TOML file, one attribute for each key.

A setting says here what its flag is called and what it does; the command line, the variables and the messages follow
from that. A new section is a class and a line in `Settings`.
"""

# ruff: noqa: RUF009 -- setting() makes a field of attrs; ruff knows attrs.field alone
from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import attrs

from velollm.config.units import AUTO, Concurrency, Seconds, Size

__all__ = [
    "BackendDefaults",
    "BackendSettings",
    "CacheSettings",
    "EngineSettings",
    "Kind",
    "ModelSettings",
    "ObservabilitySettings",
    "RoutingSettings",
    "SchedulingSettings",
    "ServerSettings",
    "Settings",
    "ToolCallSettings",
]

Kind: TypeAlias = Literal["ollama", "llamacpp", "vllm", "openai"]
SemanticMode: TypeAlias = Literal["off", "shadow", "on"]
KVType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

EMBEDDER = re.compile(r"auto|trigrams|minilm|backend:.+")
STORE = re.compile(r"memory\Z|sqlite:.|(?:redis|rediss|valkey|unix)://.")


class InvalidSetting(ValueError):
    """The value of the setting `key` makes no sense."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(words)
        self.key = key


def _check(condition: Any, words: str) -> Any:
    """A validator of attrs: what a value must be, in words."""

    def validate(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and not condition(value):
            raise InvalidSetting(attribute.name, f"must be {words}, not {value!r}")

    return validate


positive = _check(lambda value: value > 0, "above 0")
not_negative = _check(lambda value: value >= 0, "0 or more")
a_port = _check(lambda value: 0 <= value <= 65535, "between 0 and 65535")
a_store = _check(STORE.match, "memory, sqlite:PATH or redis://HOST")
an_embedder = _check(EMBEDDER.fullmatch, "auto, trigrams, minilm or backend:MODEL")
not_empty = _check(lambda value: value.strip() != "", "some text")


def setting(default: Any, about: str, *, flag: str = "", metavar: str = "", check: Any = None) -> Any:
    """One key: `flag` where it is not `--key`, `-` where there is none."""
    return attrs.field(default=default, validator=check, metadata={"about": about, "flag": flag, "metavar": metavar})


@attrs.frozen(kw_only=True)
class ServerSettings:
    """[server]: where and how VeloLLM listens."""

    host: str = setting("127.0.0.1", "the address to listen on", check=not_empty)
    port: int = setting(8000, "the port to listen on; 0 takes a free one", check=a_port)
    max_body: Size = setting(Size(16 << 20), "the largest request body", metavar="SIZE")
    max_bodies: Size | None = setting(
        None, "all request bodies that are being received (default: an eighth of the memory, at least 512MiB)",
        metavar="SIZE",
    )  # fmt: skip
    keys: str | None = setting(None, "a TOML file of API keys ([[keys]] with name, and key or hash)", metavar="FILE")
    allowed_hosts: tuple[str, ...] = setting(
        (), "another name under which this server may be addressed; repeatable", flag="--allowed-host", metavar="NAME"
    )
    cors_origins: tuple[str, ...] = setting(
        (), "a web origin whose pages may ask; repeatable", flag="--cors-origin", metavar="ORIGIN"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "what is logged")
    log_format: Literal["text", "json"] = setting("text", "how it is logged")
    drain_timeout: Seconds = setting(Seconds(30), "patience with running requests at the end", metavar="SECONDS")


@attrs.frozen(kw_only=True)
class BackendDefaults:
    """[defaults]: what is asked of backends that do not say otherwise, and how patient VeloLLM is with them."""

    concurrency: Concurrency = setting(
        AUTO, "requests that a backend is given at once; auto: as many as it has slots", metavar="N|auto"
    )
    connect_timeout: Seconds = setting(
        Seconds(2), "patience until a backend is connected", metavar="SECONDS", check=positive
    )
    ttft_timeout: Seconds = setting(
        Seconds(300), "patience until the first byte of an answer", metavar="SECONDS", check=positive
    )
    idle_timeout: Seconds = setting(
        Seconds(60), "patience between two bytes of an answer", metavar="SECONDS", check=positive
    )
    max_response: Size = setting(Size(32 << 20), "the largest answer of a backend", metavar="SIZE")


@attrs.frozen(kw_only=True)
class BackendSettings:
    """[[backends]]: one engine. `models` are the only ones asked of it; `aliases` are other names for them.

    `concurrency` is how many requests it is given at once, `weight` its share of the work beside others. `api_key_env`
    names the variable that holds its key. What is None comes from [defaults].
    """

    url: str = attrs.field(validator=not_empty)
    name: str | None = attrs.field(default=None, validator=not_empty)
    kind: Kind | None = None
    models: tuple[str, ...] = ()
    aliases: Mapping[str, str] = MappingProxyType({})
    concurrency: Concurrency | None = None
    weight: float = attrs.field(default=1.0, validator=positive)
    api_key_env: str | None = None
    connect_timeout: Seconds | None = attrs.field(default=None, validator=positive)
    ttft_timeout: Seconds | None = attrs.field(default=None, validator=positive)
    idle_timeout: Seconds | None = attrs.field(default=None, validator=positive)
    max_response: Size | None = None
    headers: Mapping[str, str] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class ModelSettings:
    """[models."NAME"]: what is done for one model: its context in tokens, other names under which it is served, and
    another mode of the semantic cache."""

    num_ctx: int | None = attrs.field(default=None, validator=positive)
    aliases: tuple[str, ...] = ()
    semantic_cache: SemanticMode | None = None


@attrs.frozen(kw_only=True)
class EngineSettings:
    """[engine]: models that VeloLLM runs itself, on llama.cpp or on CUDA kernels of its own."""

    models: tuple[str, ...] = setting(
        (), "a model to run here: an installed one, a .gguf file, or hf:org/repo:quant; repeatable",
        flag="--model", metavar="NAME|PATH",
    )  # fmt: skip
    kind: Literal["velo", "llama-server", "cuda"] | None = setting(
        None, "what runs it (default: velo on a CPU, where the model suits it; else llama-server)", flag="--engine"
    )
    device: int | None = setting(None, "number of the GPU (cuda only; default: 0)", check=not_negative)
    ctx: int | None = setting(None, "tokens of context for each conversation", metavar="TOKENS", check=positive)
    kv_type: KVType = setting("f16", "the type of its KV cache; with cuda that of its weights, too")
    threads: int | None = setting(None, "threads it computes on (default: one for each core)", check=positive)
    parallel: int | None = setting(None, "conversations that it computes at once", check=positive)
    blocks: int | None = setting(
        None, "size of its KV cache, in blocks of 16 tokens (velo, cuda)", flag="--kv-blocks", check=positive
    )
    batch: int | None = setting(None, "tokens that it computes in one step (velo, cuda)", check=positive)
    kv_layout: Literal["auto", "unified"] | None = setting(
        None, "whether each conversation's KV cache may lie apart (velo only; default: where that is faster)"
    )


@attrs.frozen(kw_only=True)
class SchedulingSettings:
    """[scheduling]: who waits, for how long, and who goes first."""

    max_queue: int = setting(512, "requests that may wait; more are refused", check=not_negative)
    queue_timeout: Seconds | None = setting(
        None, "how long a request may wait for its turn (default: no limit)", metavar="SECONDS", check=positive
    )
    slo: Seconds | None = setting(
        None, "the latest first token of what is not batch work; what cannot make it is refused at once",
        metavar="SECONDS", check=positive,
    )  # fmt: skip
    ageing: Seconds = setting(
        Seconds(30), "how long less urgent work waits for more urgent work at most; 0: for ever", metavar="SECONDS"
    )
    truncation: Literal["error", "header"] = setting(
        "header", "what is done about a prompt that does not fit: refuse it, or say so in x-velollm-truncated"
    )
    model_quantum: Seconds = setting(
        Seconds(5), "how long an engine stays with one model while requests for another one wait", metavar="SECONDS"
    )


@attrs.frozen(kw_only=True)
class RoutingSettings:
    """[routing]: which of several backends a request goes to."""

    policy: Literal["least-loaded", "prefix", "round-robin", "weighted", "complexity"] = setting(
        "least-loaded", "how a backend is chosen among those that have the model", flag="--routing"
    )


@attrs.frozen(kw_only=True)
class CacheSettings:
    """[cache]: answers that are given again."""

    enabled: bool = setting(True, "answer repeated questions from a cache", flag="--cache")
    semantic: SemanticMode = setting(
        "shadow", "answer questions that mean the same: never, only for comparison, or in earnest",
        flag="--semantic-cache",
    )  # fmt: skip
    size: Size = setting(Size(64 << 20), "the most that the cache may hold", flag="--cache-size", metavar="SIZE")
    ttl: Seconds = setting(
        Seconds(3600), "how long an answer is given again", flag="--cache-ttl", metavar="SECONDS", check=positive
    )
    store: str = setting(
        "memory", "where answers are kept", flag="--cache-store", metavar="memory|sqlite:PATH|redis://HOST",
        check=a_store,
    )  # fmt: skip
    embedder: str = setting(
        "auto", "what finds questions of like meaning: MiniLM where it is installed, or a backend's embedding model",
        flag="--cache-embedder", metavar="auto|trigrams|minilm|backend:MODEL", check=an_embedder,
    )  # fmt: skip
    shared: bool = setting(False, "let all keys see each other's answers", flag="--cache-shared")
    tenant_header: str | None = setting(
        None, "a header of requests that parts tenants beside their keys", flag="--cache-tenant-header", metavar="NAME",
        check=not_empty,
    )  # fmt: skip


@attrs.frozen(kw_only=True)
class ToolCallSettings:
    """[toolcalls]: what is done about tool calls that models get wrong."""

    mode: Literal["repair", "strict", "off"] = setting(
        "repair", "mend malformed tool calls, refuse them, or leave them alone", flag="--tool-calls"
    )
    reask: int = setting(
        0, "how often a model is asked again when a call cannot be mended", flag="--tool-reask", check=not_negative
    )
    dedupe: bool = setting(True, "drop calls that repeat another call of the same answer", flag="--tool-dedupe")


@attrs.frozen(kw_only=True)
class ObservabilitySettings:
    """[observability]: what can be seen from outside."""

    metrics: bool = setting(True, "serve /metrics for Prometheus")
    traces: bool = setting(False, "time every layer, for velollm profile, and keep the last 500 requests")


@attrs.frozen(kw_only=True)
class Settings:
    """All settings; what is not named has its default."""

    server: ServerSettings = ServerSettings()
    defaults: BackendDefaults = BackendDefaults()
    backends: tuple[BackendSettings, ...] = ()
    models: Mapping[str, ModelSettings] = MappingProxyType({})
    engine: EngineSettings = EngineSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    routing: RoutingSettings = RoutingSettings()
    cache: CacheSettings = CacheSettings()
    toolcalls: ToolCallSettings = ToolCallSettings()
    observability: ObservabilitySettings = ObservabilitySettings()
