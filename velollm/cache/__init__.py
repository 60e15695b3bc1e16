"""The response cache: exact, canonical and semantic tiers that refuse whatever they cannot account for."""

from .eligibility import Controls, Eligibility, Tier
from .explanation import Explanation, TierVerdict
from .request import Request
from .response_cache import CacheStats, Found, Hit, Mode, Receipt, ResponseCache
from .shadow import RouteReport

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
