"""The tool-call layer: answers to requests with tools leave with calls that validate, or with none.

    request ─▶ history mended ─▶ engine ─▶ events ─▶ a ChoiceMender for each choice ─▶ events
                                   │ its parser failed: read what it choked on, else ask in plain words

A request without tools goes straight through. If mending itself fails, what was held back goes out as it came.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

import attrs

from velollm.backend import Backend, Layer
from velollm.control_headers import TOOL_CALLS as HEADER
from velollm.control_headers import Mode, read_mode
from velollm.errors import BackendRefused, RequestError, VeloError
from velollm.messages import ChatEvent, ChatRequest, Usage
from velollm.toolcalls.failures import asked_again, is_parser_failure, unparsed_text
from velollm.toolcalls.history import sound_history
from velollm.toolcalls.mending import ChoiceMender, Report
from velollm.toolcalls.policy import Policy, policy_of
from velollm.toolcalls.tools import InvalidToolError

__all__ = ["HEADER", "Mode", "Observer", "ToolCallLayer"]

logger = logging.getLogger("velollm.toolcalls")


class Observer(Protocol):
    """Is told what became of calls: `outcome` is `passed`, `repaired`, `refused`, `reasked` or `failed`."""

    def __call__(self, outcome: str, kind: str, count: int, /) -> None: ...


def _nobody(outcome: str, kind: str, count: int, /) -> None:
    """For when nobody counts."""


class ToolCallLayer(Layer):
    """Mends tool calls (`mode="repair"`), or lets only sound ones pass (`"strict"`).

    The header `x-velollm-tool-calls` of a request chooses another mode for it. `reask` is how often a model is asked
    again when no call of its answer can be used; `dedupe` drops calls that repeat another one of the same answer.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        mode: Mode = "repair",
        reask: int = 0,
        dedupe: bool = True,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(inner)
        self.mode: Mode = mode
        self.reask = reask
        self.dedupe = dedupe
        self.observer = observer or _nobody
        self._logged = False

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate. What has nothing to do with tools is not even looked at."""
        if request.tools:
            return self._chat(request)
        for message in request.messages:
            if message.tool_calls:
                return self._chat(request)
        return self.inner.chat(request)

    async def _chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        mode = self._mode_of(request)
        if mode != "off":
            request = sound_history(request)
        if mode == "off" or not request.tools:
            async with aclosing(self.inner.chat(request)) as events:
                async for event in events:
                    yield event
            return
        try:
            policy = policy_of(request, mode, dedupe=self.dedupe)
        except InvalidToolError as error:
            raise RequestError(str(error), param="tools") from None
        answer = _Answer(self, request, policy)
        try:
            async with aclosing(answer.events() if request.stream else answer.whole()) as events:
                async for event in events:
                    yield event
        finally:
            self._count(answer.report)

    def _mode_of(self, request: ChatRequest) -> Mode:
        asked = request.context.client_headers.get(HEADER)
        return self.mode if asked is None else read_mode(asked)

    def _count(self, report: Report) -> None:
        for kind, count in report.repairs.items():
            self.observer("repaired", kind, count)
        for kind, count in report.refusals.items():
            self.observer("refused", kind, count)
        if report.calls and not report.repairs:
            self.observer("passed", "none", report.calls)

    def failed(self) -> None:
        """Mending has failed: count it, and say so once."""
        self.observer("failed", "internal", 1)
        logger.log(
            logging.DEBUG if self._logged else logging.ERROR,
            "mending tool calls failed; the answer goes out as it came", exc_info=True,
        )  # fmt: skip
        self._logged = True


class _Answer:
    """One answer on its way."""

    def __init__(self, layer: ToolCallLayer, request: ChatRequest, policy: Policy) -> None:
        self.layer = layer
        self.request = request
        self.policy = policy
        self.report = Report()
        self.menders: dict[int, ChoiceMender] = {}
        self.more: Usage | None = None  # what further attempts have cost
        self.started = False
        self._passed = False  # whether the event before went out as it came, bytes and all

    # ---- whole and streamed

    async def whole(self) -> AsyncGenerator[ChatEvent, None]:
        """The answer in one piece: its bytes go on only if nothing at all was changed."""
        came: list[ChatEvent | None] = []
        out: list[ChatEvent] = []
        async with aclosing(self._mended()) as events:
            async for event, leaving in events:
                came.append(event)
                out += leaving
        if len(out) != len(came) or any(new is not old for new, old in zip(out, came, strict=True)):
            out = [event if event.raw is None else attrs.evolve(event, wire=None, raw=None) for event in out]
        for event in out:
            yield event

    async def events(self) -> AsyncGenerator[ChatEvent, None]:
        """The answer as it comes."""
        several = self.request.n > 1  # then one chunk may bring more than one event, and its bytes say them all
        async with aclosing(self._mended()) as events:
            async for _, leaving in events:
                for event in leaving:
                    self.started = True
                    yield attrs.evolve(event, wire=None, raw=None) if several and event.raw is not None else event

    # ---- inside

    async def _mended(self) -> AsyncGenerator[tuple[ChatEvent | None, Sequence[ChatEvent]], None]:
        """Pairs of an event that came and the events that leave for it."""
        try:
            async with aclosing(self.layer.inner.chat(self.request)) as events:
                async for event in events:
                    yield event, await self._take(event)
            return
        except BackendRefused as error:
            raw = self._readable(error)
            if raw is None:
                raise
            failure = error
        self.report.repairs["parser_failure"] += 1
        if raw and (leaving := await self._choked_on(raw)):
            yield None, leaving
            return
        if any(not mender.silent for mender in self.menders.values()):
            raise failure
        self.menders.clear()
        async with aclosing(self._in_words()) as events:
            async for event in events:
                yield event, await self._take(event)

    def _readable(self, error: BackendRefused) -> str | None:
        """What the engine's parser choked on: "" where it does not say, None where that is not what happened."""
        if self.request.n > 1 or not self.policy.tools or not is_parser_failure(error.message):
            return None
        return unparsed_text(error.message) or ""

    async def _choked_on(self, raw: str) -> Sequence[ChatEvent]:
        """The calls in what the engine could not read; nothing where there are none."""
        trial = ChoiceMender(self.policy, Report())
        trial.feed(ChatEvent(raw))
        trial.settle("stop")
        if not trial.calls:
            return ()
        out = list(await self._take(ChatEvent(raw)))
        return [*out, *await self._take(ChatEvent(finish_reason="stop"))]

    def _in_words(self) -> AsyncGenerator[ChatEvent, None]:
        """Ask again with the tools told in the prompt, so that the engine has nothing to parse."""
        from velollm.contrib.toolless import tell_tools

        return self.layer.inner.chat(tell_tools(self.request))

    async def _take(self, event: ChatEvent) -> Sequence[ChatEvent]:
        if event.raw == b"" and self._passed and self.request.stream:
            return (event,)  # its bytes have left with those of the event before
        out = await self._mend(event)
        if self.more is not None and event.usage is not None:
            out = [_with_usage(item, self.more) if item.usage is not None else item for item in out]
        self._passed = len(out) == 1 and out[0] is event
        return out

    async def _mend(self, event: ChatEvent) -> Sequence[ChatEvent]:
        mender = self.menders.get(event.index)
        if mender is None:
            mender = self.menders[event.index] = ChoiceMender(self.policy, self.report, event.index)
        try:
            if event.finish_reason is None:
                return mender.feed(event)
            began = mender.finish(event)
            if self.layer.reask and self.request.n == 1 and self._is_hopeless(mender):
                await self._ask_again(mender)
            out = [*began, *mender.ending(event)]
            self._tell()
        except Exception:
            self.layer.failed()
            return (*mender.surrender(), event)
        return (event,) if _says_the_same(out, event, mender) else out

    def _is_hopeless(self, mender: ChoiceMender) -> bool:
        """Whether no call came out where one was tried, or asked for."""
        return not mender.count and (bool(mender.errors) or self.policy.required)

    async def _ask_again(self, mender: ChoiceMender) -> None:
        """Tell the model what was wrong, and take the calls of its next attempt, should it have any."""
        said, errors = mender.said, mender.errors
        for _ in range(self.layer.reask):
            self.layer.observer("reasked", errors[0].kind if errors else "no_call", 1)
            try:
                second = await self._attempt(asked_again(self.request, said, errors))
            except VeloError as error:
                logger.info("asking again for a tool call failed: %s", error.message)
                return
            if second.calls:
                self.report.repairs["reasked"] += 1
                self.report.repairs.update(second.report.repairs)
                mender.adopt(second.calls)
                return
            said, errors = second.said, second.errors

    async def _attempt(self, request: ChatRequest) -> ChoiceMender:
        mender = ChoiceMender(self.policy, Report())
        async with aclosing(self.layer.inner.chat(request)) as events:
            async for event in events:
                if event.usage is not None:
                    self.more = event.usage if self.more is None else self.more + event.usage
                if event.finish_reason is not None:
                    mender.finish(event)
                else:
                    mender.feed(event)
        return mender

    def _tell(self) -> None:
        """What was done, in a header while there is time for one, and in the last event of a stream."""
        told = self.report.header
        if told is None:
            return
        context = self.request.context
        if not self.started:
            context.headers[HEADER] = told
        if self.request.stream:
            context.trailer["tool_calls"] = self.report.trailer


def _says_the_same(out: Sequence[ChatEvent], event: ChatEvent, mender: ChoiceMender) -> bool:
    """Whether `out` is `event` again, though taken apart."""
    if not (event.text or event.reasoning or event.tool_calls):
        return False
    return (
        mender.as_it_came
        and "".join(item.text for item in out) == event.text
        and sum(len(item.tool_calls) for item in out) == len(event.tool_calls)
        and out[-1].finish_reason == event.finish_reason
    )


def _with_usage(event: ChatEvent, more: Usage) -> ChatEvent:
    return attrs.evolve(event, usage=more if event.usage is None else event.usage + more, wire=None, raw=None)
