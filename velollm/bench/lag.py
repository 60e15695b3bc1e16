"""How late the client itself is: what arrives while it is busy waits, and would be charged to the server."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from time import perf_counter, process_time
from types import TracebackType
from typing import Self

import attrs

from velollm.bench.statistics import percentile

__all__ = ["Lag", "LagProbe"]

TICK_SECONDS = 0.01


@attrs.frozen(kw_only=True)
class Lag:
    """Seconds between a byte's arrival and its being seen: the median, two percentiles, and the most.

    `cpu` is the share of one core that the client used.
    """

    median: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    most: float = 0.0
    cpu: float = 0.0


class LagProbe:
    """Sends itself a byte through a socket a hundred times a second while the block runs: `lag` says how late it was.

    Each byte is due at a fixed time, and what the thread that sends it was late itself counts as well: on a crowded
    machine the answers of the server wait just so.
    """

    def __init__(self) -> None:
        self._late: list[float] = []
        self._end = threading.Event()
        self._dues: list[float] = []
        self.lag = Lag()

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._watched = True
        try:
            self._loop.add_reader(self._ours.fileno(), self._seen)
        except NotImplementedError:  # Windows: its loop watches no sockets for others, and the lag stays unknown
            self._watched = False
            self._end.set()
        self._thread = threading.Thread(target=self._tick, name="bench-lag", daemon=True)
        self._begun, self._cpu = perf_counter(), process_time()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if self._watched:
            self._loop.remove_reader(self._ours.fileno())
        self._ours.close()
        self._theirs.close()
        seconds = perf_counter() - self._begun
        ordered = sorted(self._late)
        self.lag = Lag(
            median=percentile(ordered, 50),
            p95=percentile(ordered, 95),
            p99=percentile(ordered, 99),
            most=ordered[-1] if ordered else 0.0,
            cpu=(process_time() - self._cpu) / seconds if seconds > 0 else 0.0,
        )

    def _seen(self) -> None:
        now = perf_counter()
        for _ in self._ours.recv(64):
            self._late.append(max(0.0, now - self._dues[len(self._late)]))

    def _tick(self) -> None:
        due = perf_counter() + TICK_SECONDS
        while not self._end.is_set():
            time.sleep(max(0.0, due - perf_counter()))
            self._dues.append(due)
            try:
                self._theirs.send(b"\0")
            except OSError:
                return
            due = max(due, perf_counter() - TICK_SECONDS) + TICK_SECONDS
