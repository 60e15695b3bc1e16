"""The figures of a run, under the keys of `vllm bench serve` and with its definitions.

Where a key is vLLM's, so is its meaning (vllm/benchmarks/serve.py and lib/endpoint_request_func.py, read at 0.33.0):
TTFT is the first chunk with output, ITL every gap between such chunks, TPOT leaves the first token out, percentiles are
linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from velollm.bench.record import Record
from velollm.bench.statistics import Spread, most_at_once, per_second, spread

__all__ = ["PERCENTILES", "good_requests", "spreads", "summarise"]

JSON: TypeAlias = dict[str, Any]

PERCENTILES = (50.0, 90.0, 95.0, 99.0)


def spreads(records: Sequence[Record]) -> dict[str, Spread]:
    """TTFT, TPOT, ITL and E2EL of the answered `records`, in seconds."""
    good = [record for record in records if record.good]
    return {
        "ttft": spread(record.ttft for record in good),
        "tpot": spread(tpot for record in good if (tpot := record.tpot) is not None),
        "itl": spread(gap for record in good for gap in record.itl),
        "e2el": spread(record.latency for record in good),
    }


def good_requests(records: Sequence[Record], slos: Mapping[str, float]) -> int:
    """How many requests kept every objective (`ttft`, `tpot`, `e2el`, in seconds)."""
    return sum(
        record.good and all(_figure(record, name) <= limit for name, limit in slos.items()) for record in records
    )


def summarise(
    records: Sequence[Record],
    seconds: float,
    *,
    embeds: bool = False,
    slos: Mapping[str, float] = {},
    percentiles: Sequence[float] = PERCENTILES,
    queued: bool = False,
) -> JSON:
    """All figures of one run; `queued` says that a concurrency kept requests waiting in the client."""
    good = [record for record in records if record.good]
    tokens_in = sum(record.prompt_tokens for record in good)
    tokens_out = sum(record.output_tokens for record in good)
    result: JSON = {"duration": seconds, "completed": len(good), "failed": len(records) - len(good)}
    result["total_input_tokens"] = tokens_in
    if embeds:
        inputs = sum(record.inputs for record in good)
        result |= {
            "total_input_sequences": inputs,
            "request_throughput": len(good) / seconds,
            "input_sequence_throughput": inputs / seconds,
            "total_token_throughput": tokens_in / seconds,
        }
        _add_spread(result, "e2el", spread(record.latency for record in good), percentiles)
        return result
    result |= {
        "total_output_tokens": tokens_out,
        "request_throughput": len(good) / seconds,
        "request_goodput": good_requests(records, slos) / seconds if slos else None,
        "output_throughput": tokens_out / seconds,
        "total_token_throughput": (tokens_in + tokens_out) / seconds,
        **_peaks(good),
    }
    for name, values in spreads(records).items():
        _add_spread(result, name, values, percentiles)
    if queued:
        _add_spread(result, "client_queue_time", spread(record.waited for record in good), percentiles)
    return result | _caches(good)


def _figure(record: Record, name: str) -> float:
    if name == "tpot":
        return record.tpot or 0.0  # vLLM's rule: nothing to complain about in an answer of one token
    return record.ttft if name == "ttft" else record.latency


def _add_spread(result: JSON, name: str, values: Spread, percentiles: Sequence[float]) -> None:
    result[f"mean_{name}_ms"] = values.mean * 1000
    result[f"median_{name}_ms"] = values.at(50) * 1000
    result[f"std_{name}_ms"] = values.std * 1000
    for percent in percentiles:
        result[f"p{percent:g}_{name}_ms"] = values.at(percent) * 1000


def _peaks(good: Sequence[Record]) -> JSON:
    if not good:
        return {"max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0}
    begin = min(record.sent for record in good)
    times = (record.sent + arrival for record in good for arrival in record.arrivals)
    return {
        "max_output_tokens_per_s": float(max(per_second(times, begin))),
        "max_concurrent_requests": most_at_once((one.sent, one.sent + one.latency) for one in good),
    }


def _caches(good: Sequence[Record]) -> JSON:
    """What caches did, and what else is worth knowing; absent where nothing is known."""
    found: JSON = {}
    told = [record for record in good if record.cached_tokens is not None]
    if told:
        cached, asked = sum(one.cached_tokens or 0 for one in told), sum(one.prompt_tokens for one in told)
        found["prefix_cached_tokens"] = cached
        found["prefix_cache_hit_rate"] = cached / asked if asked else 0.0
    hits = sum(record.cache.startswith("hit") for record in good)
    if hits:
        found["answer_cache_hits"] = hits
    drafted = sum(record.engine.get("draft_n", 0) for record in good)
    if drafted:
        accepted = sum(record.engine.get("draft_n_accepted", 0) for record in good)
        found["spec_decode_draft_tokens"] = int(drafted)
        found["spec_decode_accepted_tokens"] = int(accepted)
        found["spec_decode_acceptance_rate"] = 100 * accepted / drafted
    return found
