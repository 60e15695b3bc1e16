"""Several backends as one: each request goes to one that has its model, and to the next when that one is down.

Once an answer has begun, nothing is tried again: what the client has read cannot be taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from time import monotonic
from typing import TypeVar

import attrs

from velollm.backend import Backend, Capabilities, HttpRequest, HttpResponse
from velollm.errors import BackendError, ConfigError, ModelNotFound, PathNotFound, VeloError
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, ModelInfo, RequestContext
from velollm.routing.member import Member, same_model
from velollm.routing.retries import MOST_ATTEMPTS, Purse, may_retry, pause_before

__all__ = ["BackendPool"]

T = TypeVar("T")
Target = tuple[Member, str]

FRESH_SECONDS = 5.0
MISSING_SECONDS = 1.0  # how old a list may be that a model is missing from
LIST_SECONDS = 5.0
BACKEND_HEADER = "x-velollm-backend"


def _unheard(name: str, up: bool) -> None:
    """Health that nobody wants to know."""


class BackendPool(Backend):
    """`backends` behind one name for each model.

    A name is looked up as it is, without `:latest`, among `aliases` (other name: name), and as `BACKEND/model`. With a
    single backend, what is not found is passed on, and it may answer for itself. `only` restricts the models of a
    backend; `num_ctx` is the context of models, in tokens, for requests that do not say; `on_health` hears of every
    backend that goes down or comes back.
    """

    name = "pool"

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        aliases: Mapping[str, str] = {},
        only: Mapping[str, Collection[str]] = {},
        num_ctx: Mapping[str, int] = {},
        on_health: Callable[[str, bool], None] = _unheard,
        fresh: float = FRESH_SECONDS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        if not backends:
            raise ConfigError("a pool needs at least one backend")
        self.members = [
            Member(backend, only=only.get(backend.name, ()), fresh=fresh, seconds=LIST_SECONDS, clock=clock,
                   on_health=on_health)
            for backend in backends
        ]  # fmt: skip
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ConfigError(f"two backends are called {max(names, key=names.count)!r}; give them names of their own")
        self._aliases = dict(aliases)
        self._num_ctx = dict(num_ctx)
        self._purse = Purse()
        self._single = self.members[0] if len(self.members) == 1 else None
        self._plain = self._single is not None and not aliases and not num_ctx and not self._single.only

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """Every dialect that some backend speaks; beyond that, only what all of them can do."""
        each = [member.backend.capabilities for member in self.members]
        if len(each) == 1:
            return each[0]
        return Capabilities(
            dialects=frozenset().union(*(one.dialects for one in each)),
            json_schema=all(one.json_schema for one in each),
            grammar=all(one.grammar for one in each),
            tools=all(one.tools for one in each),
            tool_choice=all(one.tool_choice for one in each),
            tokenize=all(one.tokenize for one in each),
            slots=all(one.slots for one in each),
            priority=all(one.priority for one in each),
        )

    # ---- what is answered ----

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate, by the first backend that can."""
        targets = await self._targets(request.model)
        attempt = 1
        while True:
            member, model = targets[(attempt - 1) % len(targets)]
            asked = self._named(request, model)
            events = member.backend.chat(asked)
            begun = False
            try:
                async for event in events:
                    if not begun:
                        begun = True
                        self._answered(member, request.context)
                    yield event
                return
            except VeloError as error:
                if begun:
                    raise
                attempt += 1
                await self._before(attempt, targets, member, error)
            finally:
                await events.aclose()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input."""

        async def ask(member: Member, model: str) -> Embeddings:
            changed = request if model == request.model else attrs.evolve(request, model=model)
            result = await member.backend.embed(changed)
            request.context.headers[BACKEND_HEADER] = member.name
            return result

        return await self._call(request.model, ask)

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt."""
        return await self._call(
            request.model, lambda member, model: member.backend.count_tokens(self._named(request, model))
        )

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        return await self._call(
            model, lambda member, name: member.backend.tokenize(name, text, add_special=add_special)
        )

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids."""
        return await self._call(model, lambda member, name: member.backend.detokenize(name, tokens))

    async def models(self) -> list[ModelInfo]:
        """What all of them serve together, and the aliases. Raises only when none of them answers."""
        await self._refresh()
        if all(member.error is not None for member in self.members):
            raise self._first_error()
        served: dict[str, ModelInfo] = {}
        for member in self.members:
            if member.error is None:
                for model in member.listed:
                    served.setdefault(model.id, model)
        for alias, target in self._aliases.items():
            real = next((model for model in served.values() if same_model(model.id, target)), None)
            if real is not None:
                served.setdefault(alias, attrs.evolve(real, id=alias))
        return list(served.values())

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """Pass a request on to the first backend that speaks the dialect of its path."""
        dialect = "ollama" if request.target.startswith("/api/") else "openai"
        speakers = [m for m in self.members if dialect in m.backend.capabilities.dialects]
        if not speakers and self._single is None:
            await self.start()
            speakers = [m for m in self.members if dialect in m.backend.capabilities.dialects]
        if not speakers and self._single is None:
            path = request.target.partition("?")[0]
            raise PathNotFound(f"{path} is not known here, and no backend speaks {dialect.capitalize()}'s API")
        member = next((m for m in speakers if m.error is None), speakers[0] if speakers else self.members[0])
        return await member.backend.forward(request)

    # ---- all of them ----

    async def start(self) -> None:
        """Start all. Raises only when none of them can be started."""
        await self._all(lambda member: member.backend.start())

    async def ready(self) -> None:
        """Return when one of them answers."""
        errors = await self.check()
        first = next(iter(errors.values()))
        if first is not None and all(errors.values()):
            raise first

    async def check(self) -> dict[str, VeloError | None]:
        """What is wrong with each backend, by its name; None for those that answer. Known for a moment, then asked."""
        await asyncio.gather(*(member.check() for member in self.members))
        return {member.name: member.error for member in self.members}

    async def aclose(self) -> None:
        """Close all."""
        for member in self.members:
            await member.aclose()

    async def _all(self, method: Callable[[Member], Awaitable[None]]) -> None:
        """Ask all at once; raise the first error when all fail."""
        results = await asyncio.gather(*(method(member) for member in self.members), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        unexpected = next((error for error in errors if not isinstance(error, VeloError)), None)
        if unexpected is not None:
            raise unexpected
        if len(errors) == len(self.members):
            raise errors[0]

    async def _refresh(self, *, fresh: float | None = None) -> None:
        await asyncio.gather(*(member.refresh(fresh=fresh) for member in self.members))

    # ---- who is asked ----

    async def _targets(self, model: str) -> list[Target]:
        """The backends that have the model, each with its own name for it. Raises `ModelNotFound`."""
        if self._plain:
            return [(self.members[0], model)]
        found = self._known(model)
        if found:
            for member in self.members:
                if member.error is not None:
                    member.refresh_soon()  # it may be back
            return found
        await self._refresh()
        found = self._known(model)
        if not found:
            await self._refresh(fresh=MISSING_SECONDS)
            found = self._known(model)
        if found:
            return found
        if self._single is not None and not self._single.only:
            return [(self._single, self._aliases.get(model, model))]
        raise self._missing(model)

    def _known(self, model: str) -> list[Target]:
        for name in (model, self._aliases.get(model)):
            if name is None:
                continue
            found = [(member, own) for member in self.members if (own := member.find(name)) is not None]
            if found:
                return sorted(found, key=lambda target: target[0].error is not None)
            prefix, sep, rest = name.partition("/")
            if sep:
                member = next((member for member in self.members if member.name == prefix), None)
                if member is not None:
                    return [(member, member.find(rest) or self._aliases.get(rest, rest))]
        if model == "":
            served = [(member, info.id) for member in self.members for info in member.listed]
            return served if len(served) == 1 else []
        return []

    def _missing(self, model: str) -> VeloError:
        down = [member for member in self.members if member.error is not None]
        served = [info.id for member in self.members for info in member.listed]
        if down and not served:
            return self._first_error()
        near = get_close_matches(model, [*served, *self._aliases], n=3, cutoff=0.5)
        names = ", ".join(near or sorted(set(served))[:20]) or "none"
        words = f"the nearest names are: {names}" if near else f"served are: {names}"
        if down:
            words += f" ({', '.join(member.name for member in down)} cannot be asked now)"
        wanted = f"model {model!r} is not served here" if model else "no model was named, and several are served"
        return ModelNotFound(f"{wanted}; {words}", param="model")

    def _first_error(self) -> VeloError:
        for member in self.members:
            if member.error is not None:
                return member.error
        return BackendError("no backend answers")

    def _named(self, request: ChatRequest, model: str) -> ChatRequest:
        tokens = self._num_ctx.get(model) if self._num_ctx else None
        if tokens is not None and "num_ctx" not in request.options:
            request = request.replace(options={**request.options, "num_ctx": tokens})
        return request if request.model == model else request.replace(model=model)

    # ---- trying again ----

    def _answered(self, member: Member, context: RequestContext) -> None:
        context.headers[BACKEND_HEADER] = member.name
        self._purse.earn()
        if member.error is not None:
            member.note(None)

    async def _before(self, attempt: int, targets: list[Target], failed: Member, error: VeloError) -> None:
        """Wait as long as is due before the `attempt`th attempt; raise `error` when there is to be none."""
        if isinstance(error, BackendError) and error.retryable:
            failed.note(error)
        if attempt > MOST_ATTEMPTS or not may_retry(error) or not self._purse.spend():
            raise error
        if targets[(attempt - 1) % len(targets)][0] is failed or attempt > len(targets):
            pause = pause_before(attempt, error)
            if pause is None:
                raise error
            await asyncio.sleep(pause)

    async def _call(self, model: str, ask: Callable[[Member, str], Awaitable[T]]) -> T:
        targets = await self._targets(model)
        attempt = 1
        while True:
            member, name = targets[(attempt - 1) % len(targets)]
            try:
                result = await ask(member, name)
            except VeloError as error:
                attempt += 1
                await self._before(attempt, targets, member, error)
            else:
                self._purse.earn()
                return result
