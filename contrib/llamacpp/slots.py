"""Which slot of a llama-server a request goes to, and from where that slot gets the beginning of its prompt. No I/O.

llama-server finds a prompt's beginning only in a slot that is idle: requests that come together compute what they share
once for each slot. Here the second of them computes it alone and has it saved (it is `primed`), the others have it
restored into theirs. What a slot really holds the server compares token by token: a wrong guess costs time only.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs

__all__ = ["Choice", "Saved", "SlotBook", "common_length"]

WORTH = 1200  # characters, about 300 tokens: less is computed as fast as it is carried about
FILES = 2


def common_length(one: str, other: str) -> int:
    """The length of the longest common beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


@attrs.define(eq=False)
class Slot:
    """`text` is the prompt that it computed last; `owner` whose that was."""

    number: int
    text: str = ""
    owner: Any = None
    busy: bool = False
    used: int = 0


@attrs.frozen
class Saved:
    """A beginning of `tokens` tokens in the file `name`; `text` is what it was made of."""

    name: str
    text: str
    tokens: int


@attrs.frozen
class Choice:
    """Take `slot`: first `restore` a file into it, or compute what is shared with `prime` in it and save that."""

    slot: int
    restore: Saved | None = None
    prime: Any = None
    shared: str = ""


class SlotBook:
    """The slots from 0 up to `count`; file names begin with `label`."""

    def __init__(self, count: int, label: str) -> None:
        self._slots = [Slot(number) for number in range(count)]
        self._saved: deque[Saved] = deque(maxlen=FILES)
        self._label = label
        self._ticks = 0
        self._files = 0

    @property
    def idle(self) -> int:
        """Slots that work on nothing."""
        return sum(not slot.busy for slot in self._slots)

    def choose(self, text: str, owner: Any) -> Choice:
        """A slot for `text`, which is busy from now on. There must be an idle one."""
        found = [(common_length(slot.text, text), slot) for slot in self._slots]
        idle = [(length, slot) for length, slot in found if not slot.busy]
        here, best = max(idle, key=lambda one: (one[0], one[1].used))
        saved = max(self._saved, key=lambda one: common_length(one.text, text), default=None)
        kept = common_length(saved.text, text) if saved is not None else 0
        there, other = max(((length, slot) for length, slot in found if slot.busy), default=(0, None), key=_first)
        if max(kept, there) - here < WORTH:
            # a conversation goes where its beginning is, however short; a stranger where least is lost
            follows = 0 < len(best.text) == here
            slot = best if follows or here >= WORTH else min((slot for _, slot in idle), key=lambda slot: slot.used)
            return self._take(slot, text, owner)
        slot = min((slot for _, slot in idle), key=lambda slot: slot.used)
        if kept >= there - WORTH:
            return attrs.evolve(self._take(slot, text, owner), restore=saved)
        assert other is not None
        prime, shared = other.owner, other.text[:there]
        return attrs.evolve(self._take(slot, text, owner), prime=prime, shared=shared)

    def release(self, slot: int) -> None:
        """The request in `slot` has its answer."""
        self._slots[slot].busy = False
        self._slots[slot].owner = None

    def file_name(self) -> str:
        """Where to save next; the oldest file is written over."""
        self._files += 1
        return f"{self._label}-{self._files % FILES}"

    def keep(self, saved: Saved) -> None:
        """`saved` lies in its file now."""
        self.drop(saved.name)
        self._saved.append(saved)

    def drop(self, name: str) -> None:
        """What was in this file is no longer there."""
        self._saved = deque((one for one in self._saved if one.name != name), maxlen=FILES)

    def _take(self, slot: Slot, text: str, owner: Any) -> Choice:
        self._ticks += 1
        slot.text, slot.owner, slot.busy, slot.used = text, owner, True, self._ticks
        return Choice(slot.number)


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]
