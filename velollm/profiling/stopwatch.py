"""A layer that only looks at the clock: one goes around each layer that is to be timed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from time import perf_counter
from typing import Any, Protocol

import attrs

from velollm.backend import Backend, Layer
from velollm.continuation.said import Said
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest
from velollm.profiling.trace import ENGINE, Span

__all__ = ["Spans", "Stopwatch", "interpose", "name_of", "watch"]

KEPT = 500


class Place(Protocol):
    """Something that holds an engine."""

    backend: Backend


class Spans:
    """The spans of the last `kept` requests by their ids, in the order in which they began."""

    def __init__(self, *, kept: int = KEPT, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self._kept = kept
        self._found: dict[str, list[Span]] = {}
        self._queued: dict[str, float] = {}

    def begin(self, request: ChatRequest | EmbedRequest, name: str) -> Span:
        """A span of `request` begins."""
        spans = self._found.setdefault(request.context.request_id, [])
        if len(self._found) > self._kept:
            oldest = next(iter(self._found))
            del self._found[oldest]
            self._queued.pop(oldest, None)
        span = Span(name=name, begin=self.clock())
        spans.append(span)
        return span

    def end(self, request: ChatRequest | EmbedRequest, span: Span) -> None:
        """It is over; the marks of the request say how long it waited for its turn."""
        span.end = self.clock()
        marks = request.context.marks
        if "queued" in marks and "sent" in marks:
            self._queued[request.context.request_id] = marks["sent"] - marks["queued"]

    def show(self) -> list[dict[str, Any]]:
        """All of them as JSON, newest first; times are readings of one clock in seconds."""
        return [
            {"id": name, "queued": self._queued.get(name, 0.0), "spans": [attrs.asdict(span) for span in spans]}
            for name, spans in reversed(self._found.items())
        ]

    def clear(self) -> None:
        """Forget all spans."""
        self._found.clear()
        self._queued.clear()

    def take(self, request_id: str) -> tuple[list[Span], float]:
        """The spans of a request and how long it was queued; they are forgotten here."""
        return self._found.pop(request_id, []), self._queued.pop(request_id, 0.0)


class Stopwatch(Layer):
    """Times `inner` under `name`."""

    def __init__(self, inner: Backend, name: str, spans: Spans) -> None:
        super().__init__(inner)
        self._what = name
        self._spans = spans

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate, timed."""
        return self._timed(request, lambda: self.inner.chat(request))

    def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer, timed."""
        return self._timed(request, lambda: self.inner.resume(request, said))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embed, timed."""
        span = self._spans.begin(request, self._what)
        try:
            return await self.inner.embed(request)
        finally:
            self._spans.end(request, span)
            span.first = span.end
            span.busy = span.end - span.begin

    async def _timed(
        self, request: ChatRequest, start: Callable[[], AsyncGenerator[ChatEvent, None]]
    ) -> AsyncGenerator[ChatEvent, None]:
        clock = self._spans.clock
        span = self._spans.begin(request, self._what)
        events = start()
        try:
            while True:
                asked = clock()
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
                finally:
                    now = clock()
                    span.busy += now - asked
                if span.first is None:
                    span.first = now
                yield event
        finally:
            self._spans.end(request, span)
            await events.aclose()


def interpose(top: Backend, spans: Spans) -> Backend:
    """`top` with a stopwatch around each of its layers, and around what is below the last of them."""
    layer = top
    while isinstance(layer, Layer):
        below = layer.inner
        layer.inner = Stopwatch(below, name_of(below), spans)
        layer = below
    return Stopwatch(top, name_of(top), spans)


def watch(stack: Backend, engines: Iterable[Place], spans: Spans) -> Backend:
    """`stack` with stopwatches everywhere, the `engines` at its lower end included."""
    for place in engines:
        place.backend = Stopwatch(place.backend, ENGINE, spans)
    return interpose(stack, spans)


def name_of(backend: Backend) -> str:
    """What a layer is called: by its class, in words."""
    name = type(backend).__name__
    name = name.removesuffix("Layer") or name
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
    return "scheduling" if words == "backend pool" else words
