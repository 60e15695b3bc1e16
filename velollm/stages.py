"""Requests that came together go through the proxy together, stage by stage.

    parsed │ parsed │ parsed  ─▶  looked up │ looked up │ looked up  ─▶  sent │ sent │ sent  ─▶  ...

What one has just been through is still in the processor's caches when the next one comes to it. Between stages the
event loop looks for news once, which a request that is alone need not wait for.
"""

from __future__ import annotations

from collections.abc import Generator
from types import coroutine

__all__ = ["next_stage"]


@coroutine
def next_stage() -> Generator[None, None, None]:
    """Let the others that are at this stage come to its end first. In a task of asyncio."""
    yield
