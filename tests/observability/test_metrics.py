"""Names and labels of metrics, as dashboards rely on them."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.backend import ScriptedBackend

from velollm.errors import BackendTimeout, ModelNotFound
from velollm.messages import ChatEvent, ChatRequest, EmbedRequest, Message, Timings, Usage
from velollm.observability import Metrics, ObserveLayer
from velollm.observability.histogram import Histogram

pytestmark = pytest.mark.anyio


def ask(model: str = "tiny", *, stream: bool = False) -> ChatRequest:
    return ChatRequest(model=model, messages=[Message(role="user", content="secret words")], stream=stream)


async def drain(layer: ObserveLayer, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in layer.chat(request)]


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.expose().decode())
        for sample in family.samples
    }


class Clock:
    """Ticks a tenth of a second at each look."""

    now = 100.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


async def test_names() -> None:
    layer = ObserveLayer(ScriptedBackend(), clock=Clock())
    await drain(layer, ask(stream=True))
    await drain(layer, ask())
    layer.metrics.set_backend("gpu", True)
    found = samples(layer.metrics)
    tiny = (("model_name", "tiny"),)
    assert found["velollm_request_success_total", (("finished_reason", "stop"), *tiny)] == 2
    assert found["velollm_prompt_tokens_total", tiny] == 10
    assert found["velollm_generation_tokens_total", tiny] == 6
    assert found["velollm_prefix_cache_queries_total", tiny] == 10
    assert found["velollm_prefix_cache_hits_total", tiny] == 4
    assert found["velollm_num_requests_running", tiny] == 0
    assert found["velollm_time_to_first_token_seconds_count", tiny] == 1
    assert found["velollm_time_to_first_token_seconds_sum", tiny] == pytest.approx(0.1)
    assert found["velollm_inter_token_latency_seconds_count", tiny] == 3
    assert found["velollm_inter_token_latency_seconds_sum", tiny] == pytest.approx(0.3)
    assert found["velollm_e2e_request_latency_seconds_count", tiny] == 2
    assert found["velollm_backend_up", (("backend", "gpu"),)] == 1


async def test_vllms_buckets() -> None:
    layer = ObserveLayer(ScriptedBackend())
    await drain(layer, ask(stream=True))
    bounds = [dict(labels)["le"] for name, labels in samples(layer.metrics)
              if name == "velollm_time_to_first_token_seconds_bucket"]  # fmt: skip
    assert bounds[:3] == ["0.001", "0.005", "0.01"]
    assert bounds[-2:] == ["2560.0", "+Inf"]


async def test_ten_thousand_names_make_few_series() -> None:
    def lines(metrics: Metrics) -> int:
        return sum(not line.startswith("#") for line in metrics.expose().decode().splitlines())

    metrics = Metrics()
    missing = ObserveLayer(ScriptedBackend(error=ModelNotFound("no")), metrics)
    rng = random.Random(1)
    for number in range(10_000):
        with pytest.raises(ModelNotFound):
            await drain(missing, ask(f"made-up-{number}-{rng.random()}"))
    assert len(metrics.models) == 1
    assert samples(metrics)["velollm_request_failure_total", (("model_name", "other"), ("outcome", "model_not_found"))]
    assert lines(metrics) < 120
    answering = ObserveLayer(ScriptedBackend(["x"]), metrics)  # an engine that takes any name at all
    for number in range(300):
        await drain(answering, ask(f"alias-{number}"))
    assert len(metrics.models) == 100
    await drain(answering, ask("x" * 200))
    await drain(answering, ask("line\nbreak"))
    assert not any("\n" in name or len(name) > 100 for name in metrics.models)


async def test_outcomes_are_a_bounded_set_of_words() -> None:
    layer = ObserveLayer(ScriptedBackend(error=BackendTimeout("slow", code="whatever the engine says")))
    with pytest.raises(BackendTimeout):
        await drain(layer, ask())
    assert layer.metrics.models["other"].failed == {"backend_timeout": 1}


async def test_a_client_that_leaves_is_counted_as_aborted() -> None:
    layer = ObserveLayer(ScriptedBackend())
    events = layer.chat(ask(stream=True))
    await anext(events)
    await events.aclose()
    assert layer.metrics.models["tiny"].finished == {"abort": 1}
    assert layer.metrics.models["tiny"].running == 0


async def test_what_fails_unexpectedly_is_counted_and_not_swallowed() -> None:
    layer = ObserveLayer(ScriptedBackend(error=ValueError("bug")))
    with pytest.raises(ValueError, match="bug"):
        await drain(layer, ask())
    assert layer.metrics.models["other"].failed == {"internal_error": 1}
    assert layer.metrics.models["other"].running == 0


async def test_embeddings_are_counted() -> None:
    layer = ObserveLayer(ScriptedBackend())
    await layer.embed(EmbedRequest(model="tiny", inputs=["a", "b"]))
    assert layer.metrics.models["tiny"].prompt_tokens == 6
    assert layer.metrics.models["tiny"].finished == {"stop": 1}


async def test_server_timing() -> None:
    layer = ObserveLayer(ScriptedBackend(), clock=Clock())
    streamed, whole = ask(stream=True), ask()
    streamed.context.marks["received"] = 100.0
    events = await drain(layer, streamed)
    assert streamed.context.headers["server-timing"] == "prefill;dur=200.0"
    assert streamed.context.trailer["timing"]["prefill"] == 200.0
    assert len(events) == 4
    await drain(layer, whole)
    assert whole.context.headers["server-timing"].startswith("total;dur=")


async def test_server_timing_of_a_whole_answer_has_all_phases() -> None:
    class Timed(ScriptedBackend):
        async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
            yield ChatEvent("Hi", finish_reason="stop", usage=Usage(timings=Timings(prefill=0.25)))

    layer = ObserveLayer(Timed(), clock=Clock())
    whole = ask()
    whole.context.marks.update(received=100.0, queued=100.0, sent=100.5)
    await drain(layer, whole)
    assert whole.context.headers["server-timing"].startswith("queue;dur=500.0, prefill;dur=250.0, total;dur=")


def test_a_histogram_counts_what_a_bound_includes() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert histogram.sum == 14.0
    histogram.add_gaps([1.0])
    histogram.add_gaps([1.0, 1.5, 5.0])
    assert histogram.counts == [3, 2, 2]
    assert histogram.sum == 18.0
