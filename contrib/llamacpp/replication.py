"""Carries the beginning that prompts share from slot to slot of a llama-server, by its own saving and restoring.

request ──▶ a free slot ──▶ restored | primed and saved | as it is ──▶ the request, with `id_slot`
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import attrs

from velollm.api.openai.upstream import dump, encode_messages, encode_tools
from velollm.contrib.llamacpp.slots import WORTH, Choice, Saved, SlotBook, common_length
from velollm.errors import BackendRefused, VeloError
from velollm.messages import ChatRequest
from velollm.transport import Upstream

__all__ = ["Replicator", "in_slot", "text_of"]

JSON: TypeAlias = dict[str, Any]

logger = logging.getLogger("velollm.llamacpp")

LEAST_TOKENS = 128  # fewer are computed anew
DISAPPOINTMENTS = 3


class Replicator:
    """Places requests on the `count` slots below `root` (the path before `/slots`) of a server that can save slots.

    `tokens_of` gives a request's prompt as token ids; more than `most_tokens` are not saved. An `exclusive` server has
    no other clients.
    """

    def __init__(
        self,
        upstream: Upstream,
        root: str,
        count: int,
        tokens_of: Callable[[ChatRequest], Awaitable[list[int]]],
        *,
        exclusive: bool = False,
        most_tokens: int | None = None,
    ) -> None:
        self.active = count > 1
        self._upstream = upstream
        self._root = root
        self._tokens_of = tokens_of
        self._exclusive = exclusive
        self._most_tokens = most_tokens
        self._book = SlotBook(count, f"velollm-{secrets.token_hex(4)}")
        self._free = asyncio.Semaphore(count)
        self._priming: dict[str, asyncio.Event] = {}
        self._entering = asyncio.Lock()
        self._placed = 0
        self._alone = True
        self._disappointed = 0

    async def probe(self) -> None:
        """Find out whether slots can be saved: an action that there is not is refused in other words then."""
        saves = False
        try:
            await self._post("slots/0?action=none", {})
        except BackendRefused as error:
            saves = error.status == 400 and "action" in error.message.lower()
        except VeloError:
            pass  # it is no llama-server, or cannot say
        self.active = self.active and saves

    @asynccontextmanager
    async def place(self, request: ChatRequest) -> AsyncIterator[Placed | None]:
        """A slot for as long as the request takes; None when the server is to choose, for others use it too."""
        async with self._entering:
            if not self._placed:
                self._alone = self.active and (self._exclusive or await self._is_alone())
            alone = self._alone
            self._placed += alone
        if not alone:
            yield None
            return
        try:
            text = text_of(request)
            while (coming := self._coming(text)) is not None:
                await coming.wait()
            async with self._free:
                choice = self._book.choose(text, request)
                try:
                    tokens = await self._prepare(choice, request)
                    yield Placed(choice.slot, tokens, self)
                finally:
                    self._book.release(choice.slot)
        finally:
            self._placed -= 1

    def judge(self, wanted: int, cached: int) -> None:
        """Of a beginning of `wanted` tokens that was put into a slot, `cached` were used: recurrent models cannot."""
        self._disappointed = self._disappointed + 1 if cached < wanted // 2 else 0
        if self._disappointed >= DISAPPOINTMENTS and self.active:
            self.active = False
            logger.info("what is restored into slots is not used there: no more of it")

    def _coming(self, text: str) -> asyncio.Event | None:
        for shared, done in self._priming.items():
            if common_length(shared, text) >= max(WORTH, len(shared) - WORTH):
                return done
        return None

    async def _prepare(self, choice: Choice, request: ChatRequest) -> int:
        """Have the shared beginning in the slot; its length in tokens, 0 when there is none, or it did not work."""
        if choice.restore is None and choice.prime is None:
            return 0
        done = asyncio.Event()
        if choice.prime is not None:
            self._priming[choice.shared] = done
        try:
            if choice.restore is not None:
                return await self._restore(choice.slot, choice.restore)
            return await self._prime(choice, request)
        except VeloError as error:
            logger.info("a shared beginning was not carried to slot %d: %s", choice.slot, error.message)
            if choice.restore is not None:
                self._book.drop(choice.restore.name)
            return 0
        finally:
            done.set()
            if choice.prime is not None and self._priming.get(choice.shared) is done:
                del self._priming[choice.shared]

    async def _restore(self, slot: int, saved: Saved) -> int:
        await self._post(f"slots/{slot}?action=restore", {"filename": saved.name})
        return saved.tokens

    async def _prime(self, choice: Choice, request: ChatRequest) -> int:
        mine, others = await self._tokens_of(request), await self._tokens_of(choice.prime)
        count = next((at for at, (one, two) in enumerate(zip(mine, others, strict=False)) if one != two), None)
        count = min(len(mine) - 1, len(others)) if count is None else min(count, len(mine) - 1)
        if count < LEAST_TOKENS or count > (self._most_tokens or count):
            return 0
        body = {"prompt": mine[:count], "n_predict": 0, "id_slot": choice.slot, "cache_prompt": True}
        await self._post("completion", {**body, **({"model": request.model} if request.model else {})})
        name = self._book.file_name()
        self._book.drop(name)
        await self._post(f"slots/{choice.slot}?action=save", {"filename": name})
        self._book.keep(Saved(name, choice.shared, count))
        return count

    async def _is_alone(self) -> bool:
        try:
            slots = await self._upstream.get_json(f"{self._root}/slots")
        except VeloError:  # it does not tell
            return True
        return not (isinstance(slots, list) and any(one.get("is_processing") for one in slots if isinstance(one, dict)))

    async def _post(self, path: str, body: JSON) -> None:
        response = await self._upstream.post_json(f"{self._root}/{path}", dump(body))
        async with response:
            await response.read()


@attrs.frozen
class Placed:
    """A request's place: `slot`, in which the first `tokens` tokens of its prompt are."""

    slot: int
    tokens: int
    replicator: Replicator

    def judge(self, cached: int | None) -> None:
        """So many tokens the server found in the slot."""
        if self.tokens and cached is not None:
            self.replicator.judge(self.tokens, cached)


def text_of(request: ChatRequest) -> str:
    """What the prompt is made of, the first in front: equal beginnings give equal beginnings of the prompt.

    That of a conversation goes on where it had ended a turn before.
    """
    parts = [dump(encode_tools(request.tools)), dump(encode_messages(request.messages))[:-1]]
    prompt = request.prompt or ""
    return request.model + b"".join(parts).decode() + (prompt if isinstance(prompt, str) else str(prompt)[:-1])


def in_slot(request: ChatRequest, slot: int) -> ChatRequest:
    """The request with `id_slot`; the client's own bytes, where they are sent, say it too."""
    source = request.source
    if source is not None:
        body = source.body[source.body.index(b"{") + 1 :]
        source = attrs.evolve(source, body=b'{"id_slot":%d,' % slot + body, payload={**source.payload, "id_slot": slot})
    return request.replace(extra={**request.extra, "id_slot": slot}, source=source)
