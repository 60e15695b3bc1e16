"""Whether llama-server says the same twice: alone, beside other answers, and continued after an interruption.

    python benchmarks/reproducibility.py [smollm2 | model.gguf] [--questions 24] [--save]

alone       one answer at a time, as the ones that all others are held against
primed      one answer at a time, each behind a longer question that begins with it
together    four answers at once
continued   one answer at a time, interrupted in the middle and continued by token ids
both        four answers at once, each interrupted and continued

Each with temperature 0, of an engine that has just started. In the first three nothing is interrupted: what differs
there is the engine's doing, which computes a prompt in other batches when it has its beginning in its cache, or other
prompts to compute with it. Where two texts part, it is said whether that was before the cut or behind it, and how far
apart the two next tokens were in log probability. Results go to benchmarks/results/reproducibility.json with --save.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import attrs
from harness import HERE, machine

from velollm.continuation import Continuation, go_on
from velollm.contrib.llamacpp import EmbeddedBackend
from velollm.messages import ChatRequest, Message

AT_ONCE = 4
TOKENS = 80
SUBJECTS = (
    "a fox in a café", "the moon", "bread", "how rain comes about", "a lighthouse keeper", "the number seven",
    "a town by the sea", "why cats purr", "a train that is late", "chess", "an old clock", "how to plant a tree",
)  # fmt: skip
ASKED = ("Tell me about {}.", "Write a short tale of {}.", "List five facts about {}.")


def question(number: int) -> ChatRequest:
    """A request that differs from all others."""
    text = ASKED[number % len(ASKED)].format(SUBJECTS[number // len(ASKED) % len(SUBJECTS)])
    return ChatRequest(messages=[Message(role="user", content=text)], max_tokens=TOKENS, temperature=0, stream=True)


async def whole(backend: EmbeddedBackend, number: int) -> list[str]:
    """The pieces of an answer that nobody interrupts."""
    return [part async for event in backend.chat(question(number)) for part in event.parts()]


def cut_of(number: int) -> int:
    """Behind how many pieces an answer is interrupted."""
    return 10 + 7 * number % 50


async def continued(backend: EmbeddedBackend, number: int) -> list[str]:
    """The pieces of an answer that is cut somewhere in its middle, by its number, and continued."""
    request = question(number)
    stream, pieces = Continuation(request), []
    async with aclosing(backend.chat(request)) as events:
        async for event in events:
            stream.observe(event)
            pieces += event.parts()
            if len(pieces) >= cut_of(number):
                break
    if stream.finish is None:
        stream.cut()
        async with aclosing(go_on(backend, stream, again=False)) as events:
            pieces += [part async for event in events for part in event.parts()]
    return pieces


async def gap(backend: EmbeddedBackend, number: int, one: list[str], other: list[str]) -> tuple[int, float | None]:
    """Behind how many pieces two answers part, and how far apart the two next ones are in log probability there."""
    pairs = zip([*one, ""], [*other, ""], strict=False)
    at = next((index for index, pair in enumerate(pairs) if pair[0] != pair[1]), len(one))
    asked = question(number)
    begun = [*asked.messages, Message(role="assistant", content="".join(one[:at]))]
    request = asked.replace(messages=begun, max_tokens=1, logprobs=True, top_logprobs=20, stream=False)
    events = [event async for event in backend.chat(request)]
    logprobs = next((event.logprobs["content"] for event in events if event.logprobs), None)
    chances = {entry["token"]: entry["logprob"] for entry in logprobs[0]["top_logprobs"]} if logprobs else {}
    both = [chances.get(pieces[at]) if at < len(pieces) else None for pieces in (one, other)]
    if both[0] is None or both[1] is None:
        return at, None  # one of them ended there
    return at, abs(both[0] - both[1])


async def primed(backend: EmbeddedBackend, number: int) -> list[str]:
    """An answer behind a longer question that begins with it, which the engine then has in its cache."""
    asked = question(number)
    other = asked.replace(
        messages=[Message(role="user", content=asked.messages[0].text + " ".join(SUBJECTS))], max_tokens=1
    )
    async for _ in backend.chat(other):
        pass
    return await whole(backend, number)


async def several(ask: Callable[[int], Awaitable[list[str]]], count: int, at_once: int) -> list[list[str]]:
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> list[str]:
        async with gate:
            return await ask(number)

    return list(await asyncio.gather(*(one(number) for number in range(count))))


@attrs.frozen(kw_only=True)
class Found:
    """How many answers were those that were given alone; of the others, how many parted before they were cut (where
    they were), behind which token each did, and how far apart the next two were."""

    same: int
    of: int
    before_the_cut: int
    parted: list[tuple[int, float | None]]


async def phase(model: str, count: int, name: str, alone: list[list[str]]) -> tuple[list[list[str]], Found]:
    """All answers in the way of `name`, by an engine that has just started, against those that were given alone."""
    ask = {"primed": primed, "continued": continued, "both": continued}.get(name, whole)
    async with EmbeddedBackend(model, parallel=AT_ONCE) as backend:
        at_once = AT_ONCE if name in ("together", "both") else 1
        answers = await several(lambda number: ask(backend, number), count, at_once)
        differ = [number for number in range(count) if alone and "".join(answers[number]) != "".join(alone[number])]
        parted = [await gap(backend, number, alone[number], answers[number]) for number in differ]
    early = sum(at < cut_of(number) for number, (at, _) in zip(differ, parted, strict=True))
    return answers, Found(same=count - len(differ), of=count, before_the_cut=early, parted=parted)


async def measure(model: str, count: int) -> dict[str, Found]:
    """Every way of asking; the first is what the others are held against."""
    alone, _ = await phase(model, count, "alone", [])
    found = {}
    for name in ("alone", "primed", "together", "continued", "both"):
        _, found[name] = await phase(model, count, name, alone)
        parted = ", ".join(f"{at} ({'?' if by is None else f'{by:.3f}'})" for at, by in found[name].parted)
        early = found[name].before_the_cut
        print(f"{name:9} {found[name].same} of {count} as alone; the others part behind token {parted or '-'}", end="")
        print(f"; {early} before any cut" if early else "", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    found = asyncio.run(measure(asked.model, asked.questions))
    if asked.save:
        plain = {name: attrs.asdict(one) for name, one in found.items()}
        record = {"machine": machine(), "model": Path(asked.model).name, "tokens": TOKENS, "at_once": AT_ONCE, **plain}
        (HERE / "results" / "reproducibility.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
