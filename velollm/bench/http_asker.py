"""Asks a server over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from time import perf_counter

from velollm.bench.connection import HttpClient
from velollm.bench.question import Question
from velollm.bench.record import Record
from velollm.bench.wires import PATHS, Asking, Reader, encode, wire_for
from velollm.errors import VeloError

__all__ = ["HttpAsker"]

AT_ONCE = 8  # pieces that are read before what has arrived meanwhile is looked at


class HttpAsker:
    """Asks through `client`, on the wire that suits the `kind` of the server.

    With a `name` requests say who they are: `x-request-id: NAME-NUMBER`.
    """

    def __init__(self, client: HttpClient, kind: str, asking: Asking, *, name: str = "") -> None:
        self._name = name
        self._client = client
        self._kind = kind
        self._asking = asking

    async def ask(self, question: Question, record: Record) -> AsyncGenerator[None, None]:
        """Ask; the pieces of the answer are read afterwards, a few in each step."""
        wire = wire_for(self._kind, question)
        body = encode(question, wire, self._asking)
        record.sent = perf_counter()
        try:
            more = f"x-request-id: {self._name}-{record.number}\r\n" if self._name else ""
            reply = await self._client.post(PATHS[wire], body, more)
        except VeloError as error:
            record.error = error.message
            return
        record.sent = reply.sent
        yield
        reader = Reader(wire, record)
        reader.head(reply.status, reply.headers)
        for number, (time, piece) in enumerate(reply.pieces, 1):
            reader.feed(time - reply.sent, piece)
            if number % AT_ONCE == 0:
                yield
        reader.end()
