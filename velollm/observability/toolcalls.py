"""Counts of tool calls by what became of them, for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["ToolCallCounts"]


class ToolCallCounts(Collector):
    """`velollm_tool_calls_total{outcome,kind}`; both labels are words of VeloLLM alone, of no client and no model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        registry.register(self)

    def add(self, outcome: str, kind: str, count: int) -> None:
        """Count `count` calls."""
        self._counts[outcome, kind] += count

    def collect(self) -> Iterable[Metric]:
        """For prometheus-client."""
        family = CounterMetricFamily(
            "velollm_tool_calls", "Tool calls by what became of them.", labels=["outcome", "kind"]
        )
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, float(count))
        yield family
