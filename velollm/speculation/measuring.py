"""What only a running llama-server can tell: answers as tokens, what steps of several tokens cost, how drafts fare."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Any

import attrs
import orjson

from velollm.bench.connection import HttpClient
from velollm.bench.http_asker import HttpAsker
from velollm.bench.question import Question
from velollm.bench.record import Record
from velollm.bench.runner import run
from velollm.bench.schedule import Schedule
from velollm.bench.summary import summarise
from velollm.bench.wires import Asking
from velollm.errors import BackendError

__all__ = ["Conversations", "Engine", "Outcome"]

SIZES = (1, 2, 4, 8, 16, 32, 64)
TIMES = 3
BASE = 64  # tokens that are in the cache before a step is measured
PATIENCE = 900.0


@attrs.frozen(kw_only=True)
class Conversations:
    """Token ids of prompts and of their answers, and seconds a token took after the first."""

    tokens: Sequence[tuple[Sequence[int], Sequence[int]]]
    tpot: float


@attrs.frozen(kw_only=True)
class Outcome:
    """A run: tokens a second of all clients, mean seconds to the first token, failures, drafted and accepted tokens."""

    throughput: float
    ttft: float
    failed: int
    drafted: int = 0
    accepted: int = 0


class Engine:
    """A llama-server at `url`; `key` is its API key."""

    def __init__(self, url: str, model: str, *, key: str = "") -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = HttpClient(url, headers=headers, patience=PATIENCE)
        self._asker = HttpAsker(self._client, "llamacpp", Asking(model=model))

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self._client.aclose()

    async def answer(self, questions: Sequence[Question], clients: int) -> tuple[Outcome, Sequence[Record]]:
        """Ask `questions`, so many at once."""
        done = await run(self._asker, questions, [0.0] * len(questions), Schedule(concurrency=clients))
        figures = summarise(done.records, done.seconds)
        outcome = Outcome(
            throughput=figures["output_throughput"],
            ttft=figures["mean_ttft_ms"] / 1000,
            failed=figures["failed"],
            drafted=figures.get("spec_decode_draft_tokens", 0),
            accepted=figures.get("spec_decode_accepted_tokens", 0),
        )
        return outcome, done.records

    async def converse(self, questions: Sequence[Question]) -> Conversations:
        """Ask one after the other, and read prompts and answers as tokens. Raises `BackendError` without any answer."""
        _, records = await self.answer(questions, 1)
        found, times = [], []
        for question, record in zip(questions, records, strict=True):
            if not record.good:
                continue
            template = await self._post("/apply-template", {"messages": list(question.messages)})
            prompt = await self._tokens(str(template.get("prompt", question.text)), special=True)
            found.append((prompt, await self._tokens(record.text, special=False)))
            if record.tpot:
                times.append(record.tpot)
        if not found:
            raise BackendError(f"no question was answered: {records[0].error if records else 'there was none'}")
        return Conversations(tokens=found, tpot=median(times) if times else 0.0)

    async def costs(self, words: Sequence[int], longest: int = SIZES[-1], *, seed: int = 0) -> dict[int, float]:
        """What a step of so many tokens costs against a step of one: from reading as many behind a cached beginning.

        `words` are token ids that the model has. Reading computes the scores of one token, verifying those of all: the
        truth lies a little higher.
        """
        random = Random(seed)  # noqa: S311 -- no secret
        base = random.choices(words, k=BASE)
        await self._read(base)
        seconds: dict[int, list[float]] = {}
        for _ in range(TIMES):
            for size in (size for size in SIZES if size <= max(longest, 2)):
                count, time = await self._read([*base, *random.choices(words, k=size)])
                if count == size:  # the engine may have had to read more
                    seconds.setdefault(size, []).append(time)
        one = median(seconds[1]) if seconds.get(1) else 0.0
        return {size: max(1.0, median(times) / one) for size, times in seconds.items()} if one else {}

    async def _read(self, tokens: Sequence[int]) -> tuple[int, float]:
        body = {"prompt": list(tokens), "n_predict": 1, "cache_prompt": True, "id_slot": 0, "temperature": 0.0}
        timings = (await self._post("/completion", body)).get("timings") or {}
        return int(timings.get("prompt_n", 0)), float(timings.get("prompt_ms", 0.0)) / 1000

    async def _tokens(self, text: str, *, special: bool) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": special}
        return [int(token) for token in (await self._post("/tokenize", body)).get("tokens", ())]

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = await self._client.post(path, orjson.dumps(body))
        value = orjson.loads(b"".join(piece for _, piece in reply.pieces) or b"null")
        if reply.status != 200 or not isinstance(value, dict):
            raise BackendError(f"the engine answers {path} with {reply.status}: it is no llama-server")
        return value
