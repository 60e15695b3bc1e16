"""What is known of the model behind a name: its build, so that an answer of yesterday's is not given for today's, and
whether it can think."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from velollm.messages import ModelInfo

__all__ = ["Models"]

logger = logging.getLogger("velollm.cache")

FRESH_SECONDS = 60.0
PATIENCE_SECONDS = 1.0


class Models:
    """Asks the backend once a minute at most, behind the back of requests; only the first ones `wait` for it, until it
    has `answered`, or was given the time to."""

    def __init__(self, ask: Callable[[], Awaitable[list[ModelInfo]]], clock: Callable[[], float]) -> None:
        self._ask_backend = ask
        self._clock = clock
        self._known: dict[str, ModelInfo] = {}
        self._asked_at: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self.answered = False

    def get(self, model: str) -> ModelInfo | None:
        """The model of this name, or None where it is not known."""
        if self._asked_at is None or self._clock() - self._asked_at > FRESH_SECONDS:
            self._refresh()
        if not model and len(self._known) == 1:
            return next(iter(self._known.values()))
        return self._known.get(model) or self._known.get(f"{model}:latest")

    async def wait(self) -> None:
        """Give the backend a moment to say for the first time what it serves."""
        self.get("")
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=PATIENCE_SECONDS)
        self.answered = True

    def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()

    def _refresh(self) -> None:
        self._asked_at = self._clock()
        self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        try:
            served = await self._ask_backend()
        except Exception as error:  # an engine that cannot say what it serves may still answer
            logger.debug("the models are not known now: %s", error)
            return
        self._known = {model.id: model for model in served}
