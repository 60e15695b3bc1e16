"""What `velollm serve` says once it listens: where, what it serves, and a line to try. On standard output."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, TextIO

import orjson

from velollm._version import __version__
from velollm.messages import ModelInfo
from velollm.routing.member import Member
from velollm.server.app import ServerApp

__all__ = ["announce", "banner"]

PATIENCE_SECONDS = 600.0
MOST_NAMES = 5


async def announce(app: ServerApp, *, as_json: bool = False, out: TextIO | None = None) -> None:
    """Wait until the engines have said what they serve, and print it."""
    out = sys.stdout if out is None else out
    url = _url(app)
    if not as_json:
        out.write(f"VeloLLM {__version__} listens on {url}\n")
        out.flush()
    await _wait(app)
    state = describe(app)
    out.write(
        orjson.dumps(state).decode() + "\n" if as_json else banner(state, keys=app.settings.server.keys is not None)
    )
    out.flush()


def describe(app: ServerApp) -> dict[str, Any]:
    """What is served, as `--json` prints it: `url`, `model` (one to try), and `backends` with their models."""
    backends = [_describe(member) for member in app.pool.members]
    return {"url": _url(app), "version": __version__, "model": _example(app.pool.members), "backends": backends}


def banner(state: dict[str, Any], *, keys: bool) -> str:
    """The same for people, with a curl line."""
    lines = []
    for backend in state["backends"]:
        kind = f" ({backend['kind']})" if backend["kind"] else ""
        if backend["error"] is not None:
            lines.append(f"  {backend['name']}{kind}: not ready: {backend['error']}")
            continue
        names: list[str] = backend["models"]
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        lines.append(f"  {backend['name']}{kind}: {', '.join(names[:MOST_NAMES]) or 'no models yet'}{more}")
    if state["model"]:
        body = orjson.dumps({"model": state["model"], "messages": [{"role": "user", "content": "Say hello."}]}).decode()
        key = " -H 'authorization: Bearer YOUR-KEY'" if keys else ""
        lines += [
            "try:",
            f"  curl {state['url']}/v1/chat/completions -H 'content-type: application/json'{key} \\",
            f"    -d '{body}'",
        ]
    return "\n".join(lines) + "\n"


async def _wait(app: ServerApp) -> None:
    """Until every backend is started and has listed its models, or has failed to; a model may take long to load."""

    async def one(member: Member) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await member.start()
        except TimeoutError:
            return
        await member.refresh()

    await asyncio.gather(*(one(member) for member in app.pool.members))


def _describe(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "kind": member.backend.kind,
        "models": [model.id for model in member.listed],
        "error": member.error.message if member.error is not None else None,
    }


def _example(members: list[Member]) -> str | None:
    """A model that can chat, the smallest where sizes are known."""
    models = [model for member in members if member.error is None for model in member.listed]
    chatting = [model for model in models if _chats(model)]
    return min(chatting, key=lambda model: model.size or 1 << 62).id if chatting else None


def _chats(model: ModelInfo) -> bool:
    return not model.capabilities or "completion" in model.capabilities


def _url(app: ServerApp) -> str:
    server = app.settings.server
    host = server.host.strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- where it can be tried from here
    return f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
