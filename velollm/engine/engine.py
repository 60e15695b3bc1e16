"""The engine on a thread of its own, with asyncio on the other side.

loop:    generate() ─ job ─▶ inbox            queue ◀─ updates ─ call_soon_threadsafe, once a step and loop
thread:                       └▶ core.step(), core.step(), ... ─┘   commands are taken between two steps
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from velollm.engine.core import EngineCore, Job, JobSpec, Tokens, Update
from velollm.engine.runner import Runner
from velollm.errors import BackendError, VeloError

__all__ = ["Engine", "Stream"]

logger = logging.getLogger("velollm.engine")

T = TypeVar("T")


class Stream:
    """The updates of one job, as an asynchronous iterator; `job` is there from the first one on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.queue: asyncio.Queue[Update | VeloError] = asyncio.Queue()
        self.job: Job | None = None
        self.left = False


class Engine:
    """Runs `runner` until it is closed. `options` are those of `EngineCore`.

    `generate` may be called from any event loop. A job whose iterator is closed is gone after the step that runs.
    """

    def __init__(self, runner: Runner, tokens: Tokens, **options: Any) -> None:
        self.core = EngineCore(runner, tokens, **options)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="velollm-engine", daemon=True)
        self._thread.start()

    async def generate(self, spec: JobSpec) -> AsyncGenerator[tuple[Job, Update], None]:
        """The updates of a job, with the job. Raises `VeloError` when it cannot run, or fails."""
        stream = Stream(asyncio.get_running_loop())
        self._put(lambda: self._add(spec, stream))
        try:
            while True:
                update = await stream.queue.get()
                if isinstance(update, VeloError):
                    stream.left = True
                    raise update
                assert stream.job is not None
                stream.left = update.last
                yield stream.job, update
                if update.last:
                    return
        finally:
            if not stream.left:
                stream.left = True
                self._put(lambda: self._abort(stream))

    async def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, called on the engine's thread between two steps."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:
                _tell(loop, _fail, future, error)
            else:
                _tell(loop, _settle, future, result)

        self._put(work)
        return await future

    def close(self) -> None:
        """End what runs with an error, and give memory back. Blocks for up to one step."""
        if self._open:
            self._open = False
            self._inbox.put(lambda: None)
            self._thread.join()

    def _put(self, command: Callable[[], None]) -> None:
        if not self._open:
            raise BackendError("the engine is closed", status=503)
        self._inbox.put(command)

    # ---- on the thread ----

    def _run(self) -> None:
        core = self.core
        while True:
            self._take_commands(wait=core.idle)
            if not self._open:
                break
            try:
                out = core.step()
            except Exception as error:
                logger.exception("the engine failed in a step")
                failure = BackendError(f"the engine failed: {type(error).__name__}")
                out = [(job, failure) for job in core.fail_all(failure)]
            self._deliver(out)
        failure = BackendError("the engine is shutting down", status=503)
        self._deliver([(job, failure) for job in core.fail_all(failure)])
        core.runner.close()

    def _take_commands(self, *, wait: bool) -> None:
        try:
            while True:
                self._inbox.get(block=wait)()
                wait = False
        except queue.Empty:
            return

    def _add(self, spec: JobSpec, stream: Stream) -> None:
        if stream.left:
            return
        try:
            stream.job = self.core.add(spec, stream)
        except VeloError as error:
            _tell(stream.loop, stream.queue.put_nowait, error)

    def _abort(self, stream: Stream) -> None:
        if stream.job is not None:
            self.core.abort(stream.job)

    def _deliver(self, out: list[tuple[Job, Any]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Any]]] = {}
        for job, update in out:
            loops.setdefault(job.listener.loop, []).append((job.listener, update))
        for loop, updates in loops.items():
            if not _tell(loop, _hand_out, updates):
                for stream, _ in updates:
                    self._abort(stream)


def _hand_out(updates: list[tuple[Stream, Any]]) -> None:
    for stream, update in updates:
        stream.queue.put_nowait(update)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> bool:
    """Call `function` on `loop`; False when that loop is closed, and nobody listens any more."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True
