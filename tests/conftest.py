"""Async tests run on asyncio, no test leaves its logging behind, and CI tries the same examples at every run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from velollm.observability.record import write_through

# New examples are for those who work on the code: a change must not fail by the luck of an unrelated draw.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("default", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


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
