"""The block that `vllm bench serve` prints, and what there is to add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from velollm.bench.result import Result, Step

__all__ = ["block", "sweep_table"]

WIDTH = 50
# Key, words, and how many digits; in vLLM's order.
HEAD = (
    ("completed", "Successful requests:", 0),
    ("failed", "Failed requests:", 0),
    ("max_concurrency", "Maximum request concurrency:", 0),
    ("request_rate", "Request rate configured (RPS):", 2),
    ("duration", "Benchmark duration (s):", 2),
    ("total_input_tokens", "Total input tokens:", 0),
    ("total_output_tokens", "Total generated tokens:", 0),
    ("request_throughput", "Request throughput (req/s):", 2),
    ("input_sequence_throughput", "Input throughput (inputs/s):", 2),
    ("request_goodput", "Request goodput (req/s):", 2),
    ("output_throughput", "Output token throughput (tok/s):", 2),
    ("max_output_tokens_per_s", "Peak output token throughput (tok/s):", 2),
    ("max_concurrent_requests", "Peak concurrent requests:", 2),
    ("total_token_throughput", "Total token throughput (tok/s):", 2),
)
METRICS = (
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
    ("client_queue_time", "Client Queue Time", "Client-side Queueing"),
)
CACHES = (
    ("prefix_cached_tokens", "Cached prompt tokens:", 0),
    ("prefix_cache_hit_rate", "Prefix cache hit rate (%):", 2),
    ("answer_cache_hits", "Answers from a cache:", 0),
    ("spec_decode_acceptance_rate", "Draft acceptance rate (%):", 2),
    ("spec_decode_draft_tokens", "Draft tokens:", 0),
    ("spec_decode_accepted_tokens", "Accepted tokens:", 0),
)
CLIENT = (
    ("lag_p99_ms", "P99 client lag (ms):", 2),
    ("cpu_share", "Client CPU (% of one core):", 2),
)
PERCENT = ("prefix_cache_hit_rate", "cpu_share")


def block(result: Result) -> str:
    """All figures of a run; of a sweep a table of its steps first."""
    facts = result.as_json()
    lines = [sweep_table(result.steps)] if result.steps else []
    lines.append(_title(" Serving Benchmark Result ", "="))
    lines += _rows(facts, HEAD)
    for name, short, title in METRICS:
        if f"mean_{name}_ms" in facts:
            lines.append(_title(title, "-"))
            lines += _metric(facts, name, short)
    caches = list(_rows(facts, CACHES))
    if caches:
        lines += [_title("Caches and Drafts", "-"), *caches]
    lines += [_title("Load Generator", "-"), *_rows(result.client, CLIENT)]
    lines.append("=" * WIDTH)
    lines += [f"note: {words}" for words in result.warnings]
    return "\n".join(lines) + "\n"


def sweep_table(steps: tuple[Step, ...]) -> str:
    """One line a load."""
    lines = [f"{'clients':>8}{'tok/s':>10}{'req/s':>8}{'TTFT':>9}{'p99':>9}{'TPOT':>8}{'p99':>8}{'E2EL':>9}   (ms)"]
    for step in steps:
        figures = step.figures
        lines.append(
            f"{step.concurrency or 0:>8}{figures['output_throughput']:>10.1f}{figures['request_throughput']:>8.2f}"
            f"{figures['median_ttft_ms']:>9.0f}{figures.get('p99_ttft_ms', 0):>9.0f}"
            f"{figures['mean_tpot_ms']:>8.1f}{figures.get('p99_tpot_ms', 0):>8.1f}{figures['median_e2el_ms']:>9.0f}"
        )
    return "\n".join(lines)


def _title(words: str, mark: str) -> str:
    return f"{words:{mark}^{WIDTH}}"


def _rows(facts: dict[str, Any], rows: tuple[tuple[str, str, int], ...]) -> Iterator[str]:
    for key, words, digits in rows:
        value = facts.get(key)
        if isinstance(value, (int, float)):
            shown = value * 100 if key in PERCENT else value
            yield f"{words:<40} {shown:<10.{digits}f}"


def _metric(facts: dict[str, Any], name: str, short: str) -> Iterator[str]:
    yield f"{f'Mean {short} (ms):':<40} {facts[f'mean_{name}_ms']:<10.2f}"
    yield f"{f'Median {short} (ms):':<40} {facts[f'median_{name}_ms']:<10.2f}"
    for key, value in facts.items():
        percent, _, rest = key.partition("_")
        if rest == f"{name}_ms" and percent.startswith("p") and percent != "p50":
            yield f"{f'{percent.upper()} {short} (ms):':<40} {value:<10.2f}"
