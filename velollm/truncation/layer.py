"""The layer that notices prompts that do not fit: counted before they are sent, where the backend has a tokenizer; else
by what the engine says that it has read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from time import monotonic
from typing import Literal

from velollm.backend import Backend, Layer
from velollm.errors import ContextLengthExceeded, VeloError
from velollm.messages import ChatEvent, ChatRequest
from velollm.truncation.estimates import SMALLEST, Estimates, rough_tokens, surely_short, was_cut

__all__ = ["HEADER", "TruncationLayer"]

HEADER = "x-velollm-truncated"
CONTEXT_HEADER = "x-velollm-num-ctx"  # written by the pool: the context that was asked of the engine
CONTEXT_SECONDS = 60.0
MOST_MODELS = 256
WORTH_COUNTING = 0.5  # of the context: shorter prompts fit without question
LARGE = 1500.0  # tokens: of shorter prompts nobody asks the context that an engine has chosen itself


class TruncationLayer(Layer):
    """Refuses (`error`, 422) what does not fit, or tells of it (`header`): `x-velollm-truncated: prompt`.

    In a stream, what is noticed at its end is an error event, or `truncated` in the last event's `velollm` object.
    """

    def __init__(
        self, inner: Backend, mode: Literal["error", "header"] = "header", *, clock: Callable[[], float] = monotonic
    ) -> None:
        super().__init__(inner)
        self.mode = mode
        self._clock = clock
        self._estimates = Estimates()
        self._contexts: OrderedDict[str, tuple[float, int | None]] = OrderedDict()

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate, with an eye on how much of a prompt of some length was read."""
        fitting = "num_ctx" not in request.options
        if fitting and surely_short(request):
            return self.inner.chat(request)
        rough = rough_tokens(request)
        if rough < SMALLEST and fitting:
            return self.inner.chat(request)
        return self._watched(request, rough)

    async def _watched(self, request: ChatRequest, rough: float) -> AsyncGenerator[ChatEvent, None]:
        exact = None
        if rough >= LARGE or "num_ctx" in request.options:
            exact = await self._count(request, rough)
        async with aclosing(self.inner.chat(request)) as events:
            async for event in events:
                if event.usage is not None:
                    await self._look_back(request, rough, exact, event.usage.prompt_tokens)
                yield event

    async def _count(self, request: ChatRequest, rough: float) -> int | None:
        """The tokens of a prompt that may not fit, where they can be counted at little cost.

        Raises `ContextLengthExceeded` when they do not fit and that is to be an error.
        """
        if not self.inner.capabilities.tokenize:
            return None
        context = await self._context(request)
        if context is None or self._estimates.tokens(request.model, rough) < WORTH_COUNTING * context:
            return None
        try:
            tokens = await self.inner.count_tokens(request)
        except VeloError:
            return None  # it says itself what is wrong, or cannot count
        self._estimates.learn(request.model, rough, tokens)
        if tokens >= context and self.mode == "error":
            self._tell(request, tokens, context)
        return tokens

    async def _look_back(self, request: ChatRequest, rough: float, exact: int | None, counted: int) -> None:
        """Compare what the engine counted with what the prompt should have come to."""
        expected = self._estimates.tokens(request.model, rough) if exact is None else float(exact)
        if counted <= 0:
            return
        context = None
        if counted < expected and (expected >= LARGE or "num_ctx" in request.options):
            context = await self._context(request)
        if context is not None and was_cut(counted, expected, context):
            self._tell(request, round(expected), context)
        elif exact is None and (counted >= expected or context is None or expected < WORTH_COUNTING * context):
            self._estimates.learn(request.model, rough, counted)

    def _tell(self, request: ChatRequest, tokens: int, context: int) -> None:
        if self.mode == "error":
            raise ContextLengthExceeded(
                f"the prompt has about {tokens} tokens, and the model's context is {context}: shorten it, or give the "
                "model a larger context",
                param="messages" if request.prompt is None else "prompt",
            )
        request.context.headers[HEADER] = "prompt"
        if request.stream:
            request.context.trailer["truncated"] = "prompt"

    async def _context(self, request: ChatRequest) -> int | None:
        """The context that the request has, in tokens; None where nobody says."""
        asked = request.options.get("num_ctx")
        chosen = request.context.headers.get(CONTEXT_HEADER, "").partition(";")[0]
        if chosen.isdigit():
            return int(chosen)
        if type(asked) is int and asked > 0:
            return asked
        known = self._contexts.get(request.model)
        now = self._clock()
        if known is not None and now < known[0]:
            return known[1]
        try:
            found = await self.inner.context(request.model)
        except VeloError:
            found = None
        self._contexts[request.model] = now + CONTEXT_SECONDS, found
        if len(self._contexts) > MOST_MODELS:
            self._contexts.popitem(last=False)
        return found
