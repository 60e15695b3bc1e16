"""Where the time goes: spans add up, traces nest, and the commands show them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.backend import ScriptedBackend
from support.bench_engine import Engine
from support.serving import serve, served
from support.upstream import scripted

from velollm.backend import Layer
from velollm.bench.record import Record
from velollm.cli import main
from velollm.config import ObservabilitySettings, Settings
from velollm.messages import ChatRequest, Message, RequestContext
from velollm.profiling.live import frame
from velollm.profiling.perfetto import chrome_trace
from velollm.profiling.report import facts, render
from velollm.profiling.stopwatch import Spans, interpose, name_of
from velollm.profiling.trace import Span, Trace, breakdown, placed, trace_of

TIMES = st.floats(0, 10)


def nested(total: float, shares: list[float], ttft: float) -> tuple[Trace, float]:
    """A trace whose spans lie in each other, each taking a share of the one around it."""
    spans, busy = [], total
    for number, share in enumerate(shares):
        busy *= share
        first = min(ttft, busy)
        spans.append(Span(name="engine" if number == len(shares) - 1 else f"layer {number}", begin=1.0, end=1.0 + busy,
                          first=1.0 + first, busy=busy))  # fmt: skip
    return Trace(number=0, begin=1.0, end=1.0 + total, spans=spans, ttft=ttft), total


@given(TIMES, st.lists(st.floats(0.1, 1.0), max_size=5), st.floats(0, 1), TIMES, TIMES, TIMES, TIMES)
def test_phases_add_up(
    total: float, shares: list[float], first: float, queued: float, load: float, prefill: float, decode: float
) -> None:
    trace, whole = nested(total, shares, first * total)
    trace.queued = queued
    trace.engine = {"load": load, "prefill": prefill, "decode": decode}
    found = breakdown(trace, waited=0.5)
    assert sum(found.values()) == pytest.approx(whole + 0.5)
    assert min(found.values()) >= 0


def test_what_is_read_ahead_counts_once() -> None:
    spans = [
        Span(name="cache", begin=0, end=0.4, first=0.1, busy=0.15),
        Span(name="engine", begin=0, end=0.3, first=0.1, busy=0.3),
    ]
    phases = breakdown(Trace(number=0, begin=0, end=0.4, spans=spans, ttft=0.1))
    assert phases["door"] == pytest.approx(0.25)
    assert phases["prefill"] == pytest.approx(0.1)
    assert sum(phases.values()) == pytest.approx(0.4)


def test_an_engines_own_word_goes_first() -> None:
    record = Record(planned=1.0, sent=1.0, arrivals=[0.5, 1.0], phases={"queue": 0.1, "prefill": 0.4})
    assert trace_of(record).phases == pytest.approx(
        {"client": 0, "queue": 0.1, "network": 0, "load": 0, "prefill": 0.4, "decode": 0.5}
    )
    record.engine = {"prefill": 0.25, "decode": 0.45}
    phases = trace_of(record).phases
    assert (phases["prefill"], phases["decode"]) == (0.25, 0.45)
    assert phases["network"] == pytest.approx(0.2)


def test_an_answer_that_came_to_no_engine() -> None:
    spans = [
        Span(name="observe", begin=0, end=0.3, first=0.1, busy=0.3),
        Span(name="cache", begin=0, end=0.2, busy=0.2),
    ]
    phases = breakdown(Trace(number=0, begin=0, end=0.4, spans=spans, ttft=0.1))
    assert phases == pytest.approx({"client": 0, "door": 0.1, "observe": 0.1, "cache": 0.2})


class SlowLayer(Layer):
    """Takes its time before it asks, and after each event."""

    async def chat(self, request: ChatRequest) -> Any:
        await asyncio.sleep(0.02)
        async for event in self.inner.chat(request):
            yield event
            await asyncio.sleep(0.01)


def test_stopwatches_charge_each_layer_with_its_own() -> None:
    spans = Spans()
    stack = interpose(SlowLayer(Layer(ScriptedBackend(["a", "b"], pause=0.03))), spans)
    request = ChatRequest(
        model="m", messages=[Message(role="user", content="x")], stream=True, context=RequestContext(request_id="r")
    )

    async def ask() -> None:
        async for _ in stack.chat(request):
            pass

    asyncio.run(ask())
    found, _ = spans.take("r")
    assert [span.name for span in found] == ["slow", "layer", "scripted backend"]
    slow, layer, last = found
    assert slow.busy - layer.busy > 0.03
    assert layer.busy - last.busy < 0.02
    assert spans.take("r") == ([], 0.0)
    assert name_of(SlowLayer(stack)) == "slow"


def test_a_trace_for_perfetto() -> None:
    trace, _ = nested(2.0, [0.9, 0.8], 0.5)
    trace.engine = {"prefill": 0.3, "decode": 0.7}
    trace.phases = breakdown(trace)
    found = chrome_trace([trace])
    spans = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in spans] == ["request", "layer 0", "engine", "prefill", "decode"]
    outer = spans[0]
    for event in spans:
        assert event["dur"] >= 0
        assert outer["ts"] <= event["ts"]
        assert event["ts"] + event["dur"] <= outer["ts"] + outer["dur"] + 1
    assert spans[3]["dur"] == pytest.approx(0.3e6)
    json.dumps(found)


def test_the_table() -> None:
    trace, _ = nested(2.0, [0.9, 0.8], 0.5)
    trace.phases = breakdown(trace)
    text = render([trace] * 25)
    assert "prefill" in text
    assert "and 5 more" in text
    shares = facts([trace])["phases"]
    assert sum(one["share"] for one in shares.values()) == pytest.approx(1.0)


# ---- the commands ----------------------------------------------------------------------------------------------------


async def command(*words: str, engine: Engine | None = None) -> int:
    async with scripted(engine or Engine(pause=0.005)) as server:
        return await asyncio.to_thread(main, ["profile", "--backend", server.url, *words])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_through_all_layers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(pause=0.005)
    words = ["--num-prompts", "3", "--output-len", "4", "--json", "--trace", str(folder / "t.json")]
    assert asyncio.run(command(*words, engine=engine)) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["requests"] == 3
    assert {"door", "observe", "cache", "tool call", "scheduling", "prefill", "decode"} <= set(found["phases"])
    for trace in found["traces"]:
        assert sum(trace["phases"].values()) == pytest.approx(trace["total"], rel=0.05)
        assert trace["phases"]["decode"] > 0.01
    names = {event["name"] for event in json.loads((folder / "t.json").read_text())["traceEvents"]}
    assert {"request", "observe", "engine", "prefill", "decode"} <= names
    assert "request id" not in err
    assert len(engine.bodies) == 4


def test_straight_to_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(command("--num-prompts", "2", "--output-len", "3", "--direct")) == 0
    assert "scheduling" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["--model", "none"], 1, "no request was answered: 404"),
        (["--num-prompts", "0"], 2, "must be above 0"),
        (["--trace", "/nowhere/t.json", "--num-prompts", "1", "--output-len", "1"], 2, "there is no folder"),
        (["--live"], 1, "is no VeloLLM"),
    ],
)
def test_what_cannot_be_done(capsys: pytest.CaptureFixture[str], words: list[str], status: int, complaint: str) -> None:
    assert asyncio.run(command(*words)) == status
    assert complaint in capsys.readouterr().err


def test_a_running_proxy_from_outside_and_live(capsys: pytest.CaptureFixture[str]) -> None:
    async def go() -> tuple[int, int]:
        async with serve(served(ScriptedBackend(["a", "b", "c"], pause=0.004))) as server:
            url = f"http://127.0.0.1:{server.port}"
            words = ["--num-prompts", "2", "--json", "--model", "scripted-model"]
            first = await asyncio.to_thread(main, ["profile", "--backend", url, *words])
            live = ["--live", "--frames", "2", "--interval", "0.01"]
            return first, await asyncio.to_thread(main, ["profile", "--backend", url, *live])

    assert asyncio.run(go()) == (0, 0)
    out = capsys.readouterr().out
    end = out.index("\nVeloLLM ")
    assert json.loads(out[:end])["requests"] == 2
    assert out.count("requests/s") == 2
    assert "/v1/chat/completions" in out


def test_a_running_proxy_that_times_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    async def go(traces: bool) -> int:
        settings = Settings(observability=ObservabilitySettings(traces=traces))
        backend = ScriptedBackend(["a", "b", "c"], pause=0.01)
        async with serve(served(backend, settings=settings)) as server:
            url = f"http://127.0.0.1:{server.port}"
            words = ["--num-prompts", "3", "--json", "--model", "scripted-model"]
            return await asyncio.to_thread(main, ["profile", "--backend", url, *words])

    assert asyncio.run(go(True)) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert {"door", "observe", "scheduling", "decode"} <= set(found["phases"])
    assert "told apart" not in err
    for trace in found["traces"]:
        assert sum(trace["phases"].values()) == pytest.approx(trace["total"], rel=0.01)
        assert trace["phases"]["decode"] > 0.01
    assert asyncio.run(go(False)) == 0
    out, err = capsys.readouterr()
    assert "scheduling" not in json.loads(out)["phases"]
    assert "start it with --traces on" in err


def test_spans_are_kept_for_the_last_requests_only() -> None:
    spans = Spans(kept=2)
    for name in "abc":
        request = ChatRequest(context=RequestContext(request_id=name, marks={"queued": 1.0, "sent": 1.5}))
        spans.end(request, spans.begin(request, "engine"))
    assert [one["id"] for one in spans.show()] == ["c", "b"]
    assert spans.show()[0]["queued"] == 0.5
    assert spans.take("a") == ([], 0.0)


@given(TIMES, TIMES, st.floats(-1e6, 1e6))
def test_spans_by_another_clock_lie_within(total: float, inside: float, clock: float) -> None:
    inside = min(inside, total)
    (span,) = placed([Span(name="x", begin=clock, end=clock + inside, first=clock)], 5.0, total)
    assert 5.0 - 1e-6 <= span.begin <= span.end <= 5.0 + total + 1e-6
    assert span.first == pytest.approx(span.begin)


STATE = {
    "version": "1", "uptime": 3661, "running": 2, "rates": {"generation_tokens_per_second": 12.0},
    "backends": [{"name": "a\x1b[2J", "kind": "ollama", "up": True, "models": ["m"]},
                 {"name": "b", "kind": None, "up": False, "error": "no connection"}],
    "models": {"m": {"running": 1, "finished": {"stop": 3}, "failed": {}, "ttft": {"p50": 0.1, "p99": 0.4}, "itl": None,
                     "prefix_cache": {"queries": 10, "hits": 5}}},
}  # fmt: skip
REQUESTS = [
    {"path": "/v1/chat/completions", "model": "m", "ttft_ms": 50, "duration_ms": 200, "outcome": "ok"},
    {"path": "/v1/chat/completions", "model": "m", "duration_ms": 2, "outcome": "queue_full"},
]


def test_a_frame_fits_and_obeys_nobody() -> None:
    text = frame(STATE, REQUESTS * 50, [1.0, 5.0], place="http://x", width=60, height=20, colour=False)
    lines = text.split("\n")
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 60
    assert "\x1b" not in text
    assert "1:01:01" in text
    wide = frame(STATE, REQUESTS, [], place="http://x", width=120, height=40)
    assert "\x1b[2J" not in wide
    assert "queue_full" in wide
    assert "50%" in wide


def test_a_proxy_that_has_nothing_to_say() -> None:
    assert "running 0" in frame({}, [], [], place="x", colour=False)
