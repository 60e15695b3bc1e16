"""Counts of requests by what the cache did with them, for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["CacheCounts"]


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
