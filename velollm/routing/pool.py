"""Several backends as one: each request goes to one that has its model and is well, and to the next when it fails.

Once an answer has begun, another backend can only go on with it, exactly (see `velollm.continuation`), or not at all:
what the client has read cannot be taken back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from time import monotonic
from typing import TypeVar

import attrs

from velollm.backend import Backend, Capabilities, HttpRequest, HttpResponse
from velollm.continuation import Continuation, Diverged, Said
from velollm.errors import (
    ConfigError,
    Overloaded,
    PathNotFound,
    UnsupportedError,
    VeloError,
)
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, ModelInfo
from velollm.routing.attempts import Attempts, Budget
from velollm.routing.complexity import AUTO, choose, judge
from velollm.routing.health import PACE_PIECES, Health
from velollm.routing.interruption import Interrupted
from velollm.routing.lookup import Target, first_error, known_targets, missing
from velollm.routing.member import Member, same_model
from velollm.routing.part import Part
from velollm.routing.passed_on import model_of, pass_on
from velollm.routing.turns import Turn, Turns
from velollm.routing.watch import Watch

__all__ = ["BackendPool"]

logger = logging.getLogger("velollm.routing")

T = TypeVar("T")

FRESH_SECONDS = 5.0
MISSING_SECONDS = 1.0  # how old a list may be that a model is missing from
LIST_SECONDS = 5.0
GRACE_SECONDS = 0.5  # for those whose list is late
BACKEND_HEADER = "x-velollm-backend"
CONTEXT_HEADER = "x-velollm-num-ctx"
ROUTING_HEADER = "x-velollm-routing"


def _unheard(name: str, up: bool) -> None:
    """Health that nobody wants to know."""


class BackendPool(Backend):
    """`backends` behind one name for each model.

    A name is looked up as it is, without `:latest`, among `aliases` (other name: name), and as `BACKEND/model`. With a
    single backend, what is not found is passed on, and it may answer for itself. `only` restricts the models of a
    backend; `num_ctx` is the context of models, in tokens, whatever requests say; `turns` decides when and where each
    request goes (without it, at once, to the least loaded); `on_health` hears of every backend that goes down or comes
    back.
    """

    name = "pool"

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        aliases: Mapping[str, str] = {},
        only: Mapping[str, Collection[str]] = {},
        num_ctx: Mapping[str, int] = {},
        turns: Turns | None = None,
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
        self.turns = Turns(clock=clock) if turns is None else turns
        for member in self.members:
            self.turns.add(member.backend, member.health.allows)
        self._aliases = dict(aliases)
        self._num_ctx = dict(num_ctx)
        self._budget = Budget()
        self._clock = clock
        self._single = self.members[0] if len(self.members) == 1 else None
        self._watch = Watch(self.members, clock) if self._single is None else None
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

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate, when and where it is the request's turn; the next backend goes on where one fails."""
        return self._answer(request, None, None)

    async def resumes(self, model: str) -> bool:
        """Whether one of those that have the model goes on with answers exactly."""
        for member, own in await self._targets(model):
            if await member.backend.resumes(own):
                return True
        return False

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer that was interrupted, by a backend that does so exactly."""
        able = [
            (member, own) for member, own in await self._targets(request.model) if await member.backend.resumes(own)
        ]
        if not able:
            raise UnsupportedError(f"no backend goes on with answers of {request.model!r} exactly")
        async with aclosing(self._answer(request, able, Continuation(request, said))) as events:
            async for event in events:
                yield event

    async def _answer(
        self, request: ChatRequest, targets: list[Target] | None, stream: Continuation | None
    ) -> AsyncGenerator[ChatEvent, None]:
        """The answer of one of `targets` (of all that have the model), or of several, which `stream` joins into one."""
        if self.turns.by_complexity and request.model in ("", AUTO):
            request = await self._chosen(request)
        if targets is None:
            targets = self._sure_targets(request.model) or await self._targets(request.model)
        attempts = Attempts(targets, self._budget)
        begun = stream is not None and stream.cuts > 0
        turn = await self.turns.take(request, {member.backend.name: model for member, model in targets})
        if stream is None and (len(targets) > 1 or turn.may_make_way):
            stream = Continuation(request)
        try:
            while True:
                target = self._choice(attempts.choices, turn)
                attempts.begin(target)
                part = Part(target[0], turn, stream, self._clock)
                try:
                    async for event in await self._ask(part, self._named(request, target[1])):
                        seen = part.saw(event)
                        if not begun:
                            request.context.headers[BACKEND_HEADER] = turn.backend
                            begun = True
                        yield seen
                    self._note_pace(part.member, target[1], part.done(), part.pieces)
                    self._budget.earn()
                    return
                except Interrupted:
                    await part.left()
                    assert stream is not None
                    stream.cut()
                    await turn.make_way()
                    request.context.trailer["preemptions"] = turn.preemptions
                    attempts.choices = targets
                    continue
                except (UnsupportedError, Diverged) as error:
                    await part.failed(error)
                    if attempts.first_error is None and not begun:
                        raise
                    logger.info("%s cannot go on with an answer: %s", turn.backend, error.message)
                    attempts.cannot_go_on(error)
                except VeloError as error:
                    await part.failed(error)
                    await asyncio.sleep(attempts.after(error, begun=begun, outage=part.outage))
                    if begun and stream is not None:
                        stream.cut()
                        logger.warning("%s: another backend is to go on with its answer", error.message)
                except BaseException:
                    await part.left()
                    raise
                await turn.again([member.name for member, _ in attempts.choices])
                if begun:
                    request.context.trailer["backend"] = turn.backend
        finally:
            turn.end()

    async def _ask(self, part: Part, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        if part.may_make_way:
            request = await part.allow_preemption(request)
        events = part.ask(request)
        if self._watch is not None:
            self._watch.wake()
        return events

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input."""

        async def ask(member: Member, model: str) -> Embeddings:
            changed = request if model == request.model else attrs.evolve(request, model=model)
            result = await member.backend.embed(changed)
            request.context.headers[BACKEND_HEADER] = member.name
            return result

        targets = await self._targets(request.model)
        turn = await self.turns.take(request, {member.name: model for member, model in targets})
        try:
            result = await self._call(targets, ask, turn)
            turn.complete()
            return result
        finally:
            turn.end()

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt."""
        targets = await self._targets(request.model)
        return await self._call(targets, lambda member, model: member.backend.count_tokens(self._named(request, model)))

    async def context(self, model: str) -> int | None:
        """The smallest context that one of the backends gives the model, as far as they say."""
        found = [await member.backend.context(own) for member, own in await self._targets(model)]
        return min((context for context in found if context is not None), default=None)

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        targets = await self._targets(model)
        return await self._call(
            targets, lambda member, name: member.backend.tokenize(name, text, add_special=add_special)
        )

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids."""
        targets = await self._targets(model)
        return await self._call(targets, lambda member, name: member.backend.detokenize(name, tokens))

    async def models(self) -> list[ModelInfo]:
        """What all of them serve together, and the aliases. Raises only when none of them answers."""
        await self._refresh()
        if all(member.error is not None for member in self.members):
            raise first_error(self.members)
        served: dict[str, ModelInfo] = {}
        for member in self.members:
            if member.error is None:
                for model in member.listed:
                    served.setdefault(model.id, model)
        for alias, target in self._aliases.items():
            real = next((model for model in served.values() if same_model(model.id, target)), None)
            if real is not None:
                served.setdefault(alias, attrs.evolve(real, id=alias))
        if self.turns.by_complexity and served:
            served.setdefault(AUTO, ModelInfo(id=AUTO, owned_by="velollm", capabilities=["completion"]))
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
        model = model_of(request)
        having = [m for m in speakers if model and m.find(model) is not None] or speakers or self.members[:1]
        member = next((m for m in having if m.error is None), having[0])
        return await pass_on(member, request)

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
        self.turns.close()
        if self._watch is not None:
            await self._watch.aclose()
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

    async def _refresh(self, model: str | None = None, *, fresh: float | None = None) -> None:
        """Have lists of models. One that is late is not waited for where those that are there say enough."""
        asking = {task for member in self.members if (task := member.refresh_soon(fresh=fresh)) is not None}
        if asking:
            _, asking = await asyncio.wait(asking, timeout=GRACE_SECONDS)
        while asking and not self._says_enough(model):
            _, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)

    def _says_enough(self, model: str | None) -> bool:
        if model is not None:
            return bool(known_targets(self.members, self._aliases, model))
        return all(member.listed or member.error for member in self.members)

    # ---- who is asked ----

    def _sure_targets(self, model: str) -> list[Target]:
        """Where there is no choice, the one backend, which may answer for itself."""
        return [(self.members[0], model)] if self._plain else []

    async def _targets(self, model: str) -> list[Target]:
        """The backends that have the model, each with its own name for it. Raises `ModelNotFound`."""
        sure = self._sure_targets(model)
        if sure:
            return sure
        found = known_targets(self.members, self._aliases, model)
        if found:
            for member in self.members:
                if member.error is not None:
                    member.refresh_soon()  # it may be back
            return self._not_draining(found)
        await self._refresh(model)
        found = known_targets(self.members, self._aliases, model)
        if not found:
            await self._refresh(model, fresh=MISSING_SECONDS)
            found = known_targets(self.members, self._aliases, model)
        if found:
            return self._not_draining(found)
        if self._single is not None and not self._single.only:
            return [(self._single, self._aliases.get(model, model))]
        raise missing(self.members, self._aliases, model)

    async def _chosen(self, request: ChatRequest) -> ChatRequest:
        """The request for the model that is as large as it looks hard; the reason goes into a header."""
        await self._refresh()
        verdict = judge(request)
        model = choose(verdict.tier, [info for member in self.members for info in member.listed])
        if model is None:
            return request
        request.context.headers[ROUTING_HEADER] = f"model={model}; tier={verdict}"
        return request.replace(model=model)

    def _named(self, request: ChatRequest, model: str) -> ChatRequest:
        """The request with the backend's own name for the model, and the one context size that the settings name."""
        size = self._num_ctx.get(model) if self._num_ctx else None
        if size is not None and size != (asked := request.options.get("num_ctx")):
            # an adapter that sends the original puts the size into it
            request = request.replace(options={**request.options, "num_ctx": size}, source=request.source)
            if asked is not None:
                request.context.headers[CONTEXT_HEADER] = f"{size}; asked={asked}"
        return request if request.model == model else request.replace(model=model)

    # ---- how they fare ----

    def health(self, name: str) -> Health:
        """How the backend `name` fares. Raises `PathNotFound`."""
        for member in self.members:
            if member.name == name:
                return member.health
        known = ", ".join(member.name for member in self.members)
        raise PathNotFound(f"no backend is called {name[:100]!r}; there are {known}")

    def drain(self, name: str, *, on: bool = True) -> None:
        """Give the backend `name` no new requests (or, with `on=False`, some again). Raises `PathNotFound`."""
        self.health(name).draining = on

    def _not_draining(self, found: list[Target]) -> list[Target]:
        """Those that may have new requests, now or when they are well again."""
        left = [target for target in found if not target[0].health.draining]
        if found and not left:
            raise Overloaded("the backends that have this model are being drained", code="draining", retry_after=5)
        return left

    def _note_pace(self, member: Member, model: str, seconds: float, pieces: int) -> None:
        """Give a backend a rest that writes far more slowly than the others with the same model."""
        if self._single is not None or pieces < PACE_PIECES:
            return
        pace = member.pace(model)
        pace.add(seconds, pieces)
        others = [other.paces[model] for other in self.members if other is not member and model in other.paces]
        if pace.is_outlier(others):
            logger.warning("%s writes far more slowly than the others with %s", member.name, model)
            member.health.slow(self._clock(), f"{member.name} is slow")
            del member.paces[model]

    async def _call(
        self, targets: list[Target], ask: Callable[[Member, str], Awaitable[T]], turn: Turn | None = None
    ) -> T:
        """What the first backend says that answers; that of `turn`, where there is one."""
        attempts = Attempts(targets, self._budget)
        while True:
            target = self._choice(attempts.choices, turn)
            attempts.begin(target)
            member, name = target
            member.health.sent(self._clock())
            if self._watch is not None:
                self._watch.wake()
            try:
                result = await ask(member, name)
            except VeloError as error:
                member.failed(error)
                await asyncio.sleep(attempts.after(error, begun=False))
            except BaseException:
                member.health.left(self._clock())
                raise
            else:
                member.health.done(self._clock())
                self._budget.earn()
                return result
            if turn is not None:
                await turn.again([member.name for member, _ in attempts.choices])

    def _choice(self, choices: Sequence[Target], turn: Turn | None) -> Target:
        if len(choices) == 1:
            return choices[0]
        if turn is not None:
            return next(target for target in choices if target[0].name == turn.backend)
        now = self._clock()
        return next((target for target in choices if target[0].health.allows(now)), choices[0])
