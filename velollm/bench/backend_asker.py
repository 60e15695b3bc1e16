"""Asks a `Backend`: what has no address of its own, such as a GGUF file that is run in a child process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import perf_counter

import orjson

from velollm.api.openai import ChatCompletions
from velollm.backend import Backend
from velollm.bench.question import Question
from velollm.bench.record import Record
from velollm.bench.wires import Asking, encode
from velollm.errors import VeloError
from velollm.messages import ChatEvent, ChatRequest, EmbedRequest, RequestContext

__all__ = ["BackendAsker"]


class BackendAsker:
    """Asks `backend` by its typed protocol; events are read as they come."""

    def __init__(self, backend: Backend, asking: Asking) -> None:
        self._backend = backend
        self._asking = asking

    async def ask(self, question: Question, record: Record) -> AsyncGenerator[None, None]:
        """Ask."""
        record.sent = sent = perf_counter()
        try:
            if question.inputs:
                await self._embed(question, record, sent)
            else:
                await self._chat(question, record, sent)
        except VeloError as error:
            record.error = error.message
        yield

    async def _embed(self, question: Question, record: Record, sent: float) -> None:
        found = await self._backend.embed(EmbedRequest(model=self._asking.model, inputs=question.inputs))
        record.arrivals = [perf_counter() - sent]
        record.prompt_tokens = found.prompt_tokens

    async def _chat(self, question: Question, record: Record, sent: float) -> None:
        texts = []
        async with aclosing(self._backend.chat(self._request(question))) as events:
            async for event in events:
                if event.text or event.reasoning or event.tool_calls:
                    record.arrivals.append(perf_counter() - sent)
                    record.output_tokens += not record.counted
                    texts.append(event.text)
                _add_counts(event, record)
        record.text = "".join(texts)
        record.status = 200
        if not record.arrivals:
            record.error = "the answer held no token"

    def _request(self, question: Question) -> ChatRequest:
        if question.prompt is not None:
            return ChatRequest(
                model=self._asking.model, prompt=question.prompt, raw=True, max_tokens=question.max_tokens,
                temperature=self._asking.temperature, stream=True, extra=self._asking.extra,
            )  # fmt: skip
        body = encode(question, "openai.chat", self._asking)
        return ChatCompletions().parse(orjson.loads(body), body, RequestContext())


def _add_counts(event: ChatEvent, record: Record) -> None:
    if event.finish_reason is not None:
        record.finish = event.finish_reason
    usage = event.usage
    if usage is None:
        return
    record.prompt_tokens = usage.prompt_tokens or record.prompt_tokens
    if usage.completion_tokens:
        record.output_tokens, record.counted = usage.completion_tokens, True
    record.cached_tokens = usage.cached_tokens
    if usage.timings is not None:
        times = {"load": usage.timings.load, "prefill": usage.timings.prefill, "decode": usage.timings.decode}
        record.engine = {name: seconds for name, seconds in times.items() if seconds is not None}
