"""What there is to see of a cache, as one JSON object: for the dashboard, the command line and scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import orjson

from velollm.cache.entry import Entry
from velollm.cache.response_cache import ResponseCache

__all__ = ["export_entries", "overview"]


def overview(cache: ResponseCache, *, examples: bool = True) -> dict[str, Any]:
    """Counters, settings, and the shadow report by route. Without `examples` it holds no word of any request."""
    stats = cache.stats()
    answered = sum(stats.hits.values())
    eligible = answered + stats.misses + stats.shadow_hits
    reports = []
    for route in cache.report():
        report = attrs.asdict(route)
        report |= {"agreement": round(route.agreement, 4), "recommended": route.recommended}
        if not examples:
            del report["disagreements"]
        reports.append(report)
    return {
        "modes": dict(cache.modes),
        "ttl": cache.ttl,
        "size": cache.size,
        "hit_ratio": round(answered / eligible, 4) if eligible else 0.0,
        **attrs.asdict(stats),
        "report": reports,
    }


def export_entries(cache: ResponseCache, *, tenant: bytes | None = None) -> Iterator[dict[str, Any]]:
    """Every live entry (of one tenant: its digest), oldest first. A prompt is there where the semantic tier is open."""
    for entry in cache.entries():
        if tenant is None or entry.tenant == tenant:
            yield _export(entry)


def _export(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key.hex(),
        "tenant": entry.tenant.hex(),
        "model": entry.model,
        "created": entry.created,
        "expires": entry.expires,
        "tags": list(entry.tags),
        "prompt": entry.prompt,
        "answer": orjson.loads(entry.answer),
    }
