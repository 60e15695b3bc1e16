"""What the layer lets in: rates, models, urgency, and what changes models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.backend import ScriptedBackend

from velollm.admission import CURRENT, AdmissionLayer, Key, KeyRing, Meter, read_urgency
from velollm.admission.rates import Bucket, Charge, duration
from velollm.backend import HttpRequest
from velollm.errors import AuthenticationError, BackendError, PermissionDenied, RateLimited, RequestError
from velollm.messages import ChatRequest, EmbedRequest, Message, RequestContext

pytestmark = pytest.mark.anyio


def key(**changes: object) -> Key:
    return Key(**{"name": "alice", "salt": b"s" * 16, "digest": b"d" * 32, **changes})


@contextmanager
def with_key(**changes: object) -> Iterator[Key]:
    made = key(**changes)
    token = CURRENT.set(made)
    try:
        yield made
    finally:
        CURRENT.reset(token)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def ask(text: str = "Hello there", **changes: object) -> ChatRequest:
    return ChatRequest(**{"model": "tiny", "messages": [Message(role="user", content=text)], **changes})


async def answer(layer: AdmissionLayer, request: ChatRequest) -> str:
    return "".join([event.text async for event in layer.chat(request)])


# ---- rates ----


async def test_requests_a_minute() -> None:
    clock = Clock()
    layer = AdmissionLayer(ScriptedBackend(), clock=clock)
    with with_key(rpm=3):
        for left in (2, 1, 0):
            request = ask()
            await answer(layer, request)
            assert request.context.headers["x-ratelimit-limit-requests"] == "3"
            assert request.context.headers["x-ratelimit-remaining-requests"] == str(left)
            assert request.context.tenant == "alice"
        refused = ask()
        with pytest.raises(RateLimited) as caught:
            await answer(layer, refused)
        assert caught.value.retry_after == 20
        assert refused.context.headers["x-ratelimit-reset-requests"] == "1m0s"
        clock.now += 19.9
        with pytest.raises(RateLimited):
            await answer(layer, ask())
        clock.now += 0.1
        await answer(layer, ask())
    with with_key(name="bob", rpm=3):
        await answer(layer, ask())


async def test_tokens_a_minute_are_settled_by_what_was_used() -> None:
    clock = Clock()
    backend = ScriptedBackend()  # 8 tokens an answer
    layer = AdmissionLayer(backend, clock=clock)
    with with_key(tpm=20):
        for _ in range(2):
            await answer(layer, ask(max_tokens=4))
        with pytest.raises(RateLimited) as caught:
            await answer(layer, ask(max_tokens=4))
        assert len(backend.requests) == 2
        assert caught.value.retry_after is not None
        clock.now += caught.value.retry_after
        await answer(layer, ask(max_tokens=4))


async def test_a_request_larger_than_the_limit_is_let_in_when_the_bucket_is_full() -> None:
    layer = AdmissionLayer(ScriptedBackend(), clock=Clock())
    with with_key(tpm=10):
        await answer(layer, ask("x" * 4000, max_tokens=1000))


async def test_a_failed_request_costs_no_tokens() -> None:
    layer = AdmissionLayer(ScriptedBackend(error=BackendError("x")), clock=Clock())
    with with_key(tpm=20) as made:
        with pytest.raises(BackendError):
            await answer(layer, ask(max_tokens=15))
        assert layer._meter(made, 100.0).tokens.level == 20  # type: ignore[union-attr]


async def test_an_answer_that_breaks_off_costs_what_was_said() -> None:
    layer = AdmissionLayer(ScriptedBackend(["x" * 40, "y"], error=BackendError("x"), fail_after=1), clock=Clock())
    with with_key(tpm=100) as made:
        with pytest.raises(BackendError):
            await answer(layer, ask("z" * 40, max_tokens=15))
        assert layer._meter(made, 100.0).tokens.level == 80  # type: ignore[union-attr]


async def test_embeddings_are_counted_too() -> None:
    layer = AdmissionLayer(ScriptedBackend(), clock=Clock())
    with with_key(rpm=1):
        await layer.embed(EmbedRequest(model="tiny", inputs=["a"]))
        with pytest.raises(RateLimited):
            await layer.embed(EmbedRequest(model="tiny", inputs=["a"]))


async def test_changed_limits_begin_anew_and_the_table_is_bounded() -> None:
    layer = AdmissionLayer(ScriptedBackend(), clock=Clock())
    with with_key(rpm=1):
        await answer(layer, ask())
    with with_key(rpm=2):
        await answer(layer, ask())
    for number in range(5000):
        layer._meter(key(name=str(number), rpm=1), 0.0)
    assert len(layer._meters) <= 4096


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 30), st.floats(0, 2000)), max_size=30))
def test_a_bucket_never_gives_more_than_a_minute_and_what_it_refilled(
    size: int, steps: list[tuple[float, float]]
) -> None:
    now, taken = 0.0, 0.0
    bucket = Bucket(size, size, now)
    for seconds, amount in steps:
        now += seconds
        if bucket.wait(amount, now) == 0:
            bucket.level -= min(amount, size)
            taken += min(amount, size)
        assert taken <= size + now * size / 60 + 1e-6
    wait = bucket.wait(size, now)
    assert bucket.wait(size, now + wait + 1e-6) < 1e-3


@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 10), st.floats(0, 200), st.integers(0, 200)), max_size=20))
def test_what_is_charged_and_settled_adds_up(tpm: int, steps: list[tuple[float, float, int]]) -> None:
    now, used = 0.0, 0
    meter = Meter(None, tpm, now)
    for seconds, expected, real in steps:
        now += seconds
        charge = meter.admit(expected, now)
        if isinstance(charge, Charge):
            meter.settle(charge, real, now)
            used += real
        else:
            assert charge > 0
    assert meter.tokens is not None
    assert meter.tokens.fill(now) <= tpm


def test_durations_as_openai_writes_them() -> None:
    assert [duration(seconds) for seconds in (0, 0.02, 1.5, 59.9994, 60, 361)] == [
        "0ms", "20ms", "1.5s", "60s", "1m0s", "6m1s",
    ]  # fmt: skip
    assert math.isclose(Bucket(60, 0, 0).until_full(0), 60)


# ---- models ----


async def test_only_allowed_models_are_asked_and_listed() -> None:
    backend = ScriptedBackend()
    layer = AdmissionLayer(backend)
    with with_key(models=("other*",)):
        for asked in ("tiny", ""):
            with pytest.raises(PermissionDenied):
                await answer(layer, ask(model=asked))
        with pytest.raises(PermissionDenied):
            await layer.tokenize("tiny", "x")
        with pytest.raises(PermissionDenied):
            await layer.embed(EmbedRequest(model="tiny", inputs=["x"]))
        with pytest.raises(PermissionDenied):
            await layer.forward(HttpRequest(method="POST", target="/v1/audio/speech"))
        assert await layer.models() == []
        assert backend.requests == []
    with with_key(models=("t*",)):
        await answer(layer, ask(model=""))
        assert backend.requests[0].model == "tiny"
        assert [model.id for model in await layer.models()] == ["tiny"]
    assert len(await layer.models()) == 1


@pytest.mark.parametrize("target", ["/api/pull", "/api/push?x=1", "/api/create", "/api/copy", "/api/delete",
                                    "/api/blobs/sha256:0", "/API/Pull", "/api/pull;x", "/api/pull%20",
                                    "/api/signout", "/api/of/tomorrow"])  # fmt: skip
async def test_changing_models_needs_an_admin_key(target: str) -> None:
    backend = ScriptedBackend()
    layer = AdmissionLayer(backend)
    with with_key(), pytest.raises(PermissionDenied, match="admin"):
        await layer.forward(HttpRequest(method="POST", target=target))
    assert backend.forwarded == []
    with with_key(admin=True):
        await layer.forward(HttpRequest(method="POST", target=target))
    with with_key():
        await layer.forward(HttpRequest(method="GET", target="/api/ps"))
        await layer.forward(HttpRequest(method="POST", target="/api/show"))
        await layer.forward(HttpRequest(method="POST", target="/v1/rerank"))
    await layer.forward(HttpRequest(method="POST", target=target))
    assert len(backend.forwarded) == 5


async def test_alone_it_asks_for_a_key_itself() -> None:
    import hashlib

    made = key(digest=hashlib.sha256(b"s" * 16 + b"the-secret-key-of-alice").digest())
    layer = AdmissionLayer(ScriptedBackend(), keys=KeyRing([made]))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}, {"x-api-key": "wrong"}):
        with pytest.raises(AuthenticationError) as caught:
            await answer(layer, ask(context=RequestContext(client_headers=headers)))
        assert "wrong" not in caught.value.message
    for headers in ({"authorization": "bearer the-secret-key-of-alice"}, {"x-api-key": "the-secret-key-of-alice"}):
        request = ask(context=RequestContext(client_headers=headers))
        await answer(layer, request)
        assert request.context.tenant == "alice"
        assert request.context.salt == made.cache_salt


# ---- urgency ----


@pytest.mark.parametrize(
    ("header", "body", "allowed", "expected"),
    [
        (None, None, {}, None),
        ("batch", None, {}, "batch"),
        (" Interactive ", 5, {}, "interactive"),
        (None, -1, {}, "interactive"),
        (None, 0, {}, "normal"),
        (None, 7, {}, "batch"),
        (None, None, {"priority": "batch"}, "batch"),
        ("interactive", None, {"priority": "batch"}, "batch"),
        ("interactive", None, {"priority": "batch", "max_priority": "normal"}, "normal"),
        ("batch", None, {"priority": "interactive"}, "batch"),
        (None, None, {"max_priority": "normal"}, None),
        ("interactive", None, {"max_priority": "normal"}, "normal"),
    ],
)
def test_a_caller_may_be_less_urgent_never_more(
    header: str | None, body: int | None, allowed: dict[str, object], expected: str | None
) -> None:
    headers = {} if header is None else {"x-velollm-priority": header}
    context = RequestContext(client_headers=headers, marks={"received": 10.0})
    read_urgency(context, {} if body is None else {"priority": body}, key(**allowed), 12.0)
    assert context.priority == expected


def test_the_deadline_counts_from_arrival() -> None:
    context = RequestContext(client_headers={"x-velollm-deadline-ms": "1500"}, marks={"received": 10.0})
    read_urgency(context, {}, None, 12.0)
    assert context.deadline == 11.5


@pytest.mark.parametrize("name", ["x-velollm-priority", "x-velollm-deadline-ms"])
@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "inf", "0"])
def test_nonsense_is_refused(name: str, value: str) -> None:
    with pytest.raises(RequestError, match=name):
        read_urgency(RequestContext(client_headers={name: value}), {}, None, 0.0)
    with pytest.raises(RequestError, match="priority"):
        read_urgency(RequestContext(), {"priority": "high"}, None, 0.0)


async def test_the_priority_of_the_body_is_not_passed_to_engines_without_one() -> None:
    backend = ScriptedBackend()
    await answer(AdmissionLayer(backend), ask(extra={"priority": 1, "other": 2}))
    assert backend.requests[0].extra == {"other": 2}
    assert backend.requests[0].context.priority == "batch"
