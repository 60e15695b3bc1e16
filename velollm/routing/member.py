"""One backend of a pool: the models it was last seen with, and whether it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from velollm.backend import Backend
from velollm.errors import BackendError, BackendTimeout, BackendUnreachable, VeloError, let_go
from velollm.messages import ModelInfo
from velollm.routing.health import Health, Pace

__all__ = ["Member", "same_model"]

CHECK_SECONDS = 2.0
MOST_PACES = 64


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: Ollama's `:latest` may be left out."""
    return one == other or one.removesuffix(":latest") == other.removesuffix(":latest")


class Member:
    """A backend with its list of models, which is asked for at most every `fresh` seconds.

    `only` are the models that may be asked of it (all, when empty). `seconds` is the patience with a list.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        only: Collection[str] = (),
        fresh: float,
        seconds: float,
        clock: Callable[[], float],
        on_health: Callable[[str, bool], None],
    ) -> None:
        self.backend = backend
        self.only = frozenset(only)
        self.listed: list[ModelInfo] = []  # the last list that came, even when it is old
        self.error: VeloError | None = None  # why the last question failed
        self.health = Health()
        self.paces: dict[str, Pace] = {}
        self._fresh = fresh
        self._seconds = seconds
        self._clock = clock
        self._asked: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self._checked: float | None = None
        self._checking: asyncio.Task[None] | None = None
        self._on_health = on_health

    @property
    def name(self) -> str:
        """The name of the backend."""
        return self.backend.name

    def find(self, model: str) -> str | None:
        """The name by which the backend knows `model`; None when it was not seen with it."""
        for info in self.listed:
            if info.id == model:
                return info.id
        return next((info.id for info in self.listed if same_model(info.id, model)), None)

    def note(self, error: VeloError | None) -> None:
        """What became of a request: down when the backend could not be reached."""
        if error is not None:
            let_go(error)
        self.error = error
        self._on_health(self.name, error is None)

    def failed(self, error: VeloError) -> None:
        """A request to it failed."""
        self.health.failed(error, self._clock())
        if isinstance(error, BackendError) and error.retryable:
            self.note(error)

    async def start(self) -> None:
        """Start the backend. What goes wrong is kept in `error`."""
        try:
            await self.backend.start()
        except VeloError as error:
            self.note(error)

    async def refresh(self) -> None:
        """Wait for such a list. What goes wrong is kept in `error`, never raised."""
        asking = self.refresh_soon()
        if asking is not None:
            await asyncio.shield(asking)

    def forget(self) -> None:
        """Ask for the list anew at the next occasion."""
        self._asked = None

    def refresh_soon(self, *, fresh: float | None = None) -> asyncio.Task[None] | None:
        """Have a list that is no older than `fresh` seconds: the question that is on its way, or None without need.

        What goes wrong is kept in `error`.
        """
        fresh = self._fresh if fresh is None else fresh
        if self._asked is not None and self._clock() - self._asked < fresh:
            return None
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._list())
        return self._asking

    async def _list(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                models = await self.backend.models()
        except TimeoutError:
            self.note(BackendTimeout(f"{self.name} did not list its models in time", backend=self.name))
        except VeloError as error:
            self.note(error)
        else:
            allowed = self.only
            self.listed = [m for m in models if not allowed or any(same_model(m.id, name) for name in allowed)]
            self.health.probed(None, self._clock())
            self.note(None)
        self._asked = self._clock()

    async def check(self) -> None:
        """Find out whether it answers, at most every two seconds; what is wrong is kept in `error`."""
        if self._checked is not None and self._clock() - self._checked < CHECK_SECONDS:
            return
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        await asyncio.shield(self._checking)

    async def _check(self) -> None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self.backend.ready()
        except TimeoutError:
            self.note(BackendUnreachable(f"{self.name} did not answer in time", backend=self.name, retry_after=2))
        except VeloError as error:
            self.note(error)
        else:
            self.health.probed(None, self._clock())
            self.note(None)
        self._checked = self._clock()

    async def probe(self) -> None:
        """Ask whether it lives, for its health."""
        error: VeloError | None = None
        silent = False
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self.backend.ready()
        except TimeoutError:
            silent = True
            error = BackendUnreachable(f"{self.name} did not answer in time", backend=self.name, retry_after=2)
        except VeloError as failure:
            error = failure
        self.health.probed(error, self._clock(), silent=silent)
        if not silent or not self.health.closed:
            self.note(error)

    def pace(self, model: str) -> Pace:
        """How fast it writes with `model`."""
        found = self.paces.get(model)
        if found is None:
            if len(self.paces) >= MOST_PACES:
                self.paces.clear()
            found = self.paces[model] = Pace()
        return found

    async def aclose(self) -> None:
        """Close the backend."""
        for task in (self._asking, self._checking):
            if task is not None:
                task.cancel()
        await self.backend.aclose()
