"""A backend's embedding model as the cache's embedder: a plain call, made from a thread, answered by the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from velollm.backend import Backend
from velollm.messages import EmbedRequest

__all__ = ["BackendEmbedder"]

PATIENCE_SECONDS = 2.0


class BackendEmbedder:
    """Call it with a text, from any thread but the event loop's own. Before `bind`, it has no vectors."""

    def __init__(self, backend: Backend, model: str) -> None:
        self._backend = backend
        self._model = model
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop in which the backend lives."""
        self._loop = loop

    def __call__(self, text: str) -> Sequence[float]:
        if self._loop is None:
            return ()
        asking = asyncio.run_coroutine_threadsafe(self._ask(text), self._loop)
        try:
            return asking.result(PATIENCE_SECONDS)
        finally:
            asking.cancel()

    async def _ask(self, text: str) -> Sequence[float]:
        answer = await self._backend.embed(EmbedRequest(model=self._model, inputs=[text]))
        return answer.vectors[0]
