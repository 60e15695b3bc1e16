"""A text fed to a `StreamFixer` in pieces of random size."""

from __future__ import annotations

import random
from typing import Any

from velollm.toolcalls import StreamFixer

__all__ = ["streamed"]


def streamed(
    text: str, tools: list[Any], seed: int, finish_reason: str | None = None
) -> tuple[StreamFixer, str, list[tuple[str, str]]]:
    """The fixer, all text that came out, and the calls as (name, joined arguments)."""
    chance = random.Random(seed)
    fixer = StreamFixer(tools)
    events = []
    pos = 0
    while pos < len(text):
        size = chance.choice((1, 1, 2, 4, 9, 40))
        events += fixer.feed(text[pos : pos + size])
        pos += size
    events += fixer.finish(finish_reason)
    calls: dict[int, list[str]] = {}
    for event in events:
        if event.index is not None:
            call = calls.setdefault(event.index, ["", ""])
            call[0] += event.name or ""
            call[1] += event.arguments or ""
    return fixer, "".join(event.text or "" for event in events), [(name, given) for name, given in calls.values()]
