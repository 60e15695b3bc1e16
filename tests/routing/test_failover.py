"""Backends of a pool that fail: before the first word, in the middle of an answer, by hanging, by being slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from support.asgi import ask as http
from support.asking import answer
from support.serving import served

from velollm.backend import Backend
from velollm.continuation import Said
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    ModelNotFound,
    Overloaded,
    UnsupportedError,
    VeloError,
)
from velollm.messages import ChatAnswer, ChatEvent, ChatRequest, Message, ModelInfo, ResponseMeta, Usage
from velollm.routing import BackendPool
from velollm.routing.watch import Watch

pytestmark = pytest.mark.anyio

WORDS = [f" w{number}" for number in range(30)]


class Engine(Backend):
    """Says `words`; after `breaks` of them it fails with `error`. Hangs while `hung`."""

    def __init__(
        self, name: str, *, breaks: int | None = None, error: VeloError | None = None, proved: bool = True
    ) -> None:
        self.name = name
        self.words = list(WORDS)
        self.breaks = breaks
        self.error = error or BackendProtocolError(f"{name} broke off")
        self.proved = proved
        self.asked: list[tuple[str, int]] = []
        self.running = 0
        self.running_tasks: set[asyncio.Future[None]] = set()
        self.hung = False

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.asked.append(("chat", 0))
        async with aclosing(self._say(0)) as events:
            async for event in events:
                yield event

    async def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        self.asked.append(("resume", len(said.pieces)))
        async with aclosing(self._say(len(said.pieces))) as events:
            async for event in events:
                yield event

    async def _say(self, first: int) -> AsyncGenerator[ChatEvent, None]:
        self.running += 1
        try:
            for number, word in enumerate(self.words[first:]):
                if number == self.breaks:
                    raise self.error
                if self.hung:
                    await self._hang()
                await asyncio.sleep(0)
                yield ChatEvent(word, meta=ResponseMeta(id=f"{self.name}-{first}") if number == 0 else None)
            if self.breaks is not None and self.breaks >= len(self.words) - first:
                raise self.error
            yield ChatEvent(finish_reason="stop", usage=Usage(prompt_tokens=3, completion_tokens=len(self.words)))
        finally:
            self.running -= 1

    async def _hang(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running_tasks.add(future)
        await future

    def break_off(self, why: str) -> None:
        for future in self.running_tasks:
            if not future.done():
                future.set_exception(BackendTimeout(why))

    async def resumes(self, model: str) -> bool:
        return self.proved

    async def ready(self) -> None:
        if self.hung:
            await asyncio.sleep(60)

    async def models(self) -> list[ModelInfo]:
        if isinstance(self.error, BackendUnreachable) and self.breaks == 0:
            raise self.error
        return [ModelInfo(id="m")]


def ask(**changes: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=[Message(role="user", content="Count")], stream=True, **changes)


def text(found: ChatAnswer) -> str:
    return found.choices[0].text


async def test_a_stream_that_breaks_goes_on_elsewhere() -> None:
    a, b = Engine("a", breaks=7), Engine("b")
    pool = BackendPool([a, b])
    request = ask()
    found = await answer(pool, request)
    assert text(found) == "".join(WORDS)
    assert found.meta.id == "a-0"
    assert found.usage == Usage(prompt_tokens=3, completion_tokens=30)
    assert b.asked == [("resume", 7)]
    assert request.context.headers["x-velollm-backend"] == "a"
    assert request.context.trailer["backend"] == "b"
    assert a.running == b.running == 0
    assert all(member.health.running == 0 for member in pool.members)
    await pool.aclose()


@pytest.mark.parametrize("count", [16, 120])
async def test_all_that_an_outage_hits_before_their_first_word_are_answered_elsewhere(count: int) -> None:
    over = asyncio.Event()

    class Waiting(Engine):
        async def _say(self, first: int) -> AsyncGenerator[ChatEvent, None]:
            await over.wait()
            async with aclosing(super()._say(first)) as events:
                async for event in events:
                    yield event

    a, b = Waiting("a", breaks=0), Waiting("b")
    pool = BackendPool([a, b])
    asking = [asyncio.create_task(answer(pool, ask())) for _ in range(count)]
    async with asyncio.timeout(2):
        while len(a.asked) + len(b.asked) < count:
            await asyncio.sleep(0.001)
    assert len(a.asked) == count // 2
    over.set()
    assert {text(found) for found in await asyncio.gather(*asking)} == {"".join(WORDS)}
    await pool.aclose()


async def test_several_backends_take_turns() -> None:
    engines = [Engine("a", breaks=7), Engine("b", breaks=5), Engine("c")]
    pool = BackendPool(engines)
    assert text(await answer(pool, ask())) == "".join(WORDS)
    assert engines[2].asked == [("resume", 12)]
    await pool.aclose()


async def test_without_proof_the_answer_is_repeated_and_checked() -> None:
    a, b = Engine("a", breaks=7), Engine("b", proved=False)
    pool = BackendPool([a, b])
    assert text(await answer(pool, ask())) == "".join(WORDS)
    assert b.asked == [("chat", 0)]
    await pool.aclose()


async def test_another_answer_is_an_error_not_a_wrong_text() -> None:
    a, b = Engine("a", breaks=7), Engine("b", proved=False)
    b.words[3] = " other"
    pool = BackendPool([a, b])
    said = ""
    with pytest.raises(BackendProtocolError, match="a broke off"):
        async for event in pool.chat(ask()):
            said += event.text
    assert said == "".join(WORDS[:7])
    await pool.aclose()


@pytest.mark.parametrize("changes", [{"logprobs": True}, {"n": 2}, {"seed": 1}, {"extra": {"grammar": "x"}}])
async def test_what_cannot_be_continued_fails_visibly(changes: dict[str, Any]) -> None:
    a, b = Engine("a", breaks=7), Engine("b")
    pool = BackendPool([a, b])
    with pytest.raises(BackendProtocolError, match="a broke off"):
        await answer(pool, ask(**changes))
    assert b.asked == []
    await pool.aclose()


async def test_with_one_backend_there_is_no_second_attempt() -> None:
    a = Engine("a", breaks=7)
    pool = BackendPool([a])
    with pytest.raises(BackendProtocolError):
        await answer(pool, ask())
    assert a.asked == [("chat", 0)]


@pytest.mark.parametrize("proved", [True, False])
async def test_an_answer_with_its_finish_has_its_usage_of_another(proved: bool) -> None:
    a, b = Engine("a"), Engine("b", proved=proved)

    async def breaks_behind_the_finish(first: int) -> AsyncGenerator[ChatEvent, None]:
        for word in said:
            yield ChatEvent(word)
        yield ChatEvent(finish_reason="stop")
        raise BackendProtocolError("no [DONE]")

    a._say = breaks_behind_the_finish  # type: ignore[method-assign]
    pool = BackendPool([a, b])
    said = WORDS
    found = await answer(pool, ask())
    assert text(found) == "".join(WORDS)
    assert found.usage == Usage(prompt_tokens=3, completion_tokens=30)
    said = WORDS[:-1]  # the other one has more to say: its end is not this one's
    with pytest.raises(BackendProtocolError, match="DONE"):
        await answer(pool, ask())
    await pool.aclose()


async def test_whoever_cannot_go_on_leaves_it_to_the_next() -> None:
    a, b, c = Engine("a", breaks=7), Engine("b", proved=False), Engine("c")
    b.words[3] = " other"
    pool = BackendPool([a, b, c])
    assert text(await answer(pool, ask())) == "".join(WORDS)
    assert (b.asked, c.asked) == ([("chat", 0)], [("resume", 7)])
    await pool.aclose()


async def test_unreachable_ones_cost_no_retries_and_come_back() -> None:
    now = 0.0
    a, b = Engine("a", breaks=0, error=BackendUnreachable("down")), Engine("b")
    a.breaks = None
    pool = BackendPool([a, b], clock=lambda: now, fresh=1000)
    await answer(pool, ask())
    a.breaks = 0
    for _ in range(20):
        assert text(await answer(pool, ask())) == "".join(WORDS)
    assert len(a.asked) == 2, "once it is known to be down it is left in peace"
    a.breaks = None
    await pool.members[0].probe()
    await answer(pool, ask())
    assert len(a.asked) == 3
    await pool.aclose()


async def test_one_404_shuts_nobody_out() -> None:
    a = Engine("a", breaks=0, error=BackendRefused("gone", status=404))
    pool = BackendPool([a, Engine("b")])
    for _ in range(10):
        with pytest.raises(BackendRefused):
            await answer(pool, ask())
    a.breaks = None
    await answer(pool, ask())
    assert len(a.asked) == 11
    await pool.aclose()


async def test_retries_keep_to_their_budget() -> None:
    engines = [Engine(name, breaks=0, error=BackendRefused("busy", status=503)) for name in "ab"]
    pool = BackendPool(engines)
    for _ in range(50):
        with pytest.raises(BackendRefused):
            await answer(pool, ask())
    assert sum(len(engine.asked) for engine in engines) <= 55
    await pool.aclose()


async def test_a_hung_one_loses_its_work_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"QUIET_SECONDS": 0.03, "HUNG_SECONDS": 0.05, "EVERY_SECONDS": 0.02}.items():
        monkeypatch.setattr(f"velollm.routing.watch.{name}", value)
    monkeypatch.setattr("velollm.routing.member.CHECK_SECONDS", 0.03)
    a, b = Engine("a"), Engine("b")
    pool = BackendPool([a, b])
    pool._watch = Watch(pool.members, pool._clock, every=0.02)
    said = ""
    async with aclosing(pool.chat(ask())) as events:
        async for event in events:
            said += event.text
            if len(said) > 20:
                a.hung = True
    assert said == "".join(WORDS)
    assert b.asked != []
    assert not pool.members[0].health.allows(pool._clock())
    await answer(pool, ask())
    a.hung = False
    async with asyncio.timeout(2):
        while not pool.members[0].health.allows(pool._clock()):
            await pool.members[0].probe()
    await pool.aclose()


async def test_a_drained_one_finishes_what_it_has() -> None:
    a, b = Engine("a"), Engine("b")
    pool = BackendPool([a, b])
    async with aclosing(pool.chat(ask())) as events:
        said = (await anext(events)).text
        pool.drain("a")
        await answer(pool, ask())
        assert b.asked == [("chat", 0)]
        async for event in events:
            said += event.text
    assert said == "".join(WORDS)
    pool.drain("b")
    with pytest.raises(Overloaded) as caught:
        await answer(pool, ask())
    assert caught.value.retry_after is not None
    pool.drain("a", on=False)
    await answer(pool, ask())
    await pool.aclose()


async def test_draining_by_http() -> None:
    a, b = Engine("a"), Engine("b")
    app = served(a, b)
    place = "/velollm/api/drain/a"
    assert (await http(app, "PUT", place, host="localhost")).json == {"backend": "a", "draining": True, "running": 0}
    payload = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    for _ in range(4):
        assert (await http(app, "POST", "/v1/chat/completions", payload, host="localhost")).status == 200
    assert a.asked == []
    assert (await http(app, "DELETE", place, host="localhost")).json["draining"] is False
    assert (await http(app, "GET", "/velollm/api/drain/c", host="localhost")).status == 404
    assert (await http(app, "POST", place, host="localhost")).status == 405
    await app.backend.aclose()


async def test_the_pool_goes_on_for_whoever_interrupted() -> None:
    pool = BackendPool([Engine("a", proved=False), Engine("b")])
    assert await pool.resumes("m")
    events = [event async for event in pool.resume(ask(), Said(pieces=tuple(WORDS[:10])))]
    assert "".join(event.text for event in events) == "".join(WORDS[10:])
    pool = BackendPool([Engine("a", proved=False)])
    with pytest.raises(UnsupportedError):
        await anext(pool.resume(ask(), Said(pieces=("x",))))


async def test_a_client_that_leaves_says_nothing_against_a_backend() -> None:
    a, b = Engine("a"), Engine("b")
    pool = BackendPool([a, b])
    for _ in range(10):
        async with aclosing(pool.chat(ask())) as events:
            await anext(events)
    assert pool.members[0].health.allows(pool._clock())
    assert a.running == 0
    assert pool.members[0].health.running == 0
    with pytest.raises(ModelNotFound):
        await answer(pool, ask().replace(model="other"))
    await pool.aclose()


async def test_a_hung_one_keeps_nobody_waiting_for_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velollm.routing.pool.GRACE_SECONDS", 0.02)
    a, b = Engine("a"), Engine("b")
    pool = BackendPool([a, b], fresh=0)

    async def hangs() -> list[ModelInfo]:
        await asyncio.sleep(60)
        return []

    a.models = hangs  # type: ignore[method-assign]
    async with asyncio.timeout(2):
        assert text(await answer(pool, ask())) == "".join(WORDS)
    pool.members[0].listed = [ModelInfo(id="old")]
    async with asyncio.timeout(2):
        assert {model.id for model in await pool.models()} == {"old", "m"}
    await pool.aclose()
