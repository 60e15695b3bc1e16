"""The cache through `velollm serve`, with the SDKs, on the default model: what is answered again, and for whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from support.redis import RedisServer

from .conftest import MODEL, Served, serving, velollm

pytestmark = pytest.mark.e2e
ANN, BOB, ROOT = "a-key-for-ann-of-some-length", "a-key-for-bob-of-some-length", "a-key-for-root-of-some-length"
QUESTION = "What is the capital of France?"
PARAPHRASE = "Which city is France's capital?"
NEAR_MISS = "What is the capital of Finland?"
# A small model hardly ever ends by itself, and an answer that runs out of tokens is not kept.
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "stop": [" a", ".", ","]}


@pytest.fixture(scope="module")
def engine(folder: Path, default_model: Path) -> Iterator[Served]:
    """The default model in a server that keeps no answers: what stands behind the servers under test."""
    pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")
    with serving(folder, "cache-engine", MODEL, "--model", MODEL, "--cache", "off") as served:
        yield served


@pytest.fixture
def cached(tmp_path: Path, engine: Served) -> Iterator[Served]:
    """A server with the semantic tier on, and keys."""
    with serving(tmp_path, "cache", MODEL, *arguments(tmp_path, engine), "--semantic-cache", "on") as served:
        yield served


def arguments(folder: Path, engine: Served) -> list[str]:
    keys = folder / "keys.toml"
    keys.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nkey = "{key}"\nadmin = {str(name == "root").lower()}\n'
            for name, key in (("ann", ANN), ("bob", BOB), ("root", ROOT))
        )
    )
    return ["--backend", f"engine=openai+{engine.url}/v1", "--keys", str(keys)]


def ask(served: Served, prompt: str = QUESTION, key: str = ANN, **more: Any) -> tuple[str, str]:
    """The answer, and what the cache said."""
    headers = more.pop("headers", {})
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], extra_headers=headers, **{**OPTIONS, **more}
        )
        verdict = raw.headers["x-velollm-cache"]
        if more.get("stream"):
            chunks = list(raw.parse())
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), verdict
        answer = raw.parse()
        return answer.choices[0].message.content or "", verdict


def forwarded(served: Served) -> int:
    """How many requests reached the engine behind: all that the exact, canonical and semantic tiers did not answer."""
    seen = httpx.get(f"{served.url}/velollm/api/cache", headers={"authorization": f"Bearer {ROOT}"}).json()
    return int(seen["misses"]) + int(seen["shadow_hits"])


def test_repeat_paraphrase_and_near_miss(cached: Served) -> None:
    said, verdict = ask(cached)
    assert verdict == "miss"
    assert ask(cached) == (said, "hit-exact")
    assert ask(cached, f"Hi! {QUESTION.lower()} thanks") == (said, "hit-canonical")
    assert ask(cached, PARAPHRASE) == (said, "hit-semantic")
    other, verdict = ask(cached, NEAR_MISS)
    assert verdict == "miss"
    assert other != said


@pytest.mark.parametrize("first", [True, False])
def test_a_hit_streams_and_does_not_as_it_is_asked(cached: Served, first: bool) -> None:
    said, verdict = ask(cached, stream=first)
    assert verdict == "miss"
    assert ask(cached, stream=not first) == (said, "hit-exact")
    assert ask(cached, stream=first) == (said, "hit-exact")


def test_one_answer_in_three_dialects(cached: Served) -> None:
    said, _ = ask(cached)
    asked: dict[str, Any] = {
        "model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": OPTIONS["max_tokens"],
        "extra_body": {"temperature": 0}, "stop_sequences": OPTIONS["stop"],
    }  # fmt: skip
    with anthropic.Anthropic(base_url=cached.url, api_key=ANN, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(**asked)
        assert raw.headers["x-velollm-cache"].startswith(("hit", "miss"))
        assert raw.parse().content[0].text == said
        with client.messages.stream(**asked) as stream:
            assert stream.get_final_text() == said
            assert stream.response.headers["x-velollm-cache"] == "hit-exact"
    client = ollama.Client(cached.url, headers={"authorization": f"Bearer {ANN}"})
    with contextlib.closing(client._client):
        options = {"temperature": 0, "num_predict": OPTIONS["max_tokens"], "stop": OPTIONS["stop"]}
        answer = client.chat(MODEL, messages=[{"role": "user", "content": QUESTION}], options=options)
        assert answer.message.content == said
        parts = list(client.chat(MODEL, messages=[{"role": "user", "content": QUESTION}], options=options, stream=True))
        assert "".join(part.message.content or "" for part in parts) == said
        assert parts[-1].done
        assert client.generate(MODEL, prompt=QUESTION, options=options).response == said
    assert forwarded(cached) <= 2


def test_tenants_are_apart(cached: Served) -> None:
    ask(cached)
    assert ask(cached, key=BOB)[1] == "miss"
    assert ask(cached, PARAPHRASE, key=ROOT)[1] == "miss"
    assert ask(cached)[1] == "hit-exact"


def test_fifty_at_once_are_one_upstream_call(cached: Served) -> None:
    async def all_of_them() -> list[tuple[str, str]]:
        return await asyncio.gather(*(asyncio.to_thread(ask, cached, stream=n % 2 == 0) for n in range(50)))

    answers = asyncio.run(all_of_them())
    assert len({said for said, _ in answers}) == 1
    assert sorted({verdict for _, verdict in answers}) == ["hit-exact", "miss"]
    assert [verdict for _, verdict in answers].count("miss") == 1


def test_the_leader_leaves_and_the_others_get_theirs(cached: Served) -> None:
    messages = [{"role": "user", "content": "Write a long story about a ship."}]
    body = {"model": MODEL, "messages": messages, "stream": True, "temperature": 0, "max_tokens": 150}
    headers = {"authorization": f"Bearer {ANN}"}

    async def run() -> list[str]:
        async with httpx.AsyncClient(base_url=cached.url, headers=headers, timeout=60) as http:

            async def follow() -> str:
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.headers["x-velollm-cache"] == "hit-exact"
                return answer.text

            async with http.stream("POST", "/v1/chat/completions", json=body) as leader:
                assert leader.headers["x-velollm-cache"] == "miss"
                followers = [asyncio.create_task(follow()) for _ in range(5)]
                await asyncio.sleep(0.3)
            return await asyncio.gather(*followers)

    texts = asyncio.run(run())
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert all(text.count("data: ") > 50 for text in texts)


def test_cache_control(cached: Served) -> None:
    said, _ = ask(cached, headers={"x-velollm-cache-ttl": "1"})
    assert ask(cached, headers={"cache-control": "no-store"})[1] == "bypass; reason=no-store"
    assert ask(cached, headers={"cache-control": "max-age=0"})[1] in ("miss", "hit-exact")
    time.sleep(1.1)
    assert ask(cached, headers={"cache-control": "no-cache"}) == (said, "bypass; reason=no-cache")
    assert ask(cached)[1] == "hit-exact"
    with pytest.raises(openai.BadRequestError, match="x-velollm-cache-ttl"):
        ask(cached, headers={"x-velollm-cache-ttl": "x"})


def test_a_restart_keeps_what_sqlite_has(tmp_path: Path, engine: Served) -> None:
    options = [*arguments(tmp_path, engine), "--semantic-cache", "on", "--cache-store", f"sqlite:{tmp_path / 'a.db'}"]
    with serving(tmp_path, "cache", MODEL, *options) as served:
        said, verdict = ask(served)
        assert verdict == "miss"
    with serving(tmp_path, "cache", MODEL, *options) as served:
        assert ask(served) == (said, "hit-exact")
        end = time.monotonic() + 5
        while ask(served, PARAPHRASE, headers={"cache-control": "max-age=9999"})[1] != "hit-semantic":
            assert time.monotonic() < end, "the index was not rebuilt"


def test_the_report_outlives_the_server(tmp_path: Path, engine: Served) -> None:
    options = [*arguments(tmp_path, engine), "--cache-store", f"sqlite:{tmp_path / 'a.db'}"]
    with serving(tmp_path, "cache", MODEL, *options) as served:
        for prompt in (QUESTION, PARAPHRASE, NEAR_MISS):
            assert ask(served, prompt)[1] == "miss"
        time.sleep(0.5)
        os.kill(served.pid, signal.SIGKILL)
    command = velollm("cache", "report", "--json", "--store", f"sqlite:{tmp_path / 'a.db'}")
    (route,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert (route["route"], route["compared"], route["misses"]) == (MODEL, 1, 2)
    with serving(tmp_path, "cache", MODEL, *options) as served:
        assert ask(served, "Why is the sky blue?")[1] == "miss"
        seen = httpx.get(f"{served.url}/velollm/api/cache", headers={"authorization": f"Bearer {ROOT}"}).json()
        assert (seen["report"][0]["compared"], seen["report"][0]["misses"]) == (1, 3)


def test_a_damaged_store_is_set_aside(tmp_path: Path, engine: Served) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"this is no database" * 1000)
    options = [*arguments(tmp_path, engine), "--cache-store", f"sqlite:{path}"]
    with serving(tmp_path, "cache", MODEL, *options) as served:
        assert ask(served)[1] == "miss"
        assert ask(served)[1] == "hit-exact"
        assert served.log.read_text().count("set-aside") == 1


def test_redis_dies_and_comes_back_under_load(tmp_path: Path, engine: Served) -> None:
    server = RedisServer(tmp_path)
    server.start()
    options = [*arguments(tmp_path, engine), "--cache-store", server.url]
    try:
        with serving(tmp_path, "cache", MODEL, *options) as served:
            said, _ = ask(served)
            end = time.monotonic() + 6
            killed = started = False
            asked = 0
            while time.monotonic() < end:
                assert ask(served) == (said, "hit-exact")
                asked += 1
                if not killed and time.monotonic() > end - 5:
                    server.kill()
                    killed = True
                    ask(served, NEAR_MISS)  # the memory in front does not know this one
                if killed and not started and time.monotonic() > end - 3:
                    server.start()
                    started = True
            assert asked > 20
            assert served.log.read_text().count("does not answer") == 1
            seen = httpx.get(f"{served.url}/velollm/api/cache", headers={"authorization": f"Bearer {ROOT}"}).json()
            assert seen["store"]["kind"] == "redis"
        with serving(tmp_path, "cache", MODEL, *options) as served:
            ask(served, NEAR_MISS)
        with serving(tmp_path, "cache", MODEL, *options) as served:
            assert ask(served, NEAR_MISS)[1] == "hit-exact"
    finally:
        server.kill()


def test_the_command_line_tells_what_the_server_keeps(tmp_path: Path, engine: Served) -> None:
    with serving(tmp_path, "cache", MODEL, *arguments(tmp_path, engine)) as served:
        for prompt in (QUESTION, QUESTION, PARAPHRASE, NEAR_MISS):
            ask(served, prompt)

        def run(*words: str, key: str = ROOT) -> subprocess.CompletedProcess[str]:
            command = velollm("cache", *words, "--url", served.url, "--api-key", key)
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

        stats = json.loads(run("stats", "--json").stdout)
        assert (stats["hits"], stats["shadow_hits"], stats["store"]["entries"]) == ({"exact": 1}, 1, 3)
        report = run("report").stdout
        assert "3 questions that had not been asked before in the same words" in report
        assert "too few to judge by" in report
        exported = [json.loads(line) for line in run("export").stdout.splitlines()]
        assert [entry["prompt"] for entry in exported] == [QUESTION, PARAPHRASE, NEAR_MISS]
        assert run("purge", "--all", key=ANN).returncode == 1
        assert run("purge", "--tenant", "ann").stdout == "3 entries are gone\n"
        assert ask(served)[1] == "miss"
