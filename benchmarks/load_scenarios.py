"""The scenarios under load: what is asked of `velollm serve` and of the engine itself, and what of it has a goal."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Mapping
from contextlib import ExitStack
from typing import Any

from client import Answer, ask, get, percentile
from load_world import (
    BATCH,
    INTERACTIVE,
    MODEL,
    TIMES,
    Figure,
    busy,
    engine,
    jain,
    key,
    keys_file,
    metric,
    question,
    real_engine,
    steady,
    velollm,
    velollm_before,
)  # fmt: skip

__all__ = ["SCENARIOS"]

# What 24 conversations of `affinity` take when no block is computed twice but the system prompt, once in each engine.
FEWEST = 24624


async def _mix(port: int, seconds: float) -> tuple[list[Answer], list[Answer]]:
    """Batch work that fills every slot, and a question of a person now and then."""
    batch = asyncio.ensure_future(
        busy(12, seconds, lambda client, turn: ask(port, question(50, 40, f"b{client}.{turn}"), BATCH))
    )
    await asyncio.sleep(TIMES)
    people = await steady(2.0, seconds - 2.0, lambda number: ask(port, question(20, 5, f"i{number}"), INTERACTIVE))
    return people, await batch


def priority(seconds: float) -> list[Figure]:
    """Interactive work while batch work saturates 4 slots (prefill 1 ms, decode 20 ms a token)."""
    with engine() as upstream, velollm("--backend", f"llamacpp://127.0.0.1:{upstream}") as port:
        people, batch = asyncio.run(_mix(port, seconds))
        unloaded = asyncio.run(ask(upstream, question(20, 5, "alone"))).first or 0.0
        cut = sum(not answer.good or answer.tokens != 40 for answer in batch)
    with engine() as upstream:
        direct_people, direct_batch = asyncio.run(_mix(upstream, seconds))
    ours = percentile([answer.first or 99.0 for answer in people], 0.99)
    theirs = percentile([answer.first or 99.0 for answer in direct_people], 0.99)
    tokens = sum(answer.tokens for answer in [*people, *batch])
    direct_tokens = sum(answer.tokens for answer in [*direct_people, *direct_batch])
    return [
        Figure(name=f"interactive p99 first token, s (unloaded {unloaded:.3f})", value=ours, direct=theirs,
               goal="≤ 1/5 of direct, ≤ 0.5", met=ours <= theirs / 5 and ours <= 0.5 * TIMES),
        Figure(name="tokens of both classes against direct", value=tokens / direct_tokens, goal="≥ 0.90",
               met=tokens >= 0.9 * direct_tokens),
        Figure(name="batch answers that were cut short", value=cut, goal="0", met=cut == 0),
    ]  # fmt: skip


async def _exact(port: int, upstream: int, prompts: list[dict[str, Any]]) -> tuple[int, int, int]:
    whole = [await ask(upstream, prompt) for prompt in prompts]
    work = [asyncio.ensure_future(ask(port, prompt, BATCH)) for prompt in prompts]
    people = []
    for number in range(3 * len(prompts)):
        await asyncio.sleep(0.25 * TIMES)
        people.append(await ask(port, question(10, 2, f"p{number}"), INTERACTIVE))
    answers = await asyncio.gather(*work)
    same = sum(
        one.text == other.text and one.finish == other.finish and _counts(one) == _counts(other)
        for one, other in zip(whole, answers, strict=True)
    )
    return same, len(prompts), int(metric(port, "velollm_preemptions_total"))


def _counts(answer: Answer) -> list[int]:
    usage = answer.usage or {}
    return [usage.get(name, -1) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]


def exactness(seconds: float) -> list[Figure]:
    """Batch answers that make way, against the same ones undisturbed."""
    prompts = [question(30, 40, f"x{number}", stream_options={"include_usage": True}) for number in range(16)]
    with engine("--slots", "2") as upstream, velollm("--backend", f"llamacpp://127.0.0.1:{upstream}") as port:
        same, count, preempted = asyncio.run(_exact(port, upstream, prompts))
    return [
        Figure(
            name=f"preempted answers equal to undisturbed ones, of {count}",
            value=same,
            goal=str(count),
            met=same == count,
        ),
        Figure(name="preemptions", value=preempted, goal="≥ 4", met=preempted >= 4),
    ]


async def _flood(port: int, rate: float, seconds: float, deadline: float) -> tuple[list[Answer], list[float]]:
    listing: list[float] = []

    async def look() -> None:
        while True:
            await asyncio.sleep(0.5)
            listing.append((await get(port, "/v1/models"))[0])

    looking = asyncio.ensure_future(look())
    answers = await steady(rate, seconds, lambda number: ask(port, question(10, 19, f"f{number}")))
    looking.cancel()
    return answers, listing


def overload(seconds: float) -> list[Figure]:
    """4 slots, 0.4 s a request, an SLO of 2 s: from half the load that fits to 20 times as much."""
    goodput: dict[float, float] = {}
    refused: list[float] = []
    found: list[Answer] = []
    listings: list[float] = []
    most = 0
    with_hint = True
    for factor in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0):
        with (
            engine() as upstream,
            velollm("--backend", f"llamacpp://127.0.0.1:{upstream}", "--slo", str(2 * TIMES)) as port,
        ):
            answers, listing = asyncio.run(_flood(port, 10.0 * factor, seconds, 2.0))
            most = max(most, asyncio.run(get(upstream, "/stats"))[1]["most_running"])
        begin = min(answer.asked for answer in answers)
        late = [answer for answer in answers if answer.asked - begin > TIMES * seconds / 2]
        good = [answer for answer in late if answer.good and (answer.first or 999) <= 2 * TIMES]
        goodput[factor] = len(good) / (seconds / 2)
        listings += listing
        found += [answer for answer in answers if answer.status == 200]
        no = [answer for answer in answers if answer.status == 503]
        refused += [answer.total for answer in no]
        with_hint = with_hint and all(answer.headers.get("retry-after", "").isdigit() for answer in no)
        print(f"  {factor} x: goodput {goodput[factor]:.2f}/s, {len(no)} of {len(answers)} refused", file=sys.stderr)
    peak = max(goodput.values())
    worst = min(value for factor, value in goodput.items() if factor >= 1.0)
    errors = sum(not answer.good for answer in found)
    first = percentile([answer.first or 99.0 for answer in found], 0.95)
    return [
        Figure(
            name="goodput from 1 to 20 x, against its peak", value=worst / peak, goal="≥ 0.90", met=worst >= 0.9 * peak
        ),
        Figure(
            name="goodput at 10 x, against capacity (10/s)",
            value=goodput[10.0] / 10,
            goal="≥ 0.90",
            met=goodput[10.0] >= 9,
        ),
        Figure(
            name="refusals p95, s",
            value=percentile(refused, 0.95),
            goal="≤ 0.05",
            met=percentile(refused, 0.95) <= 0.05,
        ),
        Figure(name="refusals with Retry-After in whole seconds", value=float(with_hint), goal="1", met=with_hint),
        Figure(name="accepted, first token p95, s", value=first, goal="≤ 2", met=first <= 2 * TIMES),
        Figure(name="accepted that failed", value=errors, goal="0", met=errors == 0),
        Figure(name="most requests at once in an engine of 4 slots", value=most, goal="≤ 4", met=most <= 4),
        Figure(
            name="GET /v1/models during the flood, longest, s",
            value=max(listings),
            goal="≤ 0.1",
            met=max(listings) <= 0.1,
        ),
    ]


async def _tenants(port: int, seconds: float) -> list[float]:
    """Three tenants with work of different sizes, each with more than its share."""
    names, sizes = ("a", "b", "c"), (5, 15, 30)
    begin = asyncio.get_running_loop().time()
    done = dict.fromkeys(names, 0)

    async def call(client: int, turn: int) -> Answer:
        number = client % 3
        answer = await ask(port, question(10, sizes[number], f"t{client}.{turn}"), key(names[number]))
        if asyncio.get_running_loop().time() - begin <= TIMES * seconds:
            done[names[number]] += answer.tokens
        return answer

    await busy(30, seconds, call)
    return [float(value) for value in done.values()]


async def _light(port: int, seconds: float) -> list[Answer]:
    """A key that floods with 6 times what fits, and one that asks once in a while."""
    flood = asyncio.ensure_future(
        steady(60.0, seconds, lambda number: ask(port, question(10, 19, f"h{number}"), key("a")))
    )
    light = await steady(1.0, seconds, lambda number: ask(port, question(10, 19, f"l{number}"), key("b")))
    await flood
    return light


def fairness(seconds: float) -> list[Figure]:
    """Equal tenants get equal tokens; a light key beside a flood is hardly disturbed."""
    with ExitStack() as stack:
        keys = stack.enter_context(keys_file(["a", "b", "c"]))
        upstream = stack.enter_context(engine())
        port = stack.enter_context(velollm("--backend", f"llamacpp://127.0.0.1:{upstream}", "--keys", str(keys)))
        shares = asyncio.run(_tenants(port, seconds))
    with ExitStack() as stack:
        keys = stack.enter_context(keys_file(["a", "b"]))
        upstream = stack.enter_context(engine())
        port = stack.enter_context(
            velollm("--backend", f"llamacpp://127.0.0.1:{upstream}", "--keys", str(keys), "--slo", str(2 * TIMES))
        )
        light = asyncio.run(_light(port, seconds))
        alone = asyncio.run(ask(port, question(10, 19, "alone"), key("b")))
    with engine() as upstream:
        direct = asyncio.run(_light(upstream, seconds))
    served = sum(answer.good for answer in light) / len(light)
    ours = percentile([answer.first or 99 for answer in light if answer.good], 0.9)
    theirs = percentile([answer.first or 99 for answer in direct], 0.9)
    total = percentile([answer.total for answer in light if answer.good], 0.9)
    index = jain(shares)
    return [
        Figure(
            name="Jain's index of tokens, three tenants of unequal requests",
            value=index,
            goal="≥ 0.95",
            met=index >= 0.95,
        ),
        Figure(name="light key beside a flood: served", value=served, goal="≥ 0.99", met=served >= 0.99),
        Figure(
            name="light key: first token p90, s",
            value=ours,
            direct=theirs,
            goal="≤ 1/4 of direct",
            met=ours <= theirs / 4,
        ),
        Figure(
            name="light key: answer p90, against unloaded",
            value=total / alone.total,
            goal="≤ 2",
            met=total <= 2 * alone.total,
        ),
    ]


async def _conversations(port: int, count: int, turns: int, *, sessions: bool = False) -> list[Answer]:
    """Conversations that share a system prompt, each turn sent with all that was said before."""
    system = " ".join(f"rule{number}" for number in range(300))

    async def talk(number: int) -> list[Answer]:
        await asyncio.sleep(0.05 * TIMES * number)
        messages: list[dict[str, str]] = [{"role": "system", "content": system}]
        answers = []
        for turn in range(turns):
            words = " ".join(f"c{number}t{turn}w{index}" for index in range(150))
            messages.append({"role": "user", "content": words})
            body = {"model": MODEL, "messages": messages, "max_tokens": 8, "stream": True, "temperature": 0}
            headers = {"x-velollm-session": f"s{number}"} if sessions else {}
            answer = await ask(port, body, headers)
            answers.append(answer)
            messages.append({"role": "assistant", "content": answer.text})
            await asyncio.sleep(TIMES * (0.1 + 0.4 * random.Random(f"{number}.{turn}").random()))
        return answers

    talks = await asyncio.gather(*(talk(number) for number in range(count)))
    return [answer for answers in talks for answer in answers]


def _three(policy: str, *, sessions: bool = False) -> tuple[list[int], list[int], list[Answer]]:
    with ExitStack() as stack:
        ports = [stack.enter_context(engine("--slots", "2", "--cache", "9000")) for _ in range(3)]
        backends = [part for port in ports for part in ("--backend", f"llamacpp://127.0.0.1:{port}")]
        port = stack.enter_context(velollm(*backends, "--routing", policy))
        answers = asyncio.run(_conversations(port, 24, 6, sessions=sessions))
        stats = [asyncio.run(get(upstream, "/stats"))[1] for upstream in ports]
    return [one["prefill"] for one in stats], [one["requests"] for one in stats], answers


def affinity(seconds: float) -> list[Figure]:
    """24 conversations of 6 turns over 3 engines of 2 slots, each with a cache that holds its third of them."""
    prefix, spread, answers = _three("prefix")
    robin, _, _ = _three("round-robin")
    _, _, sticky = _three("least-loaded", sessions=True)
    stuck = 0
    for number in range(24):
        homes = [answer.headers.get("x-velollm-backend") for answer in sticky[6 * number : 6 * number + 6]]
        stuck += sum(home == homes[0] for home in homes[1:])
    failed = sum(not answer.good for answer in [*answers, *sticky])
    ratio, balance = sum(prefix) / sum(robin), max(spread) / min(spread)
    return [
        Figure(name="prefill tokens against round robin", value=ratio, goal="≤ 0.4", met=ratio <= 0.4),
        Figure(
            name="prefill tokens against the fewest possible",
            value=sum(prefix) / FEWEST,
            goal="≤ 1.05",
            met=sum(prefix) <= 1.05 * FEWEST,
        ),
        Figure(name="most requests of an engine against the fewest", value=balance, goal="≤ 1.5", met=balance <= 1.5),
        Figure(name="turns of a session at its home", value=stuck / 120, goal="≥ 0.9", met=stuck >= 108),
        Figure(name="requests that failed", value=failed, goal="0", met=failed == 0),
    ]


async def _two_models(port: int) -> list[Answer]:
    """Six clients, three for each of two models that do not fit together."""

    async def client(number: int) -> list[Answer]:
        answers = []
        for turn in range(12):
            body = {**question(10, 8, f"m{number}.{turn}"), "model": "one" if number % 2 else "two"}
            answers.append(await ask(port, body))
        return answers

    return [answer for answers in await asyncio.gather(*(client(number) for number in range(6))) for answer in answers]


def models(seconds: float) -> list[Figure]:
    """Two models of which one is loaded at a time, in 1 s; a quantum of 2.5 s."""
    options = ("--slots", "2", "--load", str(1000 * TIMES), "--models", "one,two")
    with (
        engine(*options) as upstream,
        velollm("--backend", f"llamacpp://127.0.0.1:{upstream}", "--model-quantum", str(2.5 * TIMES)) as port,
    ):
        answers = asyncio.run(_two_models(port))
        loads = asyncio.run(get(upstream, "/stats"))[1]["loads"]
    with engine(*options) as upstream:
        direct = asyncio.run(_two_models(upstream))
        direct_loads = asyncio.run(get(upstream, "/stats"))[1]["loads"]
    ours, theirs = loads / len(answers), direct_loads / len(direct)
    longest = max(answer.first or 99.0 for answer in answers)
    return [
        Figure(name="loads an answer", value=ours, direct=theirs, goal="≤ 1/5 of direct", met=ours <= theirs / 5),
        Figure(
            name="longest first token, s (loading takes 1)",
            value=longest,
            goal="≤ 2 quanta and a load",
            met=longest <= 6.5 * TIMES,
        ),
    ]


async def _leave(port: int, upstream: int) -> tuple[float, int]:
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(ask(port, question(10, 2000, f"g{number}"), leave=1.0) for number in range(200)))
    begin = loop.time()
    while True:
        stats = (await get(upstream, "/stats"))[1]
        if not stats["running"] and not stats["waiting"]:
            return loop.time() - begin, stats["most_running"]
        if loop.time() - begin > 10:
            return 99.0, stats["most_running"]
        await asyncio.sleep(0.01)


def leaving(seconds: float) -> list[Figure]:
    """200 clients that leave after a second."""
    with engine() as upstream, velollm("--backend", f"llamacpp://127.0.0.1:{upstream}") as port:
        took, most = asyncio.run(_leave(port, upstream))
        after = asyncio.run(ask(port, question(10, 5, "after")))
    return [
        Figure(name="slots free after 200 clients left, s", value=took, goal="≤ 0.5", met=took <= 0.5),
        Figure(name="most requests at once in an engine of 4 slots", value=most, goal="≤ 4", met=most <= 4),
        Figure(
            name="first token of the next client, s",
            value=after.first or 99.0,
            goal="≤ 0.5",
            met=(after.first or 99) <= 0.5,
        ),
    ]


async def _mixed(
    port: int, seconds: float, *, clients: int, tokens: int, rate: float = 2.0, headers: Mapping[str, str] = {}
) -> list[list[Answer]]:
    """Batch clients, and `rate` questions of people a second; of both, what was asked in the second half."""
    begin = asyncio.get_running_loop().time()

    def work(client: int, turn: int) -> Awaitable[Answer]:
        return ask(port, question(8, tokens, f"b{client}.{turn}"), {**headers, **BATCH})

    def person(number: int) -> Awaitable[Answer]:
        return ask(port, question(4, 5, f"i{number}"), {**headers, **INTERACTIVE})

    batch = asyncio.ensure_future(busy(clients, seconds, work))
    people = await steady(rate, seconds, person)
    half = begin + TIMES * seconds / 2
    return [[answer for answer in answers if answer.asked >= half] for answers in (people, await batch)]


def _of_both(ours: list[list[Answer]], direct: list[list[Answer]]) -> list[Figure]:
    """People and batch work behind VeloLLM, and at the engine itself."""
    first, direct_first = (percentile([answer.first or 99.0 for answer in people], 0.9) for people, _ in (ours, direct))
    tokens, direct_tokens = (sum(answer.tokens for one in both for answer in one) for both in (ours, direct))
    failed = sum(not answer.good for one in ours for answer in one)
    return [
        Figure(name="interactive p90 first token, s", value=first, direct=direct_first, goal="≤ 1/2 of direct",
               met=first <= direct_first / 2),
        Figure(name="tokens of both classes against direct", value=tokens / direct_tokens, goal="≥ 0.90",
               met=tokens >= 0.9 * direct_tokens),
        Figure(name="requests that failed", value=failed, goal="0", met=failed == 0),
    ]  # fmt: skip


def learned(seconds: float) -> list[Figure]:
    """An engine of 6 slots that says nothing of them, cannot go on with answers, and queues what is too much."""
    found = []
    for direct in (False, True):
        with ExitStack() as stack:
            port = upstream = stack.enter_context(engine("--slots", "6"))
            if not direct:
                port = stack.enter_context(velollm("--backend", f"openai+http://127.0.0.1:{upstream}/v1"))
            found.append(asyncio.run(_mixed(port, 2 * seconds, clients=18, tokens=40)))
    return _of_both(*found)


def llama_server(seconds: float) -> list[Figure]:
    """A real llama-server of two slots with the default model, whose batch answers make way."""
    found = []
    with real_engine(slots=2) as (upstream, key):
        for direct in (False, True):
            with ExitStack() as stack:
                port, headers = upstream, {"authorization": f"Bearer {key}"}
                if not direct:
                    port, headers = stack.enter_context(velollm_before(upstream, key)), {}
                found.append(asyncio.run(_mixed(port, 2 * seconds, clients=5, tokens=100, rate=0.3, headers=headers)))
                if not direct:
                    preempted = metric(port, "velollm_preemptions_total")
    return [*_of_both(*found), Figure(name="preemptions", value=preempted, goal="≥ 1", met=preempted >= 1)]


SCENARIOS = (priority, exactness, overload, fairness, affinity, models, leaving, learned, llama_server)
