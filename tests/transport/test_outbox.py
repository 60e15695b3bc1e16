"""What is written a moment later leaves together, in order, and all of it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from velollm.transport.outbox import MOST, MOST_BYTES, Outgoing

pytestmark = pytest.mark.anyio


class Transport:
    """Remembers what was written, and among what."""

    def __init__(self, log: list[tuple[int, bytes]], *, broken: bool = False) -> None:
        self.log = log
        self.broken = broken
        self.closing = False

    def write(self, data: bytes) -> None:
        if self.broken:
            raise RuntimeError("no")
        self.log.append((id(self), data))

    def is_closing(self) -> bool:
        return self.closing


def outgoing(transport: Transport) -> Outgoing:
    return Outgoing(cast("Any", transport), asyncio.get_running_loop())


async def test_what_came_together_leaves_together_and_in_order() -> None:
    log: list[tuple[int, bytes]] = []
    transports = [Transport(log) for _ in range(3)]
    outs = [outgoing(transport) for transport in transports]
    for out in outs:
        out.write(b"a")
    for out in outs:
        out.write(b"b")
    assert not log
    await asyncio.sleep(0)
    assert log == [(id(transport), b"ab") for transport in transports]
    outs[0].write(b"c")
    await asyncio.sleep(0)
    assert log[3:] == [(id(transports[0]), b"c")]


async def test_much_does_not_wait() -> None:
    log: list[tuple[int, bytes]] = []
    out = outgoing(Transport(log))
    out.write(b"x" * MOST_BYTES)
    assert not log
    out.write(b"y")
    assert [len(data) for _, data in log] == [MOST_BYTES + 1]
    await asyncio.sleep(0)
    assert len(log) == 1


async def test_those_that_came_first_do_not_wait_for_many() -> None:
    log: list[tuple[int, bytes]] = []
    outs = [outgoing(Transport(log)) for _ in range(MOST + 1)]
    for out in outs:
        out.write(b"a")
    assert len(log) == MOST
    await asyncio.sleep(0)
    assert len(log) == MOST + 1


async def test_before_the_end_it_is_flushed_and_after_it_dropped() -> None:
    log: list[tuple[int, bytes]] = []
    transport = Transport(log)
    out = outgoing(transport)
    out.write(b"a")
    out.flush()
    assert len(log) == 1
    out.write(b"b")
    out.drop()
    out.write(b"c")
    transport.closing = True
    await asyncio.sleep(0)
    assert len(log) == 1


async def test_one_that_is_broken_keeps_nobody_from_what_is_his(caplog: pytest.LogCaptureFixture) -> None:
    log: list[tuple[int, bytes]] = []
    outs = [outgoing(Transport(log)), outgoing(Transport(log, broken=True)), outgoing(Transport(log))]
    for out in outs:
        out.write(b"a")
    await asyncio.sleep(0)
    assert len(log) == 2
    assert "could not be written to" in caplog.text
