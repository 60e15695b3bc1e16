"""Which of the calls that were found run, and which text is left beside them.

What was said inside reasoning does not run, unless it is the last thing of the turn (rule 5); a call without markers
must be the last thing (rule 4); a call behind prose must be announced by it.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from attrs import define

from velollm.toolcalls.markers import CLOSERS
from velollm.toolcalls.native import SPECIAL_TOKEN, WRAPPER
from velollm.toolcalls.prose import LABEL, announces
from velollm.toolcalls.result import Call, FixError

__all__ = ["Found", "Judgement", "without_tokens"]

Span = tuple[int, int]

_BETWEEN = re.compile(rf"(?:\s+|[,;\]}}]|{SPECIAL_TOKEN}|{WRAPPER}|</?think>)*")
_LEAKED = re.compile(
    r"<\|(?:open|close)\|>(?:response|message|tools|think)<\|sep\|>"
    r"|<\|(?:start|channel)\|>(?:assistant|final|commentary|analysis)?"
    r"|<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|>>>all\n"
    r"|\[(?:BEGIN|END) FINAL RESPONSE\]"
    rf"|{SPECIAL_TOKEN}|{WRAPPER}|</(?:tool_call|function|parameter|arguments|parameters|think)>"
)
_SEPARATORS = " \t\r\n,;"  # between two calls they are no text
_CLOSING_TAGS = tuple(CLOSERS.values())


def without_tokens(text: str) -> str:
    """`text` without leaked tokens and stray tags."""
    return _LEAKED.sub("", text)


@define(slots=True)
class Found:
    """A call that validates, where it stands, and how it may be judged.

    `marked`: behind a native marker in its place. `signal`: a fence that says it holds a call. `thought`: inside
    reasoning.
    """

    call: Call
    start: int
    end: int
    marked: bool
    signal: bool
    thought: bool


class Judgement:
    """Judges `found`, in the order of the text; `thoughts` and `refused` are spans in that order too.

    Text before `flowed` has been passed on already: it stays as it is.
    """

    def __init__(self, text: str, flowed: int, found: list[Found], thoughts: list[Span], refused: list[Span]) -> None:
        self.text = text
        self.flowed = flowed
        self.found = found
        self.thoughts = thoughts
        self.refused = refused
        self.errors: list[FixError] = []
        self._thought_starts = [low for low, _ in thoughts]

    def spoken(self) -> list[Found]:
        """The calls that run."""
        return self._last_things([item for item in self.found if not item.thought]) or self._last_thoughts()

    def _last_things(self, found: list[Found]) -> list[Found]:
        kept: list[Found] = []
        tail = True
        cursor = len(self.text)
        for item in reversed(found):
            if tail and not self._blank(item.end, cursor):
                tail = False
            if item.marked or tail:
                kept.append(item)
                cursor = min(cursor, item.start)
        kept.reverse()
        loose = [item for item in kept if not item.marked]
        if loose and not all(item.signal for item in loose):
            lead = self._prose(min(item.start for item in loose), kept)
            if lead.strip() and not announces(lead):
                self.errors += [_shown(item.call.name) for item in loose]
                kept = [item for item in kept if item.marked]
        return kept

    def _last_thoughts(self) -> list[Found]:
        """Rule 5's exception: native markup that ends the reasoning, and the turn with it."""
        if not self.thoughts:
            return []
        start, end = self.thoughts[-1]
        if not self._blank(end, len(self.text)):
            return []
        close = len(self.text) if end == len(self.text) else end
        kept: list[Found] = []
        for item in reversed(self.found):
            if not (item.thought and item.marked and item.start >= start):
                break
            if not self._blank(item.end, close, closing=True):
                break
            kept.append(item)
            close = item.start
        kept.reverse()
        return kept

    def _blank(self, start: int, end: int, *, closing: bool = False) -> bool:
        """Whether nothing but space, markup and reasoning stands between; `closing`: inside the reasoning itself."""
        pos = start
        while pos < end:
            behind = None if closing else self._behind_thought(pos)
            if behind is not None:
                pos = behind
                continue
            match = _BETWEEN.match(self.text, pos, end)
            if match is not None and match.end() > pos:
                pos = match.end()
            elif closing and self.text.startswith(_CLOSING_TAGS, pos):
                return True
            elif self.text.startswith(("```", "~~~"), pos):
                pos += 3
            else:
                return False
        return True

    def _behind_thought(self, pos: int) -> int | None:
        """Where the reasoning ends that `pos` lies in."""
        index = bisect_right(self._thought_starts, pos) - 1
        return self.thoughts[index][1] if index >= 0 and pos < self.thoughts[index][1] else None

    def _prose(self, end: int, kept: list[Found]) -> str:
        """What is said up to `end`, without reasoning and calls."""
        parts = []
        pos = 0
        for low, high in sorted([*self.thoughts, *((item.start, item.end) for item in kept)]):
            if low >= end:
                break
            if low > pos:
                parts.append(self.text[pos:low])
            pos = max(pos, high)
        if pos < end:
            parts.append(self.text[pos:end])
        return without_tokens("".join(parts))

    # -- the text beside the calls

    def content(self, spoken: list[Found]) -> str | None:
        """What is left of the text when calls and reasoning are taken out."""
        length = len(self.text)
        spans = sorted([*self.thoughts, *((item.start, item.end) for item in spoken)])
        parts: list[str] = []
        pos = 0
        for low, high in [*spans, (length, length)]:
            piece = self._cleaned(pos, low) if low > pos else ""
            if piece.strip(_SEPARATORS if pos and low < length else None):
                if parts:
                    parts[-1] = parts[-1].rstrip()
                    parts.append(piece if piece[0].isspace() else f"\n{piece}")
                else:
                    parts.append(piece)
            pos = max(pos, high)
        said = "".join(parts).rstrip()
        return None if not said or (not self.flowed and LABEL.fullmatch(said.strip())) else said

    def _cleaned(self, start: int, end: int) -> str:
        """The text of a span without leaked tokens; refused calls stay as they are."""
        text = self.text
        if start < self.flowed < end:
            return text[start : self.flowed] + self._cleaned(self.flowed, end)
        if end <= self.flowed or not any(text.find(mark, start, end) >= 0 for mark in ("<", "]", ">>>all")):
            return text[start:end]
        parts = []
        pos = start
        first = bisect_right(self.refused, (start, start)) - 1
        for low, high in self.refused[max(first, 0) :]:
            if low >= end:
                break
            if high <= pos:
                continue
            parts.append(without_tokens(text[pos : max(pos, low)]))
            parts.append(text[max(pos, low) : min(high, end)])
            pos = min(high, end)
        parts.append(without_tokens(text[pos:end]))
        return "".join(parts)


def _shown(name: str) -> FixError:
    return FixError(kind="not_announced", message="a call shown in prose", name=name)
