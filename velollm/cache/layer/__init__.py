"""The cache in the stack: answers from what is kept, shares what is in the air, keeps what ends well.

    request ─▶ keys ─▶ kept? ─▶ replayed                                     x-velollm-cache: hit-..., age
                  └─▶ in the air? ─▶ read along                              hit-exact, age 0
                  └─▶ engine ─▶ a Flight that others may join ─▶ kept        miss

A cache that fails steps aside: the request goes through, the failure is counted and logged once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from time import monotonic
from typing import Any, TypeAlias, TypeVar

import attrs

from velollm.backend import Backend, Layer, layers
from velollm.cache.answers import BadAnswer, keep_answer, replay_answer
from velollm.cache.body import chat_body
from velollm.cache.eligibility import Controls, Tier
from velollm.cache.layer.embedding import BackendEmbedder
from velollm.cache.layer.flight import Flight
from velollm.cache.layer.models import Models
from velollm.cache.request import Request
from velollm.cache.response_cache import Mode, ResponseCache
from velollm.cache.results import Found
from velollm.collector import Collector
from velollm.control_headers import CACHE_TTL, TOOL_CALLS
from velollm.messages import ChatEvent, ChatRequest, RequestContext

__all__ = ["HEADER", "CacheLayer", "cache_of", "key_tag"]

logger = logging.getLogger("velollm.cache")

HEADER = "x-velollm-cache"
BACKEND_HEADER = "x-velollm-backend"
TRUNCATED_HEADER = "x-velollm-truncated"
SOON_SECONDS, SOON_MOST = 0.02, 16  # then so many at a time, for others are waiting, too
# So long the end of an answer waits for a store that outlives us: what was answered is not lost with this process.
WRITTEN_SECONDS = 0.04
CREDENTIALS = ("authorization", "x-api-key", "cookie")

T = TypeVar("T")
Observer = Callable[[str, str], None]


def _nobody(tier: str, outcome: str) -> None:
    """For when nobody counts."""


class CacheLayer(Layer):
    """Answers of `cache` in front of a backend.

    `semantic` overrides the mode of the semantic tier for the models it names. `tenant_header` is a header of requests
    that parts tenants beside their keys; with `by_credentials`, so do the credentials they bring, which is for apps
    that look at them themselves. `models` asks the backend which build a model is. `observer` is told tier and outcome
    of each request. A cache that the layer `owns` is closed with it, another one only written out.
    """

    def __init__(
        self,
        inner: Backend,
        cache: ResponseCache,
        *,
        semantic: Mapping[str, Mode] | None = None,
        tenant_header: str | None = None,
        by_credentials: bool = False,
        models: bool = True,
        owns: bool = True,
        observer: Observer | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(inner)
        self.cache = cache
        self._modes: dict[str, dict[Tier, Mode]] = {
            model: {**cache.modes, "semantic": mode} for model, mode in (semantic or {}).items()
        }
        self._tenant_header = tenant_header.lower() if tenant_header else None
        self._by_credentials = by_credentials
        self._models = Models(inner.models, clock) if models else None
        self._owns = owns
        self.count = observer or _nobody
        self._clock = clock
        self._flights: dict[int, list[_Flying]] = {}  # by the sketch of what was asked
        self._logged = False

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate, or say again."""
        said, upstream, landing = await self._answer(request)
        for event in said:
            yield event
        if upstream is None:
            return
        try:
            async for event in upstream:
                if landing is not None:
                    landing.see(event)
                yield event
        finally:
            await upstream.aclose()
        if landing is not None:
            await landing.land()

    async def aclose(self) -> None:
        """Close the backend, then the cache."""
        if self._models is not None:
            self._models.close()
        await self.inner.aclose()
        await asyncio.to_thread(self.cache.close if self._owns else self.cache.flush)

    # ---- who answers ----

    async def _answer(self, request: ChatRequest) -> _Plan:
        headers, asks = request.context.headers, request.context.client_headers
        controls = Controls.from_headers(asks.get("cache-control"), asks.get(CACHE_TTL))
        try:
            if self._models is not None and not self._models.answered:
                await self._models.wait()
            asked = self._prepare(request, controls)
            shares = _may_share(asked, request)
            if shares and (flying := self._flying(asked, request)) is not None:
                return (), self._join(flying, request), None
            modes = self._modes.get(request.model)
            sure = None if self.cache.store_blocks else self.cache.find_sure(asked, modes)
            found = await self._find(asked, modes) if sure is None else sure
            hit = found.hit
            if hit is not None:
                try:
                    events = replay_answer(hit.answer, in_pieces=request.stream)
                except BadAnswer as error:
                    logger.debug("a stored answer is not used: %s", error)
                    found = Found()
                else:
                    self.count(hit.tier, "hit")
                    headers[HEADER] = hit.header
                    headers["age"] = str(int(hit.age))
                    return events, None, None
        except Exception as error:  # whatever is wrong with the cache, the request is answered
            self.failed("asked", error)
            return (), self.inner.chat(request), None
        headers[HEADER] = found.header
        if asked.eligibility.bypass:
            self.count("none", "bypass")
            return (), self.inner.chat(request), None
        if shares and (flying := self._flying(asked, request)) is not None:  # while the cache was asked
            return (), self._join(flying, request), None
        self.count("semantic" if found.shadow else "none", "shadow" if found.shadow else "miss")
        landing = _Landing(self, asked, found, request)
        if not shares:  # nobody may join: there is no need of a flight
            return (), self.inner.chat(request), landing
        return (), self._fly(landing, request), None

    def _prepare(self, request: ChatRequest, controls: Controls) -> Request:
        headers = request.context.client_headers
        body = chat_body(request)
        variant = headers.get(TOOL_CALLS, "")  # what the layers below make of the answer
        model = None if self._models is None else self._models.get(request.model)
        if model is not None and model.digest:
            variant = f"{variant}\n{model.digest}" if variant else model.digest
            if "thinking" not in model.capabilities:  # without a digest, it is only a guess
                body.pop("think", None)
        return self.cache.prepare(self._tenant(request.context), body, controls, variant=variant)

    def _tenant(self, context: RequestContext) -> str | None:
        if not (context.tenant or context.salt or self._by_credentials or self._tenant_header):
            return None
        headers = context.client_headers
        parts = [context.tenant, context.salt]  # whoever gets the name of a revoked key gets none of its answers
        if self._by_credentials:
            parts += [headers.get(name, "") for name in CREDENTIALS]
        if self._tenant_header:
            parts.append(headers.get(self._tenant_header, ""))
        return "\x00".join(parts) if any(parts) else None

    async def _find(self, asked: Request, modes: Mapping[Tier, Mode] | None) -> Found:
        """What takes time, off the event loop: a store beyond the process, or an embedder."""
        cache = self.cache
        return await self.off_loop(asked, cache.find if cache.store_blocks else cache.find_semantic, asked, modes)

    def _flying(self, asked: Request, request: ChatRequest) -> _Flying | None:
        """The same request, where it is in the air."""
        for flying in self._flights.get(asked.sketch, ()) if self._flights else ():
            same = flying.asked.key == asked.key and flying.asked.check == asked.check
            if same and flying.leader.priority == request.context.priority:
                return flying
        return None

    def _join(self, flying: _Flying, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.count("exact", "shared")
        return _read_along(flying.flight, flying.leader, request.context)

    def _fly(self, landing: _Landing, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        sketch = landing.asked.sketch

        def close() -> None:
            others = self._flights[sketch]
            others.remove(flying)
            if not others:
                del self._flights[sketch]

        flight = Flight(self.inner.chat(request), on_event=landing.see, on_end=landing.land, on_close=close)
        flying = _Flying(landing.asked, flight, request.context)
        self._flights.setdefault(sketch, []).append(flying)
        return flight.read()

    # ---- for a landing ----

    def takes_time(self, asked: Request) -> bool:
        """Whether the store or the embedder keeps a request waiting."""
        return self.cache.store_blocks or self.cache.embeds(asked)

    def keep_soon(self, asked: Request, keep: Callable[[], None]) -> None:
        """Have an answer kept in a moment, with others."""
        if self.cache.keep_soon(asked, keep):
            asyncio.get_running_loop().call_later(SOON_SECONDS, self._settle)

    def _settle(self) -> None:
        if self.cache.settle(SOON_MOST):
            asyncio.get_running_loop().call_soon(self._settle)

    async def off_loop(self, asked: Request, call: Callable[..., T], *arguments: Any) -> T:
        """Call the cache: in a thread where its store or its embedder takes time."""
        return await self.in_thread(call, *arguments) if self.takes_time(asked) else call(*arguments)

    async def in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call the cache in a thread."""
        if isinstance(self.cache.embedder, BackendEmbedder):
            self.cache.embedder.bind(asyncio.get_running_loop())
        return await asyncio.to_thread(call, *arguments)

    def failed(self, doing: str, error: Exception) -> None:
        """Step aside: count it, and say it once."""
        self.count("none", "error")
        level = logging.DEBUG if self._logged else logging.ERROR
        self._logged = True
        logger.log(level, "the cache could not be %s and stepped aside: %r", doing, error, exc_info=error)

    def now(self) -> float:
        """Seconds, as the layer's clock counts them."""
        return self._clock()


# What is kept and said again, or the events that go on, with what becomes of them when they are this request's alone.
_Plan: TypeAlias = "tuple[Iterable[ChatEvent], AsyncGenerator[ChatEvent, None] | None, _Landing | None]"


@attrs.frozen(eq=False)
class _Flying:
    """A request in the air, and for whom it was sent first."""

    asked: Request
    flight: Flight
    leader: RequestContext


class _Landing:
    """What becomes of one upstream answer: it is kept if it ended well, and compared with what would have been said."""

    __slots__ = ("_began", "_bytes", "_collector", "_found", "_layer", "_request", "asked")

    def __init__(self, layer: CacheLayer, asked: Request, found: Found, request: ChatRequest) -> None:
        self.asked = asked
        self._layer = layer
        self._found = found
        self._request = request
        self._began = layer.now()
        self._collector: Collector | None = Collector()
        self._bytes = 0

    def see(self, event: ChatEvent) -> None:
        """Collect, as long as it may still fit."""
        if self._collector is not None:
            self._bytes += len(event.text) + len(event.reasoning)
            for delta in event.tool_calls:
                self._bytes += len(delta.arguments)
            if self._bytes > self._layer.cache.size:
                self._collector = None
            else:
                self._collector.add(event)

    async def land(self) -> None:
        """The answer is there in full."""
        layer, context = self._layer, self._request.context
        if self._collector is None or TRUNCATED_HEADER in context.headers:
            return  # too large, or an answer to half of the question
        keep = partial(self._keep, self._collector, layer.now() - self._began, layer.cache.now())
        if layer.takes_time(self.asked) or layer.cache.store_persists:
            await layer.in_thread(keep)
        elif "semantic" in self.asked.eligibility.tiers and (layer.cache.may_compare or not self._found.compare):
            keep()  # the next question may be answered from it, or compared with it, in whatever words
        else:
            layer.keep_soon(self.asked, keep)

    def _keep(self, collector: Collector, seconds: float, now: float) -> None:
        tenant = self._request.context.tenant
        tags = (key_tag(tenant),) if tenant else ()
        try:
            answer = collector.answer()
            if answer.complete:
                self._enter(keep_answer(answer), tags, seconds, now)
        except Exception as error:  # the answer itself is well
            self._layer.failed("filled", error)

    def _enter(self, kept: Mapping[str, Any], tags: tuple[str, ...], seconds: float, now: float) -> None:
        cache, asked, route = self._layer.cache, self.asked, self._request.model
        if self._found.compare:
            if cache.compare(asked, kept, route=route, seconds=seconds, tags=tags) is not None:
                self._layer.count("semantic", "shadow")
        elif asked.eligibility.read and "semantic" in asked.eligibility.tiers:
            cache.record_shadow(asked, self._found.shadow, kept, route=route, seconds=seconds, tags=tags)
        receipt = cache.keep(asked, kept, tags=tags, now=now)
        if cache.store_persists and not cache.store_degraded:
            receipt.wait(WRITTEN_SECONDS)


def _may_share(asked: Request, request: ChatRequest) -> bool:
    """Whether identical requests in flight may share an answer, or each is to have its own.

    Those that ask for the luck of the draw are not served from one draw, and one that has a deadline may be refused
    where another would wait."""
    sampled = request.temperature is not None and request.temperature > 0 and request.seed is None
    return asked.eligibility.read and not sampled and request.context.deadline is None


async def _read_along(
    flight: Flight, leader: RequestContext, context: RequestContext
) -> AsyncGenerator[ChatEvent, None]:
    """The events of another's request. Their bytes were made for its client, so they are left out, and so is its id."""
    async with aclosing(flight.read()) as events:
        first = True
        async for event in events:
            if first:
                first = False
                context.headers.update({HEADER: "hit-exact", "age": "0"})
                if BACKEND_HEADER in leader.headers:
                    context.headers[BACKEND_HEADER] = leader.headers[BACKEND_HEADER]
            meta = None if event.meta is None else attrs.evolve(event.meta, id="")
            yield attrs.evolve(event, wire=None, raw=None, meta=meta)


def key_tag(name: str) -> str:
    """The tag of entries that were kept for a key, by which they can be purged."""
    return f"key:{name}"


def cache_of(backend: Backend) -> ResponseCache | None:
    """The cache in a stack of layers, if there is one."""
    return next((layer.cache for layer in layers(backend) if isinstance(layer, CacheLayer)), None)
