"""The stack of `velollm serve` with a stopwatch around each layer, asked inside this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from time import perf_counter

from velollm.admission import AdmissionLayer
from velollm.asgi import Message
from velollm.bench.question import Question
from velollm.bench.record import Record
from velollm.bench.wires import PATHS, Asking, Reader, encode, wire_for
from velollm.config import Settings
from velollm.door import Door
from velollm.errors import VeloError
from velollm.observability import Metrics, ObserveLayer
from velollm.profiling.stopwatch import Spans, watch
from velollm.profiling.trace import Trace, trace_of
from velollm.server.backends import open_pool
from velollm.stack import build

__all__ = ["ProfiledStack"]


MOST_REQUESTS = 100_000


class ProfiledStack:
    """All layers that `settings` ask for, in front of the backends that they name. Use it as a context manager.

    It is an `Asker`: questions go through the door as a client's requests do, without a socket in between.
    """

    def __init__(self, settings: Settings, asking: Asking) -> None:
        self._spans = Spans(kept=MOST_REQUESTS)
        self._asking = asking
        metrics = Metrics()
        self.pool = open_pool(settings, on_health=metrics.set_backend)
        stack = ObserveLayer(AdmissionLayer(build(self.pool, settings, metrics)), metrics)
        self._backend = watch(stack, self.pool.members, self._spans)
        self._door = Door(self._backend)

    async def __aenter__(self) -> ProfiledStack:
        await self._backend.start()
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self._backend.aclose()

    async def ask(self, question: Question, record: Record) -> AsyncGenerator[None, None]:
        """Ask through the door."""
        wire = wire_for("openai", question)
        body = encode(question, wire, self._asking)
        name = f"profile-{record.number}"
        reader = Reader(wire, record)
        pieces: list[tuple[float, bytes]] = []
        sent_body = False

        async def receive() -> Message:
            nonlocal sent_body
            if sent_body:  # the client stays
                await asyncio.get_running_loop().create_future()
            sent_body = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                reader.head(message["status"], message["headers"])
            elif message.get("body"):
                pieces.append((perf_counter() - record.sent, message["body"]))

        record.sent = perf_counter()
        try:
            await self._door.serve(_scope(PATHS[wire], name), receive, send, PATHS[wire])
        except VeloError as error:  # after the stream had begun
            record.error = error.message
        yield
        for time, piece in pieces:
            reader.feed(time, piece)
        reader.end()

    def forget(self) -> None:
        """What was asked until now does not count."""
        self._spans.clear()

    def trace(self, record: Record, begun: float) -> Trace:
        """What became of the request of `record`; the run began at `begun` on the clock of `perf_counter`."""
        spans, queued = self._spans.take(f"profile-{record.number}")
        for span in spans:
            span.begin -= begun
            span.end -= begun
            span.first = None if span.first is None else span.first - begun
        return trace_of(record, spans, queued=queued)


def _scope(path: str, name: str) -> dict[str, object]:
    headers = [(b"content-type", b"application/json"), (b"x-request-id", name.encode())]
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0), "state": {},
    }  # fmt: skip
