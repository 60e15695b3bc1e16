"""What a family is: the markers that open its calls, the names it goes by, and, where needed, a reader of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from velollm.toolcalls.calls import WrittenCall
    from velollm.toolcalls.source import Source

__all__ = ["Family", "Read"]

Read = Callable[["Source", int], "tuple[list[WrittenCall], int]"]
"""(source, position of the opening marker) → (calls, end). No calls: the marker opens nothing."""


@frozen(kw_only=True)
class Family:
    """One family of models, as far as its tool calls go.

    `special` are patterns of true special tokens: they open a call anywhere outside code and quotes. `tags` are
    patterns of markers that prose might contain: they count at the start of a line, after reasoning, or after another
    call. `models` and `cues` tell the family from a model's name (substrings of its folded form) and from its chat
    template. `read` is for what the general reader cannot: without it, `velollm.toolcalls.native` reads the call.
    """

    name: str
    models: tuple[str, ...] = ()
    cues: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    thinks: tuple[tuple[str, str], ...] = ()
    read: Read | None = None
