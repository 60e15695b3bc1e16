"""What stands between many clients and few engines under load: VeloLLM against going straight to the engine.

    python benchmarks/load.py [--only priority,overload,...] [--seconds 12]

The engine is `simulated_engine.py`, whose time is known: slots, prefill and decode by the token. Every figure has a
goal beside it. Writes results/load.md and load.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
from client import Answer, ask, get, percentile
from harness import HERE, free_port, machine

MODEL = "sim"
# Everything takes so many times as long, the engine's work and what is asked of it: for machines that are busy.
TIMES = float(os.environ.get("LOAD_TIMES", "1"))
INTERACTIVE = {"x-velollm-priority": "interactive"}
BATCH = {"x-velollm-priority": "batch"}


@attrs.frozen(kw_only=True)
class Figure:
    """One figure: what was measured, what it is without VeloLLM where that says something, and its goal."""

    name: str
    value: float
    goal: str
    met: bool
    direct: float | None = None


# ---- what is measured ------------------------------------------------------------------------------------------------


@contextmanager
def engine(*options: str) -> Iterator[int]:
    """A simulated engine, and its port."""
    times = ("--prefill", str(TIMES), "--decode", str(20 * TIMES))
    command = [sys.executable, str(HERE / "simulated_engine.py"), *times, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@contextmanager
def velollm(*options: str) -> Iterator[int]:
    """`velollm serve`, and its port."""
    port = free_port()
    command = [sys.executable, "-m", "velollm", "-q", "serve", "--port", str(port), *options]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(20)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("velollm serve did not come up")


def question(words: int, tokens: int, seed: object, **more: Any) -> dict[str, Any]:
    """A request of about `words` tokens that asks for `tokens`."""
    text = " ".join(f"{seed}-{number}" for number in range(words))
    return {
        "model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": True,
        "temperature": 0, **more,
    }  # fmt: skip


async def steady(rate: float, seconds: float, call: Callable[[int], Awaitable[Answer]]) -> list[Answer]:
    """An open loop: `rate` calls a second, evenly, whatever becomes of them."""
    begin = asyncio.get_running_loop().time()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + TIMES * number / rate - asyncio.get_running_loop().time()))
        tasks.append(asyncio.ensure_future(call(number)))
    return list(await asyncio.gather(*tasks))


async def busy(clients: int, seconds: float, call: Callable[[int, int], Awaitable[Answer]]) -> list[Answer]:
    """A closed loop: each client asks again as soon as it was answered."""
    loop = asyncio.get_running_loop()
    end = loop.time() + TIMES * seconds

    async def client(number: int) -> list[Answer]:
        answers: list[Answer] = []
        while loop.time() < end:
            answers.append(await call(number, len(answers)))
            if not answers[-1].good:
                await asyncio.sleep(0.2 * TIMES)
        return answers

    return [
        answer for answers in await asyncio.gather(*(client(number) for number in range(clients))) for answer in answers
    ]


def jain(values: list[float]) -> float:
    """1 when all have the same."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


# ---- scenarios -------------------------------------------------------------------------------------------------------


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
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    preempted = next(
        float(line.split()[1]) for line in metrics.splitlines() if line.startswith("velollm_preemptions_total")
    )
    return same, len(prompts), int(preempted)


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


@contextmanager
def keys_file(names: list[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.toml"
        path.write_text("".join(f'[[keys]]\nname = "{name}"\nkey = "sk-{name}-0123456789abcdef"\n' for name in names))
        yield path


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}-0123456789abcdef"}


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


SCENARIOS = (priority, exactness, overload, fairness, affinity, models, leaving)


# ---- reporting -------------------------------------------------------------------------------------------------------


def table(found: dict[str, list[Figure]]) -> str:
    """All figures in Markdown."""
    lines = ["| scenario | figure | direct | VeloLLM | goal | |", "|---|---|--:|--:|---|---|"]
    for name, figures in found.items():
        for figure in figures:
            direct = "" if figure.direct is None else f"{figure.direct:.3g}"
            mark = "met" if figure.met else "missed"
            lines.append(f"| {name} | {figure.name} | {direct} | {figure.value:.3g} | {figure.goal} | {mark} |")
    return "\n".join(lines)


def write(found: dict[str, list[Figure]], about: dict[str, str], folder: Path) -> None:
    """results/load.md and .json; scenarios that were not run keep their last figures."""
    folder.mkdir(parents=True, exist_ok=True)
    record_file = folder / "load.json"
    known = json.loads(record_file.read_text()) if record_file.exists() else {"scenarios": {}, "times": {}}
    every = {name: [Figure(**figure) for figure in figures] for name, figures in known["scenarios"].items()} | found
    times = known["times"] | dict.fromkeys(found, TIMES)
    words = "\n".join(f"- **{name}** (times {times[name]:g}): {about[name]}" for name in every)
    (folder / "load.md").write_text(f"{HEAD}\n\n{table(every)}\n\n{words}\n\nMeasured on {machine()}. {TAIL}\n")
    plain = {name: [attrs.asdict(figure) for figure in figures] for name, figures in every.items()}
    record_file.write_text(json.dumps({"machine": machine(), "times": times, "scenarios": plain}, indent=1) + "\n")


HEAD = "# Under load\n\nVeloLLM in front of an engine, against the same clients at the engine itself."
TAIL = (
    "Clients, proxy and engine shared the machine with other work; so all times, of the engine and of the goals, "
    "were so many times as long as said (`LOAD_TIMES`). Repeat with `python benchmarks/load.py`."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="scenarios, comma-separated: " + ", ".join(s.__name__ for s in SCENARIOS)
    )
    parser.add_argument("--seconds", type=float, default=12.0, help="of load in each part")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    asked = parser.parse_args()
    wanted = [name for name in asked.only.split(",") if name]
    found: dict[str, list[Figure]] = {}
    for scenario in SCENARIOS:
        if not wanted or scenario.__name__ in wanted:
            print(scenario.__name__, file=sys.stderr)
            found[scenario.__name__] = scenario(asked.seconds)
    print(table(found))
    write(found, {one.__name__: (one.__doc__ or "").strip() for one in SCENARIOS}, asked.out)
    return 0 if all(figure.met for figures in found.values() for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
