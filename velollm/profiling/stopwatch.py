"""A layer that only looks at the clock: one goes around each layer that is to be timed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from time import perf_counter

from velollm.backend import Backend, Layer
from velollm.continuation.said import Said
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest
from velollm.profiling.trace import Span

__all__ = ["Spans", "Stopwatch", "interpose", "name_of"]

MOST_REQUESTS = 10_000


class Spans:
    """The spans of requests by their ids, in the order in which they began."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self._found: dict[str, list[Span]] = {}
        self._queued: dict[str, float] = {}

    def begin(self, request: ChatRequest | EmbedRequest, name: str) -> Span:
        """A span of `request` begins."""
        if len(self._found) >= MOST_REQUESTS:
            self.clear()
        spans = self._found.setdefault(request.context.request_id, [])
        span = Span(name=name, begin=self.clock())
        spans.append(span)
        return span

    def end(self, request: ChatRequest | EmbedRequest, span: Span) -> None:
        """It is over; the marks of the request say how long it waited for its turn."""
        span.end = self.clock()
        marks = request.context.marks
        if "queued" in marks and "sent" in marks:
            self._queued[request.context.request_id] = marks["sent"] - marks["queued"]

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


def name_of(backend: Backend) -> str:
    """What a layer is called: by its class, in words."""
    name = type(backend).__name__
    name = name.removesuffix("Layer") or name
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
    return "scheduling" if words == "backend pool" else words
