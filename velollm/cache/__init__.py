"""The response cache: exact, canonical and semantic tiers that refuse whatever they cannot account for."""

from velollm.cache.eligibility import Controls, Eligibility, Tier
from velollm.cache.explanation import Explanation, TierVerdict
from velollm.cache.request import Request
from velollm.cache.response_cache import Mode, ResponseCache
from velollm.cache.results import CacheStats, Found, Hit, Receipt
from velollm.cache.shadow import RouteReport

__all__ = [
    "CacheStats",
    "Controls",
    "Eligibility",
    "Explanation",
    "Found",
    "Hit",
    "Mode",
    "Receipt",
    "Request",
    "ResponseCache",
    "RouteReport",
    "Tier",
    "TierVerdict",
]
