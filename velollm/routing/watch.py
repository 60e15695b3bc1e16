"""Looks after the backends of a pool while there is reason to: asks those that are down or silent whether they live.

A backend that answers requests is left in peace; one that hangs with work in it is asked every second, is avoided when
it keeps silent, and loses its work when others can take it over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from velollm.routing.member import Member

__all__ = ["Watch"]

logger = logging.getLogger("velollm.routing")

EVERY_SECONDS = 1.0
QUIET_SECONDS = 2.0  # of work without a sign of life, before it is asked
HUNG_SECONDS = 5.0  # of silence to probes, before its work goes to others
IDLE_SECONDS = 60.0  # so long after the last request those that are down are still asked


class Watch:
    """Runs while requests do, and for a while after that."""

    def __init__(self, members: Sequence[Member], clock: Callable[[], float], *, every: float = EVERY_SECONDS) -> None:
        self._members = members
        self._clock = clock
        self._every = every
        self._task: asyncio.Task[None] | None = None
        self._used = 0.0

    def wake(self) -> None:
        """A request is on its way."""
        self._used = self._clock()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Stop."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            now = self._clock()
            busy = any(member.health.running for member in self._members)
            if not busy and (now - self._used > IDLE_SECONDS or all(m.health.closed for m in self._members)):
                return
            asked = [member for member in self._members if member.health.wants_probe(now, QUIET_SECONDS)]
            await asyncio.gather(*(self._probe(member) for member in asked))

    async def _probe(self, member: Member) -> None:
        await member.probe()
        now = self._clock()
        silent = member.health.silent_for(now)
        if silent < HUNG_SECONDS or not member.health.running:
            return
        if any(other.health.allows(now) for other in self._members if other is not member):
            logger.error("%s has not answered for %.0f s; its work goes to others", member.name, silent)
            member.backend.break_off(f"{member.name} does not answer any more")
