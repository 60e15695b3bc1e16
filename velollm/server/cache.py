"""The cache's own paths: GET /velollm/api/cache, GET /velollm/api/cache/export, POST /velollm/api/cache/purge.

Where keys are set, one that is no admin's sees counters without examples, and reaches its own entries alone.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import anyio.to_thread
import orjson

from velollm.admission import CURRENT
from velollm.api.openai import render_error
from velollm.asgi import ASGIApp, Receive, Responder, Scope, Send
from velollm.cache import ResponseCache
from velollm.cache.keys import tenant_digest
from velollm.cache.layer import key_tag
from velollm.cache.overview import export_entries, overview
from velollm.errors import MethodNotAllowed, RequestError, VeloError

__all__ = ["CacheApi"]

PATH = "/velollm/api/cache"
CRITERIA = ("model", "tag", "tenant")


class CacheApi:
    """ASGI middleware, behind the gate that says whose key a request came with."""

    def __init__(self, app: ASGIApp, cache: ResponseCache) -> None:
        self.app = app
        self._cache = cache
        self._paths = {
            PATH: ("GET", self._overview),
            f"{PATH}/export": ("GET", self._export),
            f"{PATH}/purge": ("POST", self._purge),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self.app(scope, receive, send)
            return
        method, answer = self._paths[scope["path"]]
        kind = b"application/json"
        more: tuple[tuple[bytes, bytes], ...] = ()
        try:
            if scope["method"] != method:
                raise MethodNotAllowed(scope["path"], scope["method"], (method,))
            key = CURRENT.get()
            # As the layer has it: whoever gets the name of a revoked key sees none of its entries.
            tenant = None if key is None or key.admin else f"{key.name}\x00{key.cache_salt}"
            status, body = 200, await anyio.to_thread.run_sync(answer, scope, tenant)
            if scope["path"].endswith("/export"):
                kind = b"application/x-ndjson"
        except VeloError as error:
            more = error.headers
            status, body = error.status, orjson.dumps(render_error(error, ""))
        await Responder(send).whole(status, [(b"content-type", kind), (b"cache-control", b"no-store"), *more], body)

    def _overview(self, scope: Scope, tenant: str | None) -> bytes:
        return orjson.dumps(overview(self._cache, examples=tenant is None))

    def _export(self, scope: Scope, tenant: str | None) -> bytes:
        owner = None if tenant is None else tenant_digest(tenant)
        return b"".join(orjson.dumps(entry) + b"\n" for entry in export_entries(self._cache, tenant=owner))

    def _purge(self, scope: Scope, tenant: str | None) -> bytes:
        given = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        unknown = given.keys() - {*CRITERIA, "all"}
        if unknown:
            raise RequestError(f"a purge knows {', '.join(CRITERIA)} and all, not {sorted(unknown)[0][:50]!r}")
        chosen: dict[str, Any] = {name: given[name][-1] for name in CRITERIA if name in given}
        if not chosen and "all" not in given:
            raise RequestError("name what to purge: ?model=, ?tag=, ?tenant=, or ?all=1 for everything")
        if "tenant" in chosen:
            if "tag" in chosen:
                raise RequestError("tag and tenant cannot be given together")
            chosen["tag"] = key_tag(chosen.pop("tenant"))
        if tenant is not None:
            chosen["tenant"] = tenant
        return orjson.dumps({"purged": self._cache.purge(**chosen)})
