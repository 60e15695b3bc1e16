"""`velollm serve` under load, in front of the simulated engine of the benchmarks; small, and without tight times."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import Served, serving

pytestmark = pytest.mark.e2e

ENGINE = Path(__file__).parents[2] / "benchmarks" / "simulated_engine.py"
INTERACTIVE = {"x-velollm-priority": "interactive"}
BATCH = {"x-velollm-priority": "batch"}


@contextmanager
def simulated(*options: str) -> Iterator[str]:
    if not ENGINE.is_file():
        pytest.skip("the benchmarks are not here")
    command = [sys.executable, str(ENGINE), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


@pytest.fixture
def engine() -> Iterator[str]:
    """Two slots, 20 ms a token."""
    with simulated("--slots", "2") as url:
        yield url


@pytest.fixture
def served(folder: Path, engine: str) -> Iterator[Served]:
    with serving(folder, "simulated", "sim", "--backend", engine, "--max-queue", "30") as served:
        yield served


def body(words: str, tokens: int, *, stream: bool = False) -> dict[str, Any]:
    return {
        "model": "sim", "messages": [{"role": "user", "content": words}], "max_tokens": tokens, "stream": stream,
        "temperature": 0,
    }  # fmt: skip


def ask(url: str, words: str, tokens: int, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body(words, tokens), headers=headers, timeout=60)


def said(url: str, words: str, tokens: int, headers: dict[str, str] | None = None) -> tuple[str, str | None, int]:
    """Text, finish reason and number of usages of a stream."""
    text, finish, usages = "", None, 0
    asked = body(words, tokens, stream=True) | {"stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event
            usages += event.get("usage") is not None
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return text, finish, usages


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def stats(engine: str) -> dict[str, int]:
    found: dict[str, int] = httpx.get(f"{engine}/stats", timeout=10).json()
    return found


def test_batch_answers_make_way_and_are_the_same(served: Served, engine: str) -> None:
    words = [f"tell me of the number {number}" for number in range(4)]
    undisturbed = [said(engine, one, 60) for one in words]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(said, served.url, one, 60, BATCH) for one in words]
        time.sleep(1.0)
        for number in range(4):
            assert ask(served.url, f"quick {number}", 3, INTERACTIVE).status_code == 200
        assert [answer.result() for answer in answers] == undisturbed
    assert metric(served.url, "velollm_preemptions_total") >= 1
    assert stats(engine)["most_running"] <= 2


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(served: Served, engine: str) -> None:
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda number: ask(served.url, f"flood {number}", 10), range(60)))
    codes = [answer.status_code for answer in answers]
    assert codes.count(200) >= 32
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 60 - codes.count(200)
    for answer in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert stats(engine)["most_running"] <= 2
    assert metric(served.url, "velollm_num_requests_waiting") == 0
    assert metric(served.url, "velollm_requests_refused_total") == len(refused)


def test_what_cannot_make_its_deadline_is_refused(served: Served, engine: str) -> None:
    ask(served.url, "measured first", 40)
    ask(served.url, "measured first, again", 40)
    with ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(ask, served.url, f"busy {number}", 100) for number in range(6)]
        time.sleep(0.5)
        hopeless = ask(served.url, "now, please", 5, {"x-velollm-deadline-ms": "200"})
        assert hopeless.status_code == 503
        assert hopeless.json()["error"]["code"] == "deadline_unreachable"
        assert int(hopeless.headers["retry-after"]) >= 1
        assert all(answer.result().status_code == 200 for answer in busy)


def test_clients_that_leave_free_their_slots(served: Served, engine: str) -> None:
    def leave(number: int) -> None:
        """Two of them leave in the middle of an answer, the others while they wait for their turn."""
        asked = body(f"never read {number}", 5000, stream=True)
        with (
            contextlib.suppress(httpx.ReadTimeout),
            httpx.stream("POST", f"{served.url}/v1/chat/completions", json=asked, timeout=1.5) as response,
        ):
            next(response.iter_lines())

    with ThreadPoolExecutor(26) as pool:
        list(pool.map(leave, range(26)))
    end = time.monotonic() + 10
    while (stats(engine)["running"] or metric(served.url, "velollm_num_requests_waiting")) and time.monotonic() < end:
        time.sleep(0.05)
    assert stats(engine)["running"] == 0
    assert metric(served.url, "velollm_num_requests_waiting") == 0
    assert ask(served.url, "still there?", 3).status_code == 200


def test_conversations_return_to_their_backend(folder: Path) -> None:
    with simulated("--slots", "2") as one, simulated("--slots", "2") as other:
        backends = ("--backend", f"one={one}", "--backend", f"other={other}")
        with serving(folder, "two", "sim", *backends, "--routing", "prefix") as served:
            for number in range(4):
                messages = [{"role": "system", "content": "You are brief. " * 50}]
                homes = []
                for turn in range(3):
                    messages.append({"role": "user", "content": f"question {number}.{turn} " * 20})
                    asked = {"model": "sim", "messages": messages, "max_tokens": 4}
                    answer = httpx.post(f"{served.url}/v1/chat/completions", json=asked, timeout=60)
                    homes.append(answer.headers["x-velollm-backend"])
                    messages.append(answer.json()["choices"][0]["message"])
                assert len(set(homes)) == 1
        assert stats(one)["requests"] > 0
        assert stats(other)["requests"] > 0
