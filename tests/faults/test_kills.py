"""Engines that die at every place of an answer, also twice in one: what the client reads is what it would have read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.asgi import Client
from support.exact import ExactEngine, ids_of
from support.faulty import QUICK, STREAM
from support.serving import served
from support.upstream import Peer, scripted

from velollm.config import CacheSettings, Settings
from velollm.contrib.llamacpp import LlamaServerBackend
from velollm.server.app import ServerApp

pytestmark = pytest.mark.anyio

# Halves of characters, tokens that the tokenizer would never cut so, and what looks like a stop string.
SCRIPT = ids_of(
    b"Hel", b"lo", b" wor", b"ld", b" ", b"\xf0\x9f", b"\xa6\x8a", b" w1", b"\n", b"\n", b"E", b"N", b" w2",
    b"\xe6\x97", b"\xa5", b"!", b" w3", b"E", b"N", b"D", b" w4", b" w5",
)  # fmt: skip
TEXT = "Hello world 🦊 w1\n\nEN w2日! w3END w4 w5"
ASKED: dict[str, Any] = {**STREAM, "temperature": 0, "stream_options": {"include_usage": True}}
FIRST_EVENT = 170  # bytes; two engines that end before they say anything are enough: a third one is not risked


@attrs.frozen
class Said:
    """What a client makes of a stream."""

    text: str
    finish: str | None
    usage: tuple[int, int] | None


@asynccontextmanager
async def rig(*engines: ExactEngine) -> AsyncGenerator[ServerApp, None]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(scripted(one)) for one in engines]
        backends = [
            LlamaServerBackend(server.url.replace("http", "llamacpp"), name="abcd"[number], limits=QUICK)
            for number, server in enumerate(servers)
        ]
        app = served(*backends, settings=Settings(cache=CacheSettings(enabled=False)))
        yield app
        assert all(member.health.running == 0 for member in app.pool.members)
        await app.backend.aclose()


async def ask(app: ServerApp, payload: dict[str, Any] = ASKED) -> Said:
    client = Client("POST", "/v1/chat/completions", payload, host="localhost")
    async with asyncio.timeout(8):
        await app(client.scope, client.receive, client.send)
    assert client.status == 200, client.text
    lines = [line[6:] for line in client.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-3:]
    found = [orjson.loads(line) for line in lines[:-1]]
    assert not [event for event in found if "error" in event]
    assert len({event["id"] for event in found}) == 1, "one id"
    choices = [choice for event in found for choice in event["choices"]]
    assert sum(1 for choice in choices if choice["delta"].get("role")) == 1, "one role"
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    usages = [event["usage"] for event in found if event.get("usage")]
    assert len(finishes) == 1
    assert len(usages) == 1, "one usage"
    usage = usages[0]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return Said(text, finishes[0], (usage["prompt_tokens"], usage["completion_tokens"]))


async def undisturbed(payload: dict[str, Any]) -> Said:
    async with rig(ExactEngine(script=SCRIPT)) as app:
        return await ask(app, payload)


def places(payload: dict[str, Any]) -> list[int]:
    """Around the end of every event but `[DONE]`, and in the middle of each."""
    data = ExactEngine(script=SCRIPT).events(SCRIPT, payload)
    ends = [at + 2 for at in range(len(data)) if data[at : at + 2] == b"\n\n"][:-1]
    return sorted({place for end in ends for place in (end - 60, end - 1, end)})


def once(cut: int) -> Callable[[int], int | None]:
    return lambda number: cut if number == 0 else None


async def test_the_scripted_engine_is_what_it_should_be() -> None:
    assert await undisturbed(ASKED) == Said(TEXT, "stop", (4, len(SCRIPT)))
    assert (await undisturbed({**ASKED, "stop": ["END"]})).text == TEXT[: TEXT.index("END")]
    assert (await undisturbed({**ASKED, "max_tokens": 5})).finish == "length"


@pytest.mark.parametrize("resumes", [True, False], ids=["by-ids", "made-again"])
@pytest.mark.parametrize(
    "extra",
    [{}, {"stop": ["END"]}, {"stop": ["N w", "nothing"]}, {"max_tokens": 21}, {"max_tokens": 9, "stop": ["\n"]}],
)
async def test_killed_anywhere(extra: dict[str, Any], resumes: bool) -> None:
    payload = {**ASKED, **extra}
    expected = await undisturbed(payload)
    for number, place in enumerate(places(payload)):
        end = (Peer.reset, Peer.close)[number % 2]
        first = ExactEngine(script=SCRIPT, cuts=once(place), ends=end, resumes=resumes)
        async with rig(first, ExactEngine(script=SCRIPT, resumes=resumes)) as app:
            assert await ask(app, payload) == expected, place


async def test_what_is_drawn_goes_on_from_the_same_tokens_too() -> None:
    payload = {**ASKED, "temperature": 0.8}
    expected = await undisturbed(payload)
    for place in places(payload)[::2]:
        engines = [ExactEngine(script=SCRIPT, cuts=once(place)), ExactEngine(script=SCRIPT)]
        async with rig(*engines) as app:
            assert await ask(app, payload) == expected, place


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.integers(FIRST_EVENT, 4200), second=st.integers(0, 4200), resumes=st.booleans(),
    stop=st.sampled_from([None, "END", "N w2", "\n\nE", "D w4 w"]), limit=st.one_of(st.none(), st.integers(1, 30)),
)  # fmt: skip
def test_killed_twice_in_one_answer(
    first: int, second: int, stop: str | None, limit: int | None, resumes: bool
) -> None:
    async def run() -> None:
        payload = {**ASKED, **({"stop": [stop]} if stop else {}), **({"max_tokens": limit} if limit else {})}
        expected = await undisturbed(payload)
        last = max(places(payload), default=0)
        engines = [
            ExactEngine(script=SCRIPT, cuts=once(max(FIRST_EVENT, min(first, last))), resumes=resumes),
            ExactEngine(script=SCRIPT, cuts=once(min(second, last)), resumes=resumes),
            ExactEngine(script=SCRIPT),
        ]
        async with rig(*engines) as app:
            assert await ask(app, payload) == expected

    asyncio.run(run())
