"""The layer that lets requests in: by key, model, and rate. What goes wrong in it goes wrong for the request: it fails
closed. The key comes from the gate of the server (`CURRENT`), or, with `keys`, from the request's own headers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from time import monotonic
from typing import Protocol

import attrs

from velollm.admission.keys import CURRENT, Key
from velollm.admission.rates import Charge, Meter
from velollm.admission.urgency import read_urgency, says_urgency
from velollm.backend import Backend, HttpRequest, HttpResponse, Layer
from velollm.errors import AuthenticationError, PermissionDenied, RateLimited
from velollm.messages import (
    ChatEvent,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    ModelInfo,
    RequestContext,
    TextPart,
)

__all__ = ["AdmissionLayer", "Finder", "bearer"]

MOST_METERS = 4096
CHARACTERS_A_TOKEN = 4.0
ANSWER_TOKENS = 64  # charged in advance for an answer whose length is not bounded
ASKING = frozenset({"/api/show", "/api/me"})  # what Ollama has to be asked with POST, and that changes nothing


class Finder(Protocol):
    """Whatever tells whose key a text is: a `KeyRing`, a `KeyFile`."""

    def find(self, text: str) -> Key | None:
        """The key, or None."""
        ...


class AdmissionLayer(Layer):
    """Admits requests to `inner`.

    With `keys`, requests need one of them even where no gate stands in front. `clock` gives seconds, and is that of
    `RequestContext.marks`.
    """

    def __init__(self, inner: Backend, *, keys: Finder | None = None, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(inner)
        self._keys = keys
        self._clock = clock
        self._meters: OrderedDict[str, Meter] = OrderedDict()

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate, if the key allows it. Where there are no keys and nothing is said of urgency, nothing is done."""
        if CURRENT.get() is None and self._keys is None and not says_urgency(request.context, request.extra):
            return self.inner.chat(request)
        return self._chat(request)

    async def _chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        request, key = await self._admit(request)
        charge = self._charge(key, request.context, _expected(request))
        used: int | None = None
        produced = 0
        try:
            async with aclosing(self.inner.chat(request)) as events:
                async for event in events:
                    if event.usage is not None:
                        used = event.usage.total_tokens
                    produced += len(event.text) + len(event.reasoning)
                    yield event
        finally:
            if used is None and produced:  # it broke off, or the client left
                used = math.ceil((_characters(request) + produced) / CHARACTERS_A_TOKEN)
            self._settle(key, charge, used or 0)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embed, if the key allows it."""
        key = self._key(request.context)
        if key is not None:
            request = attrs.evolve(request, model=await self._model(key, request.model))
        read_urgency(request.context, request.extra, key, self._clock())
        expected = sum(
            len(text) / CHARACTERS_A_TOKEN if isinstance(text, str) else len(text) for text in request.inputs
        )
        charge = self._charge(key, request.context, expected)
        used = 0
        try:
            result = await self.inner.embed(request)
            used = result.prompt_tokens
            return result
        finally:
            self._settle(key, charge, used)

    async def models(self) -> list[ModelInfo]:
        """What is served, as far as the key may use it."""
        served = await self.inner.models()
        key = CURRENT.get()
        return served if key is None else [model for model in served if key.may_use(model.id)]

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt."""
        admitted, _ = await self._admit(request)
        return await self.inner.count_tokens(admitted)

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        return await self.inner.tokenize(await self._current_model(model), text, add_special=add_special)

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids."""
        return await self.inner.detokenize(await self._current_model(model), tokens)

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """Pass a request on. What changes models needs an admin key; a key for some models is of no use here."""
        key = CURRENT.get()
        if key is not None and not key.admin:
            if changes_engine(request.method, request.target):
                raise PermissionDenied("this changes the models of the engine, or may, which needs an admin key")
            if key.models:
                raise PermissionDenied("a key that is for some models only cannot use this path")
        return await self.inner.forward(request)

    # ---- who ----

    def _key(self, context: RequestContext) -> Key | None:
        key = CURRENT.get()
        if key is None and self._keys is not None:
            given = bearer(context.client_headers.get("authorization"), context.client_headers.get("x-api-key"))
            if given is None:
                raise AuthenticationError("an API key is needed: send authorization: Bearer KEY, or x-api-key")
            key = self._keys.find(given)
            if key is None:
                raise AuthenticationError("this API key is not known here")
        if key is not None:
            context.tenant = key.name
            context.salt = key.cache_salt
        return key

    # ---- what ----

    async def _admit(self, request: ChatRequest) -> tuple[ChatRequest, Key | None]:
        key = self._key(request.context)
        read_urgency(request.context, request.extra, key, self._clock())
        if "priority" in request.extra and not self.inner.capabilities.priority:
            extra = {name: value for name, value in request.extra.items() if name != "priority"}
            request = request.replace(extra=extra)  # it was for us: engines without priorities refuse it
        if key is not None:
            model = await self._model(key, request.model)
            if model != request.model:
                request = request.replace(model=model)
        return request, key

    async def _current_model(self, model: str) -> str:
        key = CURRENT.get()
        return model if key is None else await self._model(key, model)

    async def _model(self, key: Key, model: str) -> str:
        """The model's name, where the key may use it; no name is the only model that it may use."""
        if not key.models or (model and key.may_use(model)):
            return model
        if not model:
            usable = [info.id for info in await self.inner.models() if key.may_use(info.id)]
            if len(usable) == 1:
                return usable[0]
        raise PermissionDenied(
            f"this key may not use the model {model[:200]!r}", code="model_not_allowed", param="model"
        )

    # ---- how much ----

    def _charge(self, key: Key | None, context: RequestContext, expected: float) -> Charge | None:
        if key is None or (key.rpm is None and key.tpm is None):
            return None
        now = self._clock()
        meter = self._meter(key, now)
        charge = meter.admit(expected, now)
        context.headers.update(meter.headers(now))
        if isinstance(charge, Charge):
            return charge
        raise RateLimited(
            "this key has used up its requests or tokens for now (x-ratelimit-* say which)",
            retry_after=max(1.0, math.ceil(charge)),
        )

    def _settle(self, key: Key | None, charge: Charge | None, used: int) -> None:
        if key is not None and charge is not None:
            now = self._clock()
            self._meter(key, now).settle(charge, used, now)

    def _meter(self, key: Key, now: float) -> Meter:
        """The buckets of a key; new ones where its limits were changed."""
        meter = self._meters.get(key.name)
        if meter is None or meter.limits != (key.rpm, key.tpm):
            meter = self._meters[key.name] = Meter(key.rpm, key.tpm, now)
            if len(self._meters) > MOST_METERS:
                self._meters.popitem(last=False)
        self._meters.move_to_end(key.name)
        return meter


def bearer(authorization: str | None, api_key: str | None) -> str | None:
    """The key in the two headers that may hold one."""
    scheme, _, token = (authorization or "").partition(" ")
    return (token.strip() if scheme.lower() == "bearer" else "") or api_key


def changes_engine(method: str, target: str) -> bool:
    """Whether a request that is passed on to Ollama changes which models there are, or might: whatever is not read, in
    any spelling, for its next version may have paths that nobody here knows."""
    path = target.partition("?")[0].lower()
    return path.startswith("/api/") and method not in ("GET", "HEAD") and path not in ASKING


def _expected(request: ChatRequest) -> float:
    answer = ANSWER_TOKENS if request.max_tokens is None else request.max_tokens
    return _characters(request) / CHARACTERS_A_TOKEN + answer * max(1, request.n)


def _characters(request: ChatRequest) -> int:
    """The length of a prompt, as text."""
    size = sum(
        len(message.content)
        if isinstance(message.content, str)
        else sum(len(part.text) for part in message.content or () if isinstance(part, TextPart))
        for message in request.messages
    )
    if isinstance(request.prompt, str):
        size += len(request.prompt)
    elif request.prompt is not None:
        size += int(len(request.prompt) * CHARACTERS_A_TOKEN)
    return size
