"""The running engines: what answers, which version, what it has loaded, and what it was told when it started."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import httpx

from velollm.discovery import ENGINES, Found, find_engines, ollama_address
from velollm.hardware.apart import run_apart
from velollm.hardware.host import Host
from velollm.hardware.machine import Engine, LoadedModel
from velollm.hardware.processes import Process, engine_processes

__all__ = ["find_running", "read_engine"]

SECONDS = 0.5
MOST_NAMES = 500
FLAG = re.compile(r"--?[A-Za-z][\w-]*")
SECRET = re.compile(r"(?i)key|token|secret|password")


def find_running(host: Host, urls: Iterable[str] = (), seconds: float = SECONDS) -> tuple[Engine, ...]:
    """The engines at `urls`, at the usual places, and where processes say that they listen."""
    processes = [process for process in engine_processes(host) if not process.child]
    wanted = dict.fromkeys(urls)
    named = ollama_address(host.environ.get("OLLAMA_HOST", ""))
    if named:
        wanted[named] = None
    for process in processes:
        wanted[_url(process)] = None
    return run_apart(_ask_all(list(dict.fromkeys([*wanted, *ENGINES])), processes, seconds))


async def _ask_all(urls: list[str], processes: list[Process], seconds: float) -> tuple[Engine, ...]:
    found = await find_engines(urls, seconds=seconds)
    async with httpx.AsyncClient(timeout=seconds, trust_env=False) as client:
        engines = await asyncio.gather(*(_details(client, engine, processes) for engine in found))
    return tuple(engines)


async def _details(client: httpx.AsyncClient, found: Found, processes: list[Process]) -> Engine:
    paths = {
        "ollama": ("/api/version", "/api/tags", "/api/ps"),
        "llamacpp": ("/props", "/v1/models", "/slots"),
    }.get(found.kind, ("/version", "/v1/models"))
    answers = await asyncio.gather(*(_get(client, found.url + path) for path in paths))
    process = next((one for one in processes if one.kind == found.kind and _same(_url(one), found.url)), None)
    return read_engine(found, dict(zip(paths, answers, strict=True)), process)


async def _get(client: httpx.AsyncClient, url: str) -> Any:
    try:
        response = await client.get(url)
        return response.json() if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_engine(found: Found, answers: Mapping[str, Any], process: Process | None = None) -> Engine:
    """The engine that gave `answers`, by path; its settings come from its process."""
    settings = _settings(process) if process is not None else {}
    common: dict[str, Any] = {
        "kind": found.kind,
        "url": found.url,
        "settings": settings,
        "process_known": process is not None and process.environ is not None,
        "pid": process.pid if process is not None else None,
        "binary": process.binary if process is not None else "",
    }
    if found.kind == "ollama":
        return _ollama(answers, common)
    if found.kind == "llamacpp":
        return _llama_server(answers, common)
    version = _dict(answers.get("/version")).get("version")
    return Engine(version=_text(version), models=_names(answers.get("/v1/models"), "data", "id"), **common)


def _ollama(answers: Mapping[str, Any], common: dict[str, Any]) -> Engine:
    loaded = []
    for item in _list(_dict(answers.get("/api/ps")).get("models")):
        size, on_gpu = _count(item.get("size")), _count(item.get("size_vram"))
        loaded.append(
            LoadedModel(
                name=_text(item.get("name")),
                size=size,
                gpu_share=min((on_gpu or 0) / size, 1.0) if size else None,
                context=_count(item.get("context_length")),
            )
        )
    settings = common["settings"]
    told = settings.get("OLLAMA_NUM_PARALLEL", "")
    context = settings.get("OLLAMA_CONTEXT_LENGTH", "")
    return Engine(
        version=_text(_dict(answers.get("/api/version")).get("version")),
        models=_names(answers.get("/api/tags"), "models", "name"),
        loaded=tuple(loaded),
        slots=int(told) if told.isdigit() else 1 if common["process_known"] else None,
        context=int(context) if context.isdigit() else None,
        **common,
    )


def _llama_server(answers: Mapping[str, Any], common: dict[str, Any]) -> Engine:
    props = _dict(answers.get("/props"))
    defaults = _dict(props.get("default_generation_settings"))
    names = _names(answers.get("/v1/models"), "data", "id")
    sizes = [
        _count(_dict(item.get("meta")).get("size")) for item in _list(_dict(answers.get("/v1/models")).get("data"))
    ]
    context = _count(defaults.get("n_ctx"))
    return Engine(
        version=_text(props.get("build_info")),
        models=names,
        loaded=tuple(
            LoadedModel(name=name, size=size, context=context) for name, size in zip(names, sizes, strict=False)
        ),
        slots=_count(props.get("total_slots")),
        context=context,
        **common,
    )


def _settings(process: Process) -> dict[str, str]:
    """Variables, and flags with their values; what smells of a secret is left out."""
    settings = {key: value for key, value in (process.environ or {}).items() if not SECRET.search(key)}
    for word, following in pairwise((*process.command[1:], "")):
        flag, sep, value = word.partition("=")
        if FLAG.fullmatch(flag) and not SECRET.search(flag):
            settings[flag] = value if sep else "" if FLAG.fullmatch(following) else following
    return settings


def _url(process: Process) -> str:
    environ = process.environ or {}
    if process.kind == "ollama":
        return ollama_address(environ.get("OLLAMA_HOST", "")) or "http://127.0.0.1:11434"
    words = process.command
    told = {flag: value for flag, value in pairwise(words) if flag in ("--port", "--host")}
    port = told.get("--port") or environ.get("LLAMA_ARG_PORT") or ("8000" if process.kind == "vllm" else "8080")
    host = told.get("--host", "127.0.0.1")
    return f"http://{host if host not in ('0.0.0.0', '::') else '127.0.0.1'}:{port if port.isdigit() else 8080}"  # noqa: S104


def _same(one: str, other: str) -> bool:
    first, second = urlsplit(one), urlsplit(other)
    local = {"127.0.0.1", "localhost", "::1"}
    return first.port == second.port and (
        first.hostname == second.hostname or {first.hostname, second.hostname} <= local
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [item for item in value[:MOST_NAMES] if isinstance(item, dict)] if isinstance(value, list) else []


def _names(answer: Any, key: str, name: str) -> tuple[str, ...]:
    return tuple(item[name] for item in _list(_dict(answer).get(key)) if isinstance(item.get(name), str))


def _text(value: Any) -> str:
    return value[:200] if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 62 else None
