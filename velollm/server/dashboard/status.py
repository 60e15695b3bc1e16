"""The state of the whole server as one JSON object."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry

from velollm._version import __version__
from velollm.observability.histogram import Histogram
from velollm.observability.metrics import Metrics, ModelMetrics
from velollm.observability.recent import RecentRequests
from velollm.routing import BackendPool
from velollm.routing.member import Member

__all__ = ["status"]

JSON = dict[str, Any]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
# Counters of layers, which are there when the layer is: the key here, the name of the metric.
COUNTERS = {"cache": "velollm_cache_requests", "tool_calls": "velollm_tool_calls"}


def status(pool: BackendPool, metrics: Metrics, recent: RecentRequests, *, begun: float) -> JSON:
    """Everything the dashboard shows but single requests; times in seconds, `begun` in Unix seconds."""
    models = {name: _model(one) for name, one in list(metrics.models.items()) if _is_used(one)}
    return {
        "version": __version__,
        "uptime": round(time.time() - begun, 1),
        "running": sum(one.running for one in metrics.models.values()),
        "rates": recent.rates(),
        "backends": [_backend(member) for member in pool.members],
        "models": models,
        **{key: found for key, name in COUNTERS.items() if (found := _counter(metrics.registry, name))},
    }


def _backend(member: Member) -> JSON:
    return {
        "name": member.name,
        "kind": member.backend.kind,
        "up": member.error is None,
        "error": member.error.message if member.error is not None else None,
        "models": [model.id for model in member.listed],
    }


def _is_used(model: ModelMetrics) -> bool:
    return bool(model.running or model.finished or model.failed)


def _model(model: ModelMetrics) -> JSON:
    return {
        "running": model.running,
        "finished": dict(model.finished),
        "failed": dict(model.failed),
        "prompt_tokens": model.prompt_tokens,
        "generation_tokens": model.generation_tokens,
        "prefix_cache": {"queries": model.queried_tokens, "hits": model.cached_tokens},
        "ttft": _latency(model.ttft),
        "itl": _latency(model.itl),
        "e2e": _latency(model.e2e),
    }


def _latency(histogram: Histogram) -> JSON | None:
    if not histogram.count:
        return None
    return {name: histogram.quantile(share) for name, share in QUANTILES.items()}


def _counter(registry: CollectorRegistry, name: str) -> list[JSON]:
    """The values of a counter: its labels, and `count`."""
    return [
        {**sample.labels, "count": int(sample.value)}
        for family in registry.collect()
        if family.name == name
        for sample in family.samples
        if sample.name == f"{name}_total" and sample.value
    ]
