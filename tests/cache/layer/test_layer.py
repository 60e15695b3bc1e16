"""The cache in the stack: hits in every shape, what is stored, who shares, and who steps aside."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.asking import answer
from support.backend import ScriptedBackend
from support.cache import Clock

from velollm.backend import Backend
from velollm.cache import ResponseCache
from velollm.cache.layer import CacheLayer
from velollm.errors import BackendTimeout, Overloaded, RequestError
from velollm.messages import (
    ChatAnswer,
    ChatEvent,
    ChatRequest,
    Message,
    ModelInfo,
    RequestContext,
    ResponseMeta,
    Tool,
    Usage,
)

pytestmark = pytest.mark.anyio
EGG = "How do I boil an egg?"
EGGS = "What is the best way to boil eggs?"


class Counting:
    """A layer around a scripted engine, and what it counted."""

    def __init__(self, backend: Backend | None = None, **options: Any) -> None:
        self.backend = backend or ScriptedBackend()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.clock = Clock()
        cache = options.pop("cache", None) or ResponseCache(
            **{"semantic": "on", "clock": self.clock, **options.pop("kept", {})}
        )
        self.layer = CacheLayer(self.backend, cache, observer=self.count, clock=self.clock, **options)

    def count(self, tier: str, outcome: str) -> None:
        self.counts[tier, outcome] += 1

    @property
    def calls(self) -> int:
        return len(self.backend.requests)  # type: ignore[attr-defined]

    async def ask(self, prompt: str = EGG, **fields: Any) -> tuple[ChatAnswer, dict[str, str]]:
        request = asking(prompt, **fields)
        return await answer(self.layer, request), request.context.headers


def asking(prompt: str = EGG, *, tenant: str = "", headers: dict[str, str] | None = None, **fields: Any) -> ChatRequest:
    context = RequestContext(tenant=tenant, client_headers=headers or {}, deadline=fields.pop("deadline", None))
    messages = fields.pop("messages", [Message(role="user", content=prompt)])
    return ChatRequest(**{"model": "tiny", "messages": messages, "context": context, **fields})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize(
    ("prompt", "tier"), [(EGG, "exact"), ("hi, how do i boil an egg", "canonical"), (EGGS, "semantic")]
)
async def test_a_hit_says_what_the_engine_said(first: bool, second: bool, prompt: str, tier: str) -> None:
    on = Counting()
    said, headers = await on.ask(stream=first)
    assert headers["x-velollm-cache"] == "miss"
    assert "age" not in headers
    on.clock.now += 7.9
    again, headers = await on.ask(prompt, stream=second)
    assert again.choices == said.choices
    assert again.usage is not None
    assert again.usage.completion_tokens == 3
    assert again.meta.model == "tiny"
    assert (headers["x-velollm-cache"], headers["age"]) == (f"hit-{tier}", "7")
    assert on.calls == 1
    assert on.counts == {("none", "miss"): 1, (tier, "hit"): 1}


async def test_tenants_do_not_see_each_other() -> None:
    on = Counting()
    await on.ask(tenant="ann")
    for tenant in ("bob", ""):
        for prompt in (EGG, EGG.lower(), EGGS):
            _, headers = await on.ask(
                prompt, tenant=tenant, headers={"cache-control": "no-store"} if prompt == EGGS else {}
            )
            assert not headers["x-velollm-cache"].startswith("hit") or prompt == EGG.lower()
    assert (await on.ask(tenant="ann"))[1]["x-velollm-cache"] == "hit-exact"


async def test_a_header_and_credentials_may_part_tenants() -> None:
    on = Counting(tenant_header="X-Team", by_credentials=True)
    seen = [
        (await on.ask(headers=headers))[1]["x-velollm-cache"]
        for headers in (
            {},
            {"x-team": "a"},
            {"x-team": "b"},
            {"authorization": "Bearer 1"},
            {"cookie": "a=1"},
            {"x-team": "a"},
        )
    ]
    assert seen == ["miss"] * 5 + ["hit-exact"]


@pytest.mark.parametrize(
    ("control", "again"),
    [
        ("no-store", "bypass; reason=no-store"),
        ("no-cache", "bypass; reason=no-cache"),
        ("max-age=5", "miss"),
        ("max-age=60", "hit-exact"),
    ],
)
async def test_cache_control(control: str, again: str) -> None:
    on = Counting()
    await on.ask()
    on.clock.now += 10
    _, headers = await on.ask(headers={"cache-control": control})
    assert headers["x-velollm-cache"] == again
    on.clock.now += 1
    _, headers = await on.ask()
    assert headers["age"] == ("1" if again in ("miss", "bypass; reason=no-cache") else "11")


async def test_a_caller_may_shorten_the_time_to_live_only() -> None:
    on = Counting()
    await on.ask(headers={"x-velollm-cache-ttl": "5"})
    await on.ask("What is DNA?", headers={"x-velollm-cache-ttl": "999999"})
    on.clock.now += 6
    assert (await on.ask())[1]["x-velollm-cache"] == "miss"
    on.clock.now += 3600
    assert (await on.ask("What is DNA?"))[1]["x-velollm-cache"] == "miss"


@pytest.mark.parametrize("given", ["x", "-1", "z" * 60_000])
async def test_a_time_to_live_that_is_none_is_the_clients_fault(given: str) -> None:
    on = Counting()
    with pytest.raises(RequestError, match="x-velollm-cache-ttl") as caught:
        await on.ask(headers={"x-velollm-cache-ttl": given})
    assert len(caught.value.message) < 300
    assert on.calls == 0


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({"temperature": 0.9}, "hit-exact"),
        ({"tools": [Tool(name="f")]}, "hit-exact"),
        ({"prompt": "What time is it?"}, "bypass; reason=time-bound"),
        ({"messages": [Message(role="tool", content="5", tool_call_id="1")]}, "bypass; reason=agent-turn"),
        ({"messages": []}, "bypass; reason=not-chat"),
    ],
)
async def test_eligibility(fields: dict[str, Any], header: str) -> None:
    on = Counting()
    await on.ask(**fields)
    assert (await on.ask(**fields))[1]["x-velollm-cache"] == header
    if "messages" not in fields and "prompt" not in fields:
        assert (await on.ask(EGGS, **fields))[1]["x-velollm-cache"] == "miss"


class Broken(ScriptedBackend):
    """Ends without a reason, with another one, or with an error."""

    def __init__(self, finish: Any, error: Exception | None = None) -> None:
        super().__init__()
        self.finish, self.failure = finish, error

    async def _events(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        yield ChatEvent(text="Half")
        if self.failure is not None:
            raise self.failure
        yield ChatEvent(finish_reason=self.finish)


@pytest.mark.parametrize("finish", ["length", "content_filter", None])
async def test_a_truncated_answer_is_not_kept(finish: Any) -> None:
    on = Counting(Broken(finish))
    for _ in range(2):
        assert (await on.ask())[1]["x-velollm-cache"] == "miss"
    assert on.calls == 2


@pytest.mark.parametrize("error", [BackendTimeout("late"), ValueError("bug")])
async def test_an_error_is_the_clients_and_is_not_kept(error: Exception) -> None:
    on = Counting(Broken("stop", error))
    for _ in range(2):
        with pytest.raises(type(error)):
            await on.ask()
    assert on.calls == 2
    assert on.layer._flights == {}


async def test_a_cancelled_answer_is_not_kept_and_ends_upstream() -> None:
    on = Counting(ScriptedBackend(pause=0.02))
    events = on.layer.chat(asking())
    await anext(events)
    await events.aclose()
    assert on.backend.cancelled == 1  # type: ignore[attr-defined]
    assert on.backend.running == 0  # type: ignore[attr-defined]
    assert on.layer._flights == {}
    assert (await on.ask())[1]["x-velollm-cache"] == "miss"


async def test_fifty_identical_requests_are_one_upstream_call() -> None:
    on = Counting(ScriptedBackend(pause=0.01))
    results = await asyncio.gather(*(on.ask(stream=number % 2 == 0) for number in range(50)))
    assert on.calls == 1
    assert {answer.choices[0].text for answer, _ in results} == {"Hello world"}
    assert Counter(headers["x-velollm-cache"] for _, headers in results) == {"miss": 1, "hit-exact": 49}
    assert on.counts == {("none", "miss"): 1, ("exact", "shared"): 49}
    assert on.layer._flights == {}


@pytest.mark.parametrize(
    "apart", [{"tenant": "u"}, {"temperature": 0.7}, {"deadline": 5.0}, {"headers": {"cache-control": "no-cache"}}]
)
async def test_who_does_not_share(apart: dict[str, Any]) -> None:
    on = Counting(ScriptedBackend(pause=0.01))
    await asyncio.gather(on.ask(), on.ask(**apart), on.ask(**apart))
    assert on.calls == (2 if "tenant" in apart else 3)


async def test_sampled_requests_share_when_a_seed_makes_them_one() -> None:
    on = Counting(ScriptedBackend(pause=0.01))
    await asyncio.gather(*(on.ask(temperature=0.7, seed=1) for _ in range(3)))
    assert on.calls == 1


async def test_the_leader_may_leave() -> None:
    on = Counting(ScriptedBackend(pause=0.02))
    leader = asyncio.create_task(on.ask())
    await asyncio.sleep(0.01)
    followers = [asyncio.create_task(on.ask()) for _ in range(3)]
    await asyncio.sleep(0.01)
    leader.cancel()
    answers = await asyncio.gather(*followers)
    assert {answer.choices[0].text for answer, _ in answers} == {"Hello world"}
    assert on.calls == 1
    assert (await on.ask())[1]["x-velollm-cache"] == "hit-exact"


class Raw(ScriptedBackend):
    """Gives its bytes along."""

    async def _events(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        await asyncio.sleep(0.01)
        request.context.headers["x-velollm-backend"] = "raw"
        meta = ResponseMeta(id="chatcmpl-1", model="tiny", created=5)
        yield ChatEvent(text="Hi", meta=meta, wire="openai.chat", raw=b"data: 1\n\n")
        yield ChatEvent(finish_reason="stop", usage=Usage(), wire="openai.chat", raw=b"data: 2\n\n")


async def test_only_the_leader_gets_the_bytes_and_the_id_of_the_engine() -> None:
    on = Counting(Raw())

    async def events(request: ChatRequest) -> list[ChatEvent]:
        return [event async for event in on.layer.chat(request)]

    requests = [asking(), asking()]
    mine, others = await asyncio.gather(*map(events, requests))
    assert [event.raw for event in mine] == [b"data: 1\n\n", b"data: 2\n\n"]
    assert [event.raw for event in others] == [None, None]
    assert others[0].meta is not None
    assert others[0].meta.id == ""
    assert requests[1].context.headers == {"x-velollm-cache": "hit-exact", "age": "0", "x-velollm-backend": "raw"}


async def test_the_followers_share_an_error_before_the_first_event() -> None:
    on = Counting(ScriptedBackend(pause=0.01, error=Overloaded("busy", retry_after=3)))
    results = await asyncio.gather(*(on.ask() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, Overloaded) for result in results)
    assert on.calls == 1


class Versions(ScriptedBackend):
    """A model whose build changes."""

    digest = "sha256:1"
    asked = 0

    async def models(self) -> list[ModelInfo]:
        self.asked += 1
        return [ModelInfo(id="tiny", digest=self.digest)]


async def test_another_build_of_a_model_has_answers_of_its_own() -> None:
    backend = Versions()
    on = Counting(backend)
    await on.ask()
    assert (await on.ask())[1]["x-velollm-cache"] == "hit-exact"
    assert backend.asked == 1
    backend.digest = "sha256:2"
    on.clock.now += 61
    await on.ask()  # notices behind its back
    await asyncio.sleep(0)
    assert (await on.ask())[1]["x-velollm-cache"] == "miss"
    backend.digest = "sha256:1"
    on.clock.now += 61
    await on.ask()
    await asyncio.sleep(0)
    assert (await on.ask())[1]["x-velollm-cache"] == "hit-exact"


async def test_a_model_that_cannot_think_is_told_nothing_by_being_told_not_to() -> None:
    on = Counting(Versions())
    await on.ask()
    assert (await on.ask(think=False))[1]["x-velollm-cache"] == "hit-exact"
    guessed = Counting()
    await guessed.ask()
    assert (await guessed.ask(think=False))[1]["x-velollm-cache"] == "miss"


class NoModels(ScriptedBackend):
    async def models(self) -> list[ModelInfo]:
        raise ValueError("no")


async def test_an_engine_that_does_not_say_what_it_serves_is_cached_all_the_same() -> None:
    on = Counting(NoModels())
    await on.ask()
    assert (await on.ask())[1]["x-velollm-cache"] == "hit-exact"


async def test_shadow_compares_and_never_answers() -> None:
    on = Counting(kept={"semantic": "shadow"})
    await on.ask()
    assert (await on.ask(EGGS))[1]["x-velollm-cache"] == "miss"
    assert on.counts["semantic", "shadow"] == 1
    (report,) = on.layer.cache.report()
    assert (report.route, report.compared, report.agreed, report.misses) == ("tiny", 1, 1, 1)


async def test_a_model_may_have_another_mode() -> None:
    on = Counting(kept={"semantic": "shadow"}, semantic={"tiny": "on"})
    await on.ask()
    assert (await on.ask(EGGS))[1]["x-velollm-cache"] == "hit-semantic"


class Failing(ResponseCache):
    """A cache with a bug, where it is told to have one."""

    def __init__(self, where: str) -> None:
        super().__init__()
        setattr(self, where, self._fail)

    def _fail(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("where", ["prepare", "find_sure", "compare", "keep", "record_shadow"])
async def test_a_cache_that_fails_steps_aside(where: str, caplog: pytest.LogCaptureFixture) -> None:
    on = Counting(cache=Failing(where))
    for _ in range(3):
        answer, _ = await on.ask()
        assert answer.choices[0].text == "Hello world"
    assert on.calls == 3
    assert on.counts["none", "error"] == 3
    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == ["ERROR"]


async def test_a_stored_value_of_another_program_is_a_miss() -> None:
    on = Counting()
    await on.ask()
    store = on.layer.cache._store
    (entry,) = store.entries()
    store.put(attrs.evolve(entry, answer=b'{"choices":[{"finish_reason":"stop","message":{"content":5},"index":0}]}'))
    answer, headers = await on.ask()
    assert headers["x-velollm-cache"] == "miss"
    assert answer.choices[0].text == "Hello world"


async def test_an_answer_larger_than_the_cache_passes_through() -> None:
    on = Counting(ScriptedBackend(words=["x" * 10_000] * 20), kept={"size": 100_000})
    for _ in range(2):
        answer, headers = await on.ask()
        assert len(answer.choices[0].text) == 200_000
        assert headers["x-velollm-cache"] == "miss"


async def test_an_embedder_works_off_the_event_loop() -> None:
    import threading

    threads: set[str] = set()

    def embed(text: str) -> list[float]:
        threads.add(threading.current_thread().name)
        return [1.0, 0.0]

    on = Counting(kept={"embedder": embed})
    await on.ask("How do I boil an eggg?")
    assert (await on.ask("How can I boil an eggg?"))[1]["x-velollm-cache"] == "hit-semantic"
    assert threads
    assert threading.main_thread().name not in threads


async def test_closing_closes_what_it_owns() -> None:
    for owns in (True, False):
        on = Counting(owns=owns)
        await on.ask()
        await on.layer.aclose()
        assert on.backend.closed == 1  # type: ignore[attr-defined]
        assert len(on.layer.cache.entries()) == (0 if owns else 1)


async def test_what_was_answered_is_where_a_crash_cannot_lose_it(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    stack = Counting(kept={"store": f"sqlite:{path}"})
    for number in range(1, 6):
        await stack.ask(f"How do I boil {number} eggs?")
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT count(*) FROM entries").fetchone() == (number,)
    await stack.layer.aclose()
