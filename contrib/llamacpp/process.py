"""One child process with a llama-server in it: started, listened to, ended. What follows its end is others' matter.

start ──▶ loading ──▶ ready ──▶ ended       `ended` is set at any end, wanted or not; `ending` says in words how
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from velollm.engine.llama_cpp import WAITING
from velollm.errors import BackendError

__all__ = ["LlamaProcess", "slots_folder"]

logger = logging.getLogger("velollm.llamacpp")

CHILD = Path(__file__).with_name("child.py")
SLOTS = "velollm-slots"
LOG_LINES = 200
LONGEST_LINE = 500
END_SECONDS = 3.0
LOG_LINE = re.compile(r"(?:[\d.]+ )?(?P<level>[DIWE]) (?P<words>.*)")


def slots_folder(place: Path) -> str:
    """A new folder below `place` to save slots in. What processes have left there that were killed is removed."""
    if os.name == "posix":
        for path in place.glob(f"{SLOTS}-*-*"):
            owner = path.name.split("-")[2]
            if owner.isdecimal() and not _is_running(int(owner)):
                shutil.rmtree(path, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{SLOTS}-{os.getpid()}-", dir=place)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


class LlamaProcess:
    """A llama-server started with `parameters` (those of `child.server_parameters`), called `name` in messages.

    `child` is another program that is started and reports in the same way, `engine` what computes in it. With
    `saves_slots` it has a folder to save its slots in for as long as it lives.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        *,
        name: str,
        child: Path = CHILD,
        engine: str = "llama.cpp",
        saves_slots: bool = False,
    ) -> None:
        self.name = name
        self.engine = engine
        self._saves_slots = saves_slots
        self._folder: str | None = None
        self._child = child
        self.url = ""
        self.ended = asyncio.Event()
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._parameters = parameters
        self._ready = asyncio.Event()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, None before the start."""
        return self._process.pid if self._process is not None else None

    async def start(self, seconds: float) -> str:
        """Start the child and return the URL it serves. Raises `BackendError` when it ends, or takes too long."""
        parameters = dict(self._parameters)
        if self._saves_slots:
            parameters["slot_save_path"] = self._folder = slots_folder(Path(tempfile.gettempdir()))
        self._process = process = subprocess.Popen(  # noqa: ASYNC220, S603 (quick; our own file, no shell)
            [sys.executable, "-P", str(self._child)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**WAITING, **os.environ},
            start_new_session=True,  # what is typed at our terminal is not for it
        )
        assert process.stdin is not None
        threading.Thread(target=self._listen, args=(process.stdout,), name="llamacpp-ready", daemon=True).start()
        threading.Thread(target=self._follow, args=(process.stderr,), name="llamacpp-log", daemon=True).start()
        try:
            process.stdin.write(json.dumps(parameters).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already: `ended` and the log say why
        try:
            async with asyncio.timeout(seconds):
                await self._ready_or_ended()
        except TimeoutError:
            await self.stop()
            raise BackendError(
                f"{self.name}: {self.engine} did not load the model within {seconds:g} seconds", backend=self.name
            ) from None
        except BaseException:
            await asyncio.shield(self.stop())
            raise
        if not self.url:
            await self.stop()
            raise BackendError(f"{self.name}: {self.engine} {self.ending}", backend=self.name)
        return self.url

    async def stop(self) -> None:
        """End the child: by closing its pipe, else by force."""
        try:
            await self._end()
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    async def _end(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            self._stopping = True
        if process is None or process.stdin is None:
            return
        for end in (process.stdin.close, process.terminate, process.kill):
            try:
                end()
            except BrokenPipeError:
                pass  # it has ended already
            try:
                async with asyncio.timeout(END_SECONDS):
                    await self.ended.wait()
                return
            except TimeoutError:
                continue

    def kill(self) -> None:
        """End the child at once; `ended` follows."""
        if self._process is not None:
            self._process.kill()

    @property
    def ending(self) -> str:
        """How the child ended, with its own last words about it."""
        code = self._process.poll() if self._process is not None else None
        if code is None:
            how = "is running"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL and not self._stopping:
                how += " (for want of memory?)"
        else:
            how = f"ended with status {code}"
        words = self._last_words()
        return f"{how}: {words}" if words else how

    def _last_words(self) -> str:
        """The most telling errors of the log: the first ones, for what follows only repeats that all is lost."""
        lines = [(LOG_LINE.match(line), line) for line in list(self.log)]
        errors = [" ".join(match["words"].split()) for match, _ in lines if match and match["level"] == "E"]
        if not errors:  # what is no line of the log: a traceback, or a library's last cry
            errors = [line for match, line in lines if not match and line.strip()][-1:]
        return "; ".join(dict.fromkeys(errors[:3]))

    async def _ready_or_ended(self) -> None:
        waiting = {asyncio.ensure_future(self._ready.wait()), asyncio.ensure_future(self.ended.wait())}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    # ---- on threads of their own ----

    def _listen(self, report: IO[bytes]) -> None:
        with report:
            line = report.readline()
        if line:
            url = str(json.loads(line)["url"])
            self._tell(self._became_ready, url)

    def _follow(self, log: IO[bytes]) -> None:
        with log:
            for line in log:
                words = line[:LONGEST_LINE].decode("utf-8", "replace").rstrip()
                self.log.append(words)
                logger.debug("%s: %s", self.name, words)
        assert self._process is not None
        self._process.wait()
        self._tell(self.ended.set)

    def _tell(self, method: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(method, *arguments)
        except RuntimeError:
            pass  # the loop is closed: nobody listens any more

    def _became_ready(self, url: str) -> None:
        self.url = url
        self._ready.set()
