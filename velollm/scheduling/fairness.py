"""Fair shares between tenants: the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024). Who has been served least comes first. No I/O.
"""

from __future__ import annotations

__all__ = ["TokenCounters"]

MOST_TENANTS = 4096


class TokenCounters:
    """How much each tenant was served, in weighted tokens.

    Work is charged when it starts, with what it is expected to cost, and settled at its end. A tenant that comes back
    starts no lower than the least served of those that are active: idleness is no credit. When nobody is active, all
    debts are forgotten.
    """

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._active: dict[str, int] = {}

    def __getitem__(self, tenant: str) -> float:
        return self._counters.get(tenant, 0.0)

    def __len__(self) -> int:
        return len(self._counters)

    def enter(self, tenant: str) -> None:
        """One more request of `tenant` waits or runs."""
        count = self._active.get(tenant)
        if count is not None:
            self._active[tenant] = count + 1
            return
        if self._active:
            least = min(self._counters[other] for other in self._active)
            self._counters[tenant] = max(self._counters.pop(tenant, 0.0), least)
        else:
            self._counters[tenant] = 0.0
        self._active[tenant] = 1

    def leave(self, tenant: str) -> None:
        """One of its requests is over."""
        count = self._active[tenant] - 1
        if count:
            self._active[tenant] = count
            return
        del self._active[tenant]
        if not self._active:
            self._counters.clear()
        elif len(self._counters) > MOST_TENANTS:
            oldest = next(name for name in self._counters if name not in self._active)
            del self._counters[oldest]

    def charge(self, tenant: str, cost: float) -> None:
        """Add `cost`, or take it off when it is negative."""
        if tenant in self._counters:
            self._counters[tenant] += cost
