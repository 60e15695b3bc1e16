"""The layer that gathers embedding requests: the first goes at once; those that come while it runs share the next call.

    a ─────▶ call 1                    nothing runs: no waiting
      b c d ─┐ 5 ms ─▶ call 2          together
        e f ─┘

A batch that is refused is halved until the input that it was refused for stands alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

import attrs

from velollm.backend import Backend, Layer
from velollm.batching.sharing import batch_key, share_tokens, size_of
from velollm.errors import BackendRefused, RequestError, VeloError
from velollm.messages import Embeddings, EmbedRequest, RequestContext

__all__ = ["BatchingLayer"]

WINDOW_SECONDS = 0.005
MOST_INPUTS = 64
MOST_CHARACTERS = 64_000
MOST_CALLS = 4  # of one kind at a time; further requests gather until one is over
LARGE = 16  # inputs: such a request is a batch of its own


@attrs.define(eq=False)
class _Waiting:
    """One client's request and the future of its answer."""

    request: EmbedRequest
    answer: asyncio.Future[Embeddings]


@attrs.define(eq=False)
class _Group:
    """The requests of one kind: those that gather, and how many calls are under way."""

    waiting: list[_Waiting] = attrs.field(factory=list)
    calls: int = 0
    timer: asyncio.TimerHandle | None = None


class BatchingLayer(Layer):
    """Gathers embedding requests for `window` seconds at most; `most` inputs go into one call."""

    def __init__(self, inner: Backend, *, window: float = WINDOW_SECONDS, most: int = MOST_INPUTS) -> None:
        super().__init__(inner)
        self._window = window
        self._most = most
        self._groups: dict[Hashable, _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input."""
        key = batch_key(request)
        if key is None or len(request.inputs) >= LARGE or size_of(request.inputs) > MOST_CHARACTERS // 2:
            return await self.inner.embed(request)
        group = self._groups.setdefault(key, _Group())
        if not group.calls and not group.waiting:
            group.calls += 1
            try:
                return await self.inner.embed(request)
            finally:
                self._over(key, group)
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        group.waiting.append(waiting)
        self._gather(key, group)
        try:
            return await waiting.answer
        finally:
            if waiting in group.waiting:  # the client left before it was sent
                group.waiting.remove(waiting)

    def _gather(self, key: Hashable, group: _Group) -> None:
        """Send what is enough for a call; else see to it that it is sent soon."""
        if group.calls >= MOST_CALLS:
            return
        if sum(len(one.request.inputs) for one in group.waiting) >= self._most:
            self._send(key, group)
        elif group.timer is None and group.waiting:
            group.timer = asyncio.get_running_loop().call_later(self._window, self._send, key, group)

    def _send(self, key: Hashable, group: _Group) -> None:
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        if not group.waiting or group.calls >= MOST_CALLS:
            return
        batch = self._take(group)
        group.calls += 1
        task = asyncio.get_running_loop().create_task(self._call(key, group, batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for one in batch:
            one.answer.add_done_callback(lambda _: task.cancel() if all(w.answer.cancelled() for w in batch) else None)
        self._gather(key, group)

    def _take(self, group: _Group) -> list[_Waiting]:
        """As many of those that wait as fit into one call."""
        batch: list[_Waiting] = []
        inputs = characters = 0
        while group.waiting:
            one = group.waiting[0].request
            inputs += len(one.inputs)
            characters += size_of(one.inputs)
            if batch and (inputs > self._most or characters > MOST_CHARACTERS):
                break
            batch.append(group.waiting.pop(0))
        return batch

    async def _call(self, key: Hashable, group: _Group, batch: list[_Waiting]) -> None:
        try:
            await self._ask([one for one in batch if not one.answer.done()])
        finally:
            for one in batch:
                if not one.answer.done():
                    one.answer.cancel()
            self._over(key, group)

    def _over(self, key: Hashable, group: _Group) -> None:
        """A call is over: those that have gathered meanwhile have waited long enough."""
        group.calls -= 1
        if group.waiting:
            self._send(key, group)
        elif not group.calls and self._groups.get(key) is group:
            del self._groups[key]

    async def _ask(self, batch: list[_Waiting]) -> None:
        """Ask for all of them; when that is refused, for each half."""
        if not batch:
            return
        inputs = [text for one in batch for text in one.request.inputs]
        first = batch[0].request
        context = first.context
        if len(batch) > 1:
            context = RequestContext(
                request_id=context.request_id, tenant=context.tenant, salt=context.salt, priority=context.priority
            )
        try:
            found = await self.inner.embed(attrs.evolve(first, inputs=inputs, context=context))
        except VeloError as error:
            if len(batch) == 1 or not _concerns_an_input(error):
                for one in batch:
                    _fail(one, error)
                return
            middle = len(batch) // 2
            await self._ask(batch[:middle])
            await self._ask(batch[middle:])
            return
        except Exception as error:
            for one in batch:
                _fail(one, error)
            return
        _share(found, batch, context)


def _concerns_an_input(error: VeloError) -> bool:
    """Whether an error may be the fault of one input: then the others are well without it."""
    if isinstance(error, BackendRefused):
        return 400 <= error.status < 500 and error.status not in (401, 403, 404, 429)
    return isinstance(error, RequestError) and error.status not in (401, 403, 404, 429)


def _fail(one: _Waiting, error: Exception) -> None:
    if not one.answer.done():
        one.answer.set_exception(error)


def _share(found: Embeddings, batch: list[_Waiting], context: RequestContext) -> None:
    """Give everybody its own vectors, and its part of the tokens."""
    tokens = share_tokens(found.prompt_tokens, [size_of(one.request.inputs) for one in batch])
    place = 0
    for one, own in zip(batch, tokens, strict=True):
        vectors = found.vectors[place : place + len(one.request.inputs)]
        place += len(one.request.inputs)
        if one.request.context is not context:
            one.request.context.headers.update(context.headers)
        if not one.answer.done():
            one.answer.set_result(attrs.evolve(found, vectors=vectors, prompt_tokens=own))
