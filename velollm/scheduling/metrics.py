"""What the scheduler shows to Prometheus, under vLLM's names."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from velollm.observability.histogram import E2E_SECONDS, Histogram
from velollm.scheduling.dispatcher import Dispatcher
from velollm.scheduling.job import LEVELS

__all__ = ["SchedulingMetrics"]

MOST_MODELS = 100
OTHER = "other"


class SchedulingMetrics(Collector):
    """Figures of one dispatcher, and of the waiting that is reported to it."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._queue_times: dict[str, Histogram] = {}
        self._refused: dict[str, int] = {}

    def waited(self, model: str, seconds: float) -> None:
        """A request for `model` has got its turn."""
        model = model or OTHER
        found = self._queue_times.get(model)
        if found is None:
            if len(self._queue_times) >= MOST_MODELS:
                model = OTHER
            found = self._queue_times.setdefault(model, Histogram(E2E_SECONDS))
        found.add(seconds)

    def refused(self, code: str) -> None:
        """A request was refused, for this reason."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def collect(self) -> Iterable[Metric]:
        """For prometheus-client."""
        queue = self._dispatcher.waiting
        waiting = GaugeMetricFamily("velollm_num_requests_waiting", "Requests that wait.", labels=["priority"])
        for level, name in enumerate(LEVELS):
            waiting.add_metric([name], float(queue.count(level)))
        yield waiting
        times = HistogramMetricFamily(
            "velollm_request_queue_time_seconds", "From the request to its turn.", labels=["model_name"]
        )
        for model, histogram in self._queue_times.items():
            times.add_metric([model], histogram.buckets(), histogram.sum)
        yield times
        preemptions = CounterMetricFamily("velollm_preemptions", "Streams that made way for more urgent ones.")
        preemptions.add_metric([], float(self._dispatcher.preemptions))
        yield preemptions
        refused = CounterMetricFamily("velollm_requests_refused", "Requests that were not let in.", labels=["reason"])
        for code, count in self._refused.items():
            refused.add_metric([code], float(count))
        yield refused
