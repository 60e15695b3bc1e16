"""A run with its figures, as it is printed, saved, compared and drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import attrs

from velollm.bench.lag import Lag
from velollm.bench.record import Record
from velollm.bench.schedule import Schedule

__all__ = ["Result", "Step", "client_facts", "settings_of", "warnings_of"]

JSON: TypeAlias = dict[str, Any]

CPU_SHARE = 0.9  # of one core: above it the client may not have kept up
# A client that is usually later than a tenth of the gap between tokens (or of the first one, where there is no second),
# or now and then by half of it, distorts them; so many seconds matter to nobody.
USUAL_LAG, RARE_LAG = 0.1, 0.5
LEAST_USUAL, LEAST_RARE = 0.001, 0.005
LATE_SECONDS = 0.05  # of sending, in an open loop


@attrs.frozen(kw_only=True)
class Step:
    """One load of a sweep, and its figures."""

    concurrency: int | None
    rate: float
    figures: JSON


@attrs.frozen(kw_only=True)
class Result(Mapping[str, Any]):
    """`settings` say what was asked of whom, `figures` are those of `summarise`; of a sweep, those of its last step.

    As a mapping it is what `vllm bench serve` writes, without the single requests.
    """

    settings: JSON
    figures: JSON
    records: Sequence[Record]
    client: JSON = attrs.field(factory=dict)
    warnings: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.as_json()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_json())

    def __len__(self) -> int:
        return len(self.as_json())

    def as_json(self, *, details: bool = False) -> JSON:
        """What `vllm bench serve` writes, and more; `details` adds the times of every request."""
        found = {**self.settings, **self.figures, "client": self.client, "warnings": list(self.warnings)}
        if self.steps:
            found["sweep"] = [
                {"max_concurrency": step.concurrency, "request_rate": _rate(step.rate), **step.figures}
                for step in self.steps
            ]
        return found | _details(self.records) if details else found


def settings_of(
    *,
    backend: str,
    model: str,
    profile: str,
    count: int,
    schedule: Schedule,
    seed: int,
    now: datetime,
    label: str = "",
    metadata: Mapping[str, str] = {},
) -> JSON:
    """The head of a result, under vLLM's keys."""
    return {
        "date": now.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": label or backend,
        "model_id": model,
        "tokenizer_id": None,
        "num_prompts": count,
        "profile": profile,
        "seed": seed,
        **metadata,
        "request_rate": _rate(schedule.rate),
        "burstiness": schedule.burstiness,
        "max_concurrency": schedule.concurrency,
    }


def client_facts(records: Sequence[Record], lag: Lag, schedule: Schedule) -> JSON:
    """What the load generator did to its own figures, in milliseconds, and whether it was the bottleneck."""
    late = sorted(max(0.0, record.sent - record.planned) for record in records) if _is_free(schedule) else []
    latest = late[-1] if late else 0.0
    gaps = sorted(gap for record in records if record.good for gap in record.itl)
    typical = gaps[len(gaps) // 2] if gaps else 0.0
    firsts = sorted(record.ttft for record in records if record.good)
    scale = typical or (firsts[len(firsts) // 2] if firsts else math.inf)
    slow = lag.median > max(LEAST_USUAL, USUAL_LAG * scale) or lag.p95 > max(LEAST_RARE, RARE_LAG * scale)
    return {
        "lag_median_ms": lag.median * 1000,
        "lag_p99_ms": lag.p99 * 1000,
        "lag_max_ms": lag.most * 1000,
        "late_max_ms": latest * 1000,
        "cpu_share": lag.cpu,
        "bottleneck": lag.cpu > CPU_SHARE or slow or latest > LATE_SECONDS,
    }


def warnings_of(records: Sequence[Record], figures: JSON, client: JSON) -> tuple[str, ...]:
    """What a reader of the figures has to know."""
    found = []
    if client.get("bottleneck"):
        found.append(
            "the load generator was the bottleneck, or this machine was too busy for it: it was late by "
            f"{client['lag_p99_ms']:.1f} ms (p99) and used {client['cpu_share']:.0%} of a core; "
            "use another machine, or less load"
        )
    good = [record for record in records if record.good]
    if good and not all(record.counted for record in good) and "total_output_tokens" in figures:
        found.append("the server counts no tokens: each chunk was taken for one")
    if figures.get("answer_cache_hits"):
        found.append(f"{figures['answer_cache_hits']} answers came from a cache of answers, not from the engine")
    failed = [record for record in records if record.error]
    if failed:
        found.append(f"{len(failed)} of {len(records)} requests failed, the first with: {failed[0].error}")
    return tuple(found)


def _is_free(schedule: Schedule) -> bool:
    """Whether requests are sent when they are due, whatever else runs."""
    return schedule.is_open and schedule.concurrency is None


def _rate(rate: float) -> float | str:
    return rate if math.isfinite(rate) else "inf"


def _details(records: Sequence[Record]) -> JSON:
    return {
        "input_lens": [record.prompt_tokens for record in records],
        "output_lens": [record.output_tokens if record.good else 0 for record in records],
        "ttfts": [record.ttft for record in records],
        "itls": [record.itl for record in records],
        "latencies": [record.latency for record in records],
        "start_times": [record.sent for record in records],
        "queue_times": [record.waited for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
        "cached_tokens": [record.cached_tokens for record in records],
        "groups": [record.group for record in records],
    }
