"""Figures of the cache for Prometheus: requests by what it did with them, and whether its store works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from velollm.cache import ResponseCache

__all__ = ["CacheCounts", "StoreState"]


class CacheCounts(Collector):
    """`velollm_cache_requests_total{tier,outcome}`: `hit` by tier, `shared` for requests that read along with another
    one, `miss`, `bypass` and `error` under the tier `none`; `shadow` by tier (for the semantic one, beside the `miss`).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        registry.register(self)

    def add(self, tier: str, outcome: str) -> None:
        """Count a request."""
        self._counts[tier, outcome] += 1

    def collect(self) -> Iterable[Metric]:
        """For prometheus-client."""
        family = CounterMetricFamily(
            "velollm_cache_requests", "Requests by what the cache did with them.", labels=["tier", "outcome"]
        )
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, float(count))
        yield family


class StoreState(Collector):
    """`velollm_cache_store_up`: 0 while the file or the Redis server cannot be used, and answers are kept in memory
    alone; `velollm_cache_store_failures_total`: how often it could not be.
    """

    def __init__(self, registry: CollectorRegistry, cache: ResponseCache) -> None:
        self._cache = cache
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """For prometheus-client."""
        up = GaugeMetricFamily("velollm_cache_store_up", "Whether what the cache keeps answers in can be used.")
        up.add_metric((), 0.0 if self._cache.store_degraded else 1.0)
        yield up
        failures = CounterMetricFamily("velollm_cache_store_failures", "Failures of what the cache keeps answers in.")
        failures.add_metric((), float(self._cache.store_failures))
        yield failures
