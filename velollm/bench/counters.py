"""Counters that a server shows at `/metrics`: what its prefix cache and its drafts did during a run."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["difference", "read_counters"]

LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+(?P<value>[-+.\deE]+)")
# What is looked for: the end of a metric's name (vLLM's with its `vllm:`, ours with `velollm_`), and its name here.
STEMS: Mapping[str, str] = {
    "prefix_cache_queries_total": "prefix_queries",
    "prefix_cache_hits_total": "prefix_hits",
    "spec_decode_num_drafts_total": "drafts",
    "spec_decode_num_draft_tokens_total": "draft_tokens",
    "spec_decode_num_accepted_tokens_total": "accepted_tokens",
}


def read_counters(text: str) -> dict[str, float]:
    """The counters in Prometheus' text format, summed over their labels."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        for stem, name in STEMS.items():
            if match["name"].endswith((f":{stem}", f"_{stem}")) or match["name"] == stem:
                try:
                    found[name] = found.get(name, 0.0) + float(match["value"])
                except ValueError:
                    continue
    return found


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was counted between two readings; counters that went back were started anew."""
    return {
        name: value - before.get(name, 0.0) if value >= before.get(name, 0.0) else value
        for name, value in after.items()
    }
