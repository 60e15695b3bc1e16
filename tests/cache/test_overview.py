"""What a cache shows of itself, and what it keeps to itself."""

from __future__ import annotations

import orjson
from support.cache import answer, ask

from velollm.cache import ResponseCache
from velollm.cache.keys import tenant_digest
from velollm.cache.overview import export_entries, overview


def test_overview_and_export() -> None:
    with ResponseCache() as cache:
        assert overview(cache)["hit_ratio"] == 0.0
        cache.store("ann", ask("How do I boil an egg?"), answer("8 minutes"))
        cache.store("bob", ask("What is DNA?", tools=[{"type": "function"}]), answer())
        cache.lookup("ann", ask("How do I boil an egg?"))
        request = cache.prepare("ann", ask("What is the best way to boil eggs?"))
        cache.record_shadow(request, cache.find(request).shadow, answer("Ask her"), route="m")
        seen = orjson.loads(orjson.dumps(overview(cache)))
        assert (seen["hits"], seen["shadow_hits"], seen["hit_ratio"]) == ({"exact": 1}, 1, 0.5)
        assert seen["modes"]["semantic"] == "shadow"
        assert seen["report"][0]["recommended"] == "shadow"
        assert seen["report"][0]["disagreements"][0][1] == "How do I boil an egg?"
        assert b"egg" not in orjson.dumps(overview(cache, examples=False))
        entries = sorted(export_entries(cache), key=lambda entry: entry["created"])
        assert [entry["prompt"] for entry in entries] == ["How do I boil an egg?", ""]
        assert entries[0]["answer"] == answer("8 minutes")
        assert len(list(export_entries(cache, tenant=tenant_digest("bob")))) == 1
