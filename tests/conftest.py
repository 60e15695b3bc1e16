"""Async tests run on asyncio, call nobody but this machine, leave no logging behind, and CI tries the same examples at
every run."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from velollm.observability.record import write_through

# New examples are for those who work on the code: a change must not fail by the luck of an unrelated draw.
EXAMPLES = int(os.environ.get("VELOLLM_TEST_EXAMPLES", "100"))
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=EXAMPLES)
settings.register_profile("default", deadline=None, max_examples=EXAMPLES)
settings.load_profile("ci" if os.environ.get("CI") else "default")


class Calls:
    """Sees to it that no socket of Python is connected to anything beyond this machine; clients of others are left
    alone."""

    def __init__(self) -> None:
        self.forbidden = False
        self.tried: list[Any] = []
        sys.addaudithook(self._look)

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.connect" and self.forbidden and isinstance(args[1], tuple) and not _is_here(args[1][0]):
            self.tried.append(args[1])
            raise OSError(f"tests call nobody beyond this machine: {args[1]}")


def _is_here(host: Any) -> bool:
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


CALLS = Calls()


@pytest.fixture(autouse=True)
def _nobody_is_called(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nor is it enough that the call fails: nothing may have wanted to."""
    CALLS.tried.clear()
    CALLS.forbidden = request.node.get_closest_marker("e2e") is None
    yield
    CALLS.forbidden = False
    assert not CALLS.tried


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What whoever runs the tests has installed changes nothing in them."""
    if request.node.get_closest_marker("e2e") is None:
        monkeypatch.setenv("VELOLLM_EMBEDDER_DIR", os.devnull)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """The command line sends the log of the whole process to a standard error that is gone after its test."""
    loggers = [logging.getLogger(), logging.getLogger("velollm")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    write_through(None)
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
