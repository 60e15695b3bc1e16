"""Prometheus metrics under vLLM's names (prefix `velollm_`), so that its dashboards work after one substitution.

The figures are plain numbers in the event loop's thread; prometheus-client gathers them when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from velollm.observability.histogram import E2E_SECONDS, ITL_SECONDS, TTFT_SECONDS, Histogram

__all__ = ["CONTENT_TYPE", "Metrics", "ModelMetrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"
MOST_MODELS = 100
LONGEST_NAME = 100

Counter: TypeAlias = tuple[str, str, Callable[["ModelMetrics"], float]]


class ModelMetrics:
    """The figures of one model."""

    __slots__ = (
        "cached_tokens", "e2e", "failed", "finished", "generation_tokens", "itl", "prompt_tokens", "queried_tokens",
        "running", "ttft",
    )  # fmt: skip

    def __init__(self) -> None:
        self.running = 0
        self.finished: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.queried_tokens = 0
        self.cached_tokens = 0
        self.ttft = Histogram(TTFT_SECONDS)
        self.itl = Histogram(ITL_SECONDS)
        self.e2e = Histogram(E2E_SECONDS)


COUNTERS: tuple[Counter, ...] = (
    ("prompt_tokens", "Tokens of prompts.", lambda model: model.prompt_tokens),
    ("generation_tokens", "Tokens that were generated.", lambda model: model.generation_tokens),
    ("prefix_cache_queries", "Tokens that were looked for in a prefix cache.", lambda model: model.queried_tokens),
    ("prefix_cache_hits", "Tokens that a prefix cache had.", lambda model: model.cached_tokens),
)
HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelMetrics], Histogram]], ...] = (
    ("time_to_first_token_seconds", "From the request to its first token, streams only.", lambda model: model.ttft),
    ("inter_token_latency_seconds", "Between two events of a stream.", lambda model: model.itl),
    ("e2e_request_latency_seconds", "From the request to the end of its answer.", lambda model: model.e2e),
)


class Metrics(Collector):
    """All figures of one VeloLLM. Layers with figures of their own register them with `registry`.

    The label `model_name` takes at most 100 values, and only names that a backend has answered to; the rest is `other`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.models: dict[str, ModelMetrics] = {OTHER: ModelMetrics()}
        self.backend_up: dict[str, bool] = {}
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def known(self, name: str) -> ModelMetrics:
        """The figures of a model that has answered before; those of `other` for any other name."""
        return self.models.get(name) or self.models[OTHER]

    def answered(self, name: str) -> ModelMetrics:
        """The figures of a model that has just answered."""
        found = self.models.get(name)
        if found is None:
            if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or len(self.models) >= MOST_MODELS:
                return self.models[OTHER]
            found = self.models[name] = ModelMetrics()
        return found

    def set_backend(self, name: str, up: bool) -> None:
        """Whether a backend answers."""
        self.backend_up[name] = up

    def expose(self) -> bytes:
        """Everything in Prometheus' text format; its type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """For prometheus-client: the metrics of all models and backends."""
        used = [(name, model) for name, model in list(self.models.items()) if name != OTHER or _is_used(model)]
        yield _gauge("num_requests_running", "Requests being answered.", "model_name",
                     [(name, model.running) for name, model in used])  # fmt: skip
        yield _gauge("backend_up", "Whether the backend answers.", "backend", list(self.backend_up.items()))
        yield _outcomes("request_success", "Requests that were answered.", "finished_reason",
                        [(name, model.finished) for name, model in used])  # fmt: skip
        yield _outcomes("request_failure", "Requests that failed.", "outcome",
                        [(name, model.failed) for name, model in used])  # fmt: skip
        yield from _counters(used)
        for stem, about, get in HISTOGRAMS:
            family = HistogramMetricFamily(f"velollm_{stem}", about, labels=["model_name"])
            for name, model in used:
                family.add_metric([name], get(model).buckets(), get(model).sum)
            yield family


def _is_used(model: ModelMetrics) -> bool:
    return bool(model.running or model.finished or model.failed)


def _gauge(stem: str, about: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(f"velollm_{stem}", about, labels=[label])
    for name, value in values:
        family.add_metric([name], float(value))
    return family


def _outcomes(stem: str, about: str, label: str, counts: Iterable[tuple[str, dict[str, int]]]) -> Metric:
    family = CounterMetricFamily(f"velollm_{stem}", about, labels=["model_name", label])
    for name, by_outcome in counts:
        for outcome, count in list(by_outcome.items()):
            family.add_metric([name, outcome], float(count))
    return family


def _counters(used: Iterable[tuple[str, ModelMetrics]]) -> Iterator[Metric]:
    for stem, about, get in COUNTERS:
        family = CounterMetricFamily(f"velollm_{stem}", about, labels=["model_name"])
        for name, model in used:
            family.add_metric([name], float(get(model)))
        yield family
