"""A backend that fails in the middle of an answer, and clients that leave: no wrong word, and nothing left over."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from typing import Any

import orjson
import pytest
from support.asgi import Client, until
from support.faulty import (
    JSON,
    STREAM,
    WHOLE,
    Front,
    client_text,
    delta,
    events,
    frame,
    front,
    last,
    streamed,
    whole_answer,
)
from support.upstream import Peer, Received, answer, chunk

from velollm.api.sse import SSEDecoder
from velollm.continuation import Continuation

pytestmark = pytest.mark.anyio

WORDS = [f" w{number}" for number in range(12)]
TEXT = "".join(WORDS)


def says(*pieces: bytes, then: str = "end") -> Any:
    """A script that streams pieces and then ends well, stays silent, closes, resets, or ends its half."""

    async def script(peer: Peer, request: Received) -> None:
        peer.send(streamed(*pieces))
        if then == "end":
            peer.send(chunk())
        elif then == "stay":
            await peer.left(5)
        elif then == "half":
            peer.half_close()
            await peer.left(5)
        elif then == "reset":
            await asyncio.sleep(0.05)
            peer.reset()
        else:
            peer.close()

    return script


# ---- broken streams ----


@pytest.mark.parametrize("then", ["stay", "close", "reset", "half"])
async def test_a_stream_that_stops_is_an_error_and_no_end(then: str) -> None:
    async with front(says(events(*WORDS), then=then)) as proxy:
        begin = time.monotonic()
        client = await proxy.ask(STREAM)
        text, errors, _ = client_text(client)
        assert text == TEXT
        assert len(errors) == 1
        assert 'finish_reason":"stop' not in client.text
        assert proxy.asked == 1, "nothing is tried again behind the first byte"
        assert time.monotonic() - begin < 3
        peer = proxy.engines[0].server.peers[-1]
        await asyncio.wait_for(peer.ended.wait(), 2)


@pytest.mark.parametrize(
    ("path", "extra", "sign"),
    [("/v1/messages", {"max_tokens": 9}, '"type":"error"'), ("/api/chat", {}, '{"error":'),
     ("/v1/responses", {"messages": None, "input": "Hi"}, "error")],
)  # fmt: skip
async def test_it_is_an_error_of_the_clients_dialect(path: str, extra: dict[str, Any], sign: str) -> None:
    payload = {key: value for key, value in {**STREAM, **extra}.items() if value is not None}
    async with front(says(events(*WORDS), then="reset")) as proxy:
        client = await proxy.ask(payload, path)
        assert sign in client.text
        assert "message_stop" not in client.text
        assert '"done":true' not in client.text
        assert "response.completed" not in client.text


@pytest.mark.parametrize(
    "pieces",
    [
        [events(*WORDS), frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})],  # no [DONE]
        [events(*WORDS), frame(b"[DONE]")],  # no finish
        [events(*WORDS)],
    ],
    ids=["no-done", "no-finish", "neither"],
)
async def test_a_missing_end_is_never_papered_over(pieces: list[bytes]) -> None:
    async with front(says(*pieces)) as proxy:
        text, errors, _ = client_text(await proxy.ask(STREAM))
        assert text == TEXT
        assert len(errors) == 1


@pytest.mark.parametrize(
    "event",
    [
        frame({"error": {"message": "out of memory", "type": "server_error", "code": 500}}),
        b"event: error\n" + frame({"message": "out of memory"}),
        frame({"error": "out of memory"}),
    ],
)
async def test_an_error_in_band_reaches_the_client(event: bytes) -> None:
    async with front(says(events(*WORDS), event, last())) as proxy:
        text, errors, _ = client_text(await proxy.ask(STREAM))
        assert text == TEXT
        assert "out of memory" in errors[0]["message"]


async def test_malformed_events_are_left_out_and_no_text_is_lost() -> None:
    odd = [
        b"data: {not json}\n\n", b"data: 5\n\n", b'data: "x"\n\n', b"data: \xff\xfe\n\n", b"nonsense\n\n",
        b": hello\n\n",
        b"id: 7\nretry: 5\nevent: message\n" + delta(" b"), delta(" c").replace(b"data: ", b"data:"),
        delta(" d").replace(b"\n", b"\r\n"), b"data:\n\n",
    ]  # fmt: skip
    async with front(says(delta("a", role=True), *odd, last())) as proxy:
        client = await proxy.ask(STREAM)
        assert client_text(client) == ("a b c d", [], True)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100_000])
async def test_events_cut_anywhere_have_the_same_text(size: int) -> None:
    data = delta("naïve ", role=True) + delta("🦊 ") + delta("日本") + last()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    async with front(says(*pieces)) as proxy:
        assert client_text(await proxy.ask(STREAM)) == ("naïve 🦊 日本", [], True)


async def test_half_close_behind_a_whole_answer_is_fine() -> None:
    async with front(says(events(*WORDS), last(), b": end\n\n", then="half")) as proxy:
        assert client_text(await proxy.ask(STREAM)) == (TEXT, [], True)


async def test_one_line_of_megabytes_is_an_error() -> None:
    async def flood(peer: Peer, request: Received) -> None:
        peer.send(streamed(events("a"), b'data: {"x":"'))
        await peer.flood(chunk(b"x" * 65536), 100)
        peer.close()

    async with front(flood) as proxy:
        text, errors, _ = client_text(await proxy.ask(STREAM))
        assert text == "a"
        assert len(errors) == 1


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("then", ["close", "stay"])
async def test_what_a_broken_answer_held_is_let_go_at_once(engines: int, then: str) -> None:
    """Not when the collector of garbage comes round, which it does seldom in a server: by then it may be gigabytes."""
    script = says(events(*WORDS), then=then)
    gc.collect()
    gc.disable()
    try:
        async with front(*[script] * engines) as proxy:
            for _ in range(2):
                assert client_text(await proxy.ask(STREAM))[1]
            await until(lambda: not [one for one in gc.get_objects() if isinstance(one, SSEDecoder | Continuation)])
    finally:
        gc.enable()


async def test_an_engine_that_answers_a_stream_in_one_piece() -> None:
    async def script(peer: Peer, request: Received) -> None:
        peer.send(answer(whole_answer(), JSON))

    async with front(script) as proxy:
        assert client_text(await proxy.ask(STREAM)) == ("Hello world", [], True)


# ---- going on elsewhere ----


def goes_on(breaks: int | None, *, honest: bool = True) -> Any:
    """An engine that takes a last turn of the assistant for the beginning of its answer, as vLLM does.

    It breaks after some words, once.
    """
    left = [breaks]

    async def script(peer: Peer, request: Received) -> None:
        body = orjson.loads(request.body)
        if request.target == b"/tokenize":
            count = len(body["prompt"].split())
            peer.send(answer(orjson.dumps({"tokens": [1] * count, "count": count}), JSON))
            return
        said = body["messages"][-1]["content"] if body.get("continue_final_message") and honest else ""
        done = len(said.split())
        words = WORDS[done : body.get("max_tokens", len(WORDS)) + done]
        peer.send(streamed())
        for number, word in enumerate(words):
            if left[0] is not None and number == left[0]:
                left[0] = None
                await asyncio.sleep(0.03)
                peer.reset()
                return
            peer.send(chunk(delta(word, role=number == 0)))
        usage = {"prompt_tokens": 5 + done, "completion_tokens": len(words), "total_tokens": 5 + done + len(words)}
        base = {"id": "c2", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        end = {"index": 0, "delta": {}, "finish_reason": "length" if "max_tokens" in body else "stop"}
        peer.send(chunk(frame({**base, "choices": [end]})), chunk(frame({**base, "choices": [], "usage": usage})))
        peer.send(chunk(frame(b"[DONE]")), chunk())

    return script


@pytest.mark.parametrize("honest", [True, False], ids=["goes-on", "says-all-again"])
@pytest.mark.parametrize("cut", [1, 2, 6, 11])
async def test_another_backend_goes_on_and_nobody_can_tell(cut: int, honest: bool) -> None:
    payload = {**STREAM, "temperature": 0, "stream_options": {"include_usage": True}}
    async with front(goes_on(cut), goes_on(None, honest=honest)) as proxy:
        client = await proxy.ask(payload)
        assert client_text(client) == (TEXT, [], True)
        found = [orjson.loads(line[6:]) for line in client.text.split("\n") if line.startswith("data: {")]
        assert len({event["id"] for event in found}) == 1
        assert sum(1 for event in found for choice in event["choices"] if choice["delta"].get("role")) == 1
        assert sum(1 for event in found for choice in event["choices"] if choice["finish_reason"]) == 1
        usage = [event["usage"] for event in found if event.get("usage")]
        assert len(usage) == 1
        assert usage[0]["completion_tokens"] == len(WORDS)
        assert usage[0]["prompt_tokens"] == 5


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat"])
async def test_whatever_the_dialect(path: str) -> None:
    async with front(goes_on(6), goes_on(None)) as proxy:
        client = await proxy.ask({**STREAM, "max_tokens": 99, "options": {}}, path)
        lines = [line.removeprefix("data: ") for line in client.text.split("\n")]
        found = [orjson.loads(line) for line in lines if line.startswith("{")]
        if path == "/api/chat":
            assert "".join(event["message"]["content"] for event in found) == TEXT
            assert found[-1]["done"]
        else:
            assert (
                "".join(event["delta"].get("text", "") for event in found if event["type"].endswith("_delta")) == TEXT
            )
            assert found[-1]["type"] == "message_stop"


@pytest.mark.parametrize(
    "extra",
    [{"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}, {"seed": 3},
     {"tools": [{"type": "function", "function": {"name": "f"}}]}],
)  # fmt: skip
async def test_what_cannot_be_continued_fails_visibly(extra: dict[str, Any]) -> None:
    async with front(goes_on(6), goes_on(None)) as proxy:
        client = await proxy.ask({**STREAM, **extra})
        _, errors, _ = client_text(client)
        assert len(errors) == 1
        assert len(proxy.engines[1].asked) == 0


async def test_another_text_is_an_error() -> None:
    async def other(peer: Peer, request: Received) -> None:
        peer.send(streamed(events(" w0", " something", " else"), last()), chunk())

    async with front(goes_on(6), other) as proxy:
        text, errors, _ = client_text(await proxy.ask({**STREAM, "temperature": 0}))
        assert text == "".join(WORDS[:6])
        assert len(errors) == 1


async def test_many_streams_survive_the_death_of_their_backend() -> None:
    async def dying(peer: Peer, request: Received) -> None:
        peer.send(streamed(events(*WORDS[:5])))
        await dead.wait()
        peer.reset()

    dead = asyncio.Event()
    async with front(dying, goes_on(None)) as proxy:
        asking = [asyncio.create_task(proxy.ask({**STREAM, "temperature": 0})) for _ in range(12)]
        await until(lambda: proxy.asked >= 12 and len(proxy.engines[0].asked) > 3)
        await asyncio.sleep(0.05)
        dead.set()
        for client in await asyncio.gather(*asking):
            assert client_text(client) == (TEXT, [], True)


# ---- clients that leave ----


async def leave(proxy: Front, payload: Any, path: str, *, when: Any) -> tuple[Client, asyncio.Task[None]]:
    client = proxy.client(payload, path)
    task = asyncio.create_task(proxy.app(client.scope, client.receive, client.send))
    await until(lambda: when(client))
    client.leave()
    return client, task


async def gone(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(2.5):
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/messages"])
@pytest.mark.parametrize("moment", ["in the stream", "before the first token", "whole"])
async def test_the_backend_hears_that_its_client_has_left(path: str, moment: str) -> None:
    async def script(peer: Peer, request: Received) -> None:
        if moment == "in the stream":
            peer.send(streamed(events(*WORDS)))
        await peer.left(5)

    async with front(script) as proxy:
        payload = {**STREAM, "stream": moment != "whole", "max_tokens": 50}
        when = (lambda client: client.pieces) if moment == "in the stream" else (lambda client: proxy.asked)
        _, task = await leave(proxy, payload, path, when=when)
        await asyncio.wait_for(proxy.engines[0].server.peers[-1].ended.wait(), 2.5)
        await gone(task)
        assert proxy.running == 0


async def test_sixty_who_leave_at_random_leave_nothing_behind() -> None:
    async def script(peer: Peer, request: Received) -> None:
        peer.send(streamed())
        for number in range(50):
            peer.send(chunk(delta(f" {number}", role=number == 0)))
            await asyncio.sleep(0.002)
        peer.send(chunk(last()), chunk())

    rng = random.Random(7)
    async with front(script, script) as proxy:

        async def one() -> None:
            client = proxy.client(STREAM)
            task = asyncio.create_task(proxy.app(client.scope, client.receive, client.send))
            await asyncio.sleep(rng.random() * 0.12)
            client.leave()
            await gone(task)

        await asyncio.gather(*(one() for _ in range(60)))
        assert proxy.running == 0
        assert (await proxy.ask(STREAM)).status == 200
        assert all(member.health.closed for member in proxy.app.pool.members)


async def test_cancelled_at_every_step_nothing_is_kept() -> None:
    """The request is cancelled after each of its first steps: no slot, connection or count is left behind."""

    async def script(peer: Peer, request: Received) -> None:
        await asyncio.sleep(0)
        peer.send(answer(whole_answer(), JSON))

    async with front(script, script) as proxy:
        assert (await proxy.ask(WHOLE)).status == 200
        for steps in range(40):
            client = proxy.client(WHOLE)
            task = asyncio.create_task(proxy.app(client.scope, client.receive, client.send))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await gone(task)
            assert proxy.running == 0, steps
        assert (await proxy.ask(WHOLE)).status == 200
