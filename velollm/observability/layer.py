"""The outermost layer: times and counts what passes through, changes nothing.

It costs about a third of a microsecond an event; nothing is kept of what was said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from time import monotonic

from velollm.backend import Backend, Layer
from velollm.errors import VeloError
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, Usage
from velollm.observability.metrics import LONGEST_NAME, Metrics, ModelMetrics
from velollm.observability.record import CURRENT, Record, write

__all__ = ["ObserveLayer"]


class ObserveLayer(Layer):
    """Feeds `metrics` and the log, and writes `server-timing`. `clock` gives seconds, as `time.monotonic` does."""

    def __init__(
        self, inner: Backend, metrics: Metrics | None = None, *, clock: Callable[[], float] = monotonic
    ) -> None:
        super().__init__(inner)
        self.metrics = metrics or Metrics()
        self._clock = clock

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate, watched."""
        clock = self._clock
        watch = _Watch(self.metrics, request, clock())
        arrived = watch.times.append
        begun = False
        events = self.inner.chat(request)
        try:
            async for event in events:
                arrived(clock())
                if not begun:
                    begun = True
                    watch.first_event(event)
                if event.pieces > 1:
                    watch.came_together(event.pieces)
                if event.finish_reason is not None or event.usage is not None:
                    watch.last_event(event)
                yield event
            watch.outcome = "ok"
        except (asyncio.CancelledError, GeneratorExit):
            watch.outcome = "ok" if watch.finish else "cancelled"
            raise
        except VeloError as error:
            watch.outcome = _code(error)
            raise
        finally:
            watch.done(clock())
            await events.aclose()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embed, watched."""
        watch = _Watch(self.metrics, request, self._clock())
        try:
            result = await self.inner.embed(request)
            watch.adopt()
            watch.usage = Usage(prompt_tokens=result.prompt_tokens)
            watch.outcome, watch.finish = "ok", "stop"
            return result
        except asyncio.CancelledError:
            watch.outcome = "cancelled"
            raise
        except VeloError as error:
            watch.outcome = _code(error)
            raise
        finally:
            watch.done(self._clock())


def _code(error: VeloError) -> str:
    """The code of the error's class: a word of an engine's own could be anything."""
    return type(error).code


class _Watch:
    """One request on its way. `times` are those of its events."""

    __slots__ = (
        "_context", "_metrics", "_name", "_received", "_stream", "_ttft", "finish", "model", "outcome", "times",
        "usage",
    )  # fmt: skip

    def __init__(self, metrics: Metrics, request: ChatRequest | EmbedRequest, now: float) -> None:
        self._metrics = metrics
        self._context = request.context
        self._name = request.model
        self._stream = isinstance(request, ChatRequest) and request.stream
        self._received = request.context.marks.get("received", now)
        self._ttft: float | None = None
        self.model: ModelMetrics = metrics.known(request.model)
        self.model.running += 1
        self.times: list[float] = []
        self.usage: Usage | None = None
        self.finish = ""
        self.outcome = "internal_error"

    def adopt(self) -> None:
        """The model has answered: its name is real."""
        model = self._metrics.answered(self._name)
        if model is not self.model:
            self.model.running -= 1
            model.running += 1
            self.model = model

    def first_event(self, event: ChatEvent) -> None:
        """The answer begins."""
        if not self._name and event.meta is not None:
            self._name = event.meta.model
        self.adopt()
        if self._stream:
            now = self.times[0]
            self._ttft = now - self._received
            self._context.marks["first_token"] = now
            self._context.headers["server-timing"] = self._server_timing(self._ttft - self._queued())

    def came_together(self, pieces: int) -> None:
        """The last event was several, which came at once."""
        self.times += self.times[-1:] * (pieces - 1)

    def last_event(self, event: ChatEvent) -> None:
        """A choice ends, or the usage is told."""
        if event.usage is not None:
            self.usage = event.usage
        if event.finish_reason is not None:
            self.finish = event.finish_reason
            if self._stream and event.raw is None:  # what goes out as it came is not opened up for this
                total = self.times[-1] - self._received
                self._context.trailer["timing"] = {"prefill": _ms(self._ttft or 0.0), "total": _ms(total)}

    def done(self, now: float) -> None:
        """It is over, well or not."""
        total = now - self._received
        self.model.running -= 1
        self._context.marks["done"] = now
        if self.outcome == "ok" and not self._stream:
            timings = self.usage.timings if self.usage is not None else None  # nobody else knows: all came at once
            prefill = timings.prefill if timings is not None else None
            self._context.headers["server-timing"] = self._server_timing(prefill, total)
        self._count(total)
        self._log(total)

    def _count(self, total: float) -> None:
        model, usage = self.model, self.usage
        if self.outcome == "ok" or self.outcome == "cancelled":
            reason = self.finish if self.outcome == "ok" else "abort"
            model.finished[reason] = model.finished.get(reason, 0) + 1
        else:
            model.failed[self.outcome] = model.failed.get(self.outcome, 0) + 1
        if self.outcome == "ok":
            model.e2e.add(total)
        if self._ttft is not None:
            model.ttft.add(self._ttft)
            model.itl.add_gaps(self.times)
        if usage is not None:
            model.prompt_tokens += usage.prompt_tokens
            model.generation_tokens += usage.completion_tokens
            if usage.cached_tokens is not None:
                model.queried_tokens += usage.prompt_tokens
                model.cached_tokens += usage.cached_tokens

    def _queued(self) -> float:
        marks = self._context.marks
        return marks["sent"] - marks["queued"] if "queued" in marks and "sent" in marks else 0.0

    def _server_timing(self, prefill: float | None, total: float | None = None) -> str:
        phases = f"queue;dur={1000 * self._queued():.1f}" if "sent" in self._context.marks else ""
        if prefill is not None:
            phases += f", prefill;dur={1000 * max(prefill, 0.0):.1f}"
        if total is not None:
            phases += f", total;dur={1000 * total:.1f}"
        return phases.removeprefix(", ")

    def _log(self, total: float) -> None:
        kept = CURRENT.get()
        record = Record() if kept is None else kept
        record.id = self._context.request_id
        record.model = self._name[:LONGEST_NAME]
        record.backend = self._context.headers.get("x-velollm-backend", "")
        record.outcome = self.outcome
        record.finish = self.finish
        record.ttft = self._ttft
        if self.usage is not None:
            record.prompt_tokens = self.usage.prompt_tokens
            record.completion_tokens = self.usage.completion_tokens
            record.cached_tokens = self.usage.cached_tokens
        if kept is None:
            record.duration = total
            write(record)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1) if seconds > 0.0 else 0.0
