"""What the block manager and the scheduler want done in a runner's memory before the next step, in this order."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

__all__ = ["Alias", "Copy", "Discard", "Drop", "Event", "Export", "Import"]


class Alias(NamedTuple):
    """Let the slot `target` own the cells of `source` at the positions from `start` up to `end`."""

    source: int
    target: int
    start: int
    end: int


class Drop(NamedTuple):
    """The slot owns its cells from `start` up to `end` (-1: to the last) no longer."""

    slot: int
    start: int
    end: int


class Copy(NamedTuple):
    """Copy the first `tokens` places of the block `source` to the block `target`; shared cells need no copy."""

    source: int
    target: int
    tokens: int


class Export(NamedTuple):
    """Copy the state of the slot (its blocks, its first `tokens` places) to the host and keep it under `key`."""

    key: int
    slot: int
    table: tuple[int, ...]
    tokens: int


class Import(NamedTuple):
    """Put the state kept under `key` into the empty slot with these blocks, and forget it."""

    key: int
    slot: int
    table: tuple[int, ...]


class Discard(NamedTuple):
    """Forget the state kept under `key`."""

    key: int


Event: TypeAlias = Alias | Drop | Copy | Export | Import | Discard
