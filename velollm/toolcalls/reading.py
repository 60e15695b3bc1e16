"""From a whole answer to its calls: finds where each begins, has it read, and judges whether it may run.

Three questions are settled at the end, when all is known: what was said inside reasoning does not run, unless it is
the last thing of the turn (rule 5); a call without markers must be the last thing (rule 4); a call behind prose must
be announced by it.
"""

from __future__ import annotations

import re
from collections import Counter

from attrs import define

from .calls import Rejected, WrittenCall, calls_in, settle
from .families import Read, harmony, react
from .lenient import read_json
from .markers import BACKTICK_REACH, CLOSERS, MARK, READERS, TRIGGER, announces, ends_sentence
from .native import SPECIAL_TOKEN, WRAPPER, read_native
from .pythonic import CALL_HEAD, read_calls
from .result import Call, FixError
from .source import Source
from .values import Unreadable

__all__ = ["Answer", "Found"]

_FENCE = re.compile(r"(`{3,}|~{3,})([\w+.\-]*)[ \t]*\n?\s*")
_CLOSE_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})")
_SIGNALS = frozenset({"tool_code", "tool_call", "tool_calls", "tool_use", "function_call", "tool"})
_BETWEEN = re.compile(rf"(?:\s+|[,;\]}}]|{SPECIAL_TOKEN}|{WRAPPER}|</?think>)*")
_CLOSERS = re.compile(
    r"(?:\s*(?:</(?:[\w-]+:|[|｜]\w+[|｜])?\w+>|<\|/\w+\|>|<[|｜]\w*?tool[▁_]calls?[▁_]end[|｜]>|<\|tool_call_end\|>|<end_function_call>|<tool_call\|>|\[/TOOL_CALLS\]))+"
)
_RESYNC = re.compile(
    r"(?:</(?:[\w-]+:)?(?:tool_call|function_call|invoke|function)s?>|<[|｜][^|｜<>\n]{1,40}end[|｜]>|<tool_call\|>|<end_function_call>)\s*(?=<|\[TOOL)"
)
_LEAKED = re.compile(
    rf"<\|(?:open|close)\|>(?:response|message|tools|think)<\|sep\|>|<\|(?:start|channel)\|>(?:assistant|final|commentary|analysis)?|{SPECIAL_TOKEN}|{WRAPPER}|</(?:tool_call|function|parameter|think)>"
)
_CHANNEL = re.compile(
    r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*(\w*)[^<{]{0,80}(?:<\|constrain\|>[^<{]{0,40})?<\|message\|>"
)
_CHANNEL_END = re.compile(r"<\|(?:end|start|channel|call|return)\|>")
_WORDS = re.compile(
    r"(?:\*\*)?A(?:ction|CTION)(?:\*\*)?[ ]?:|functools\[|(?:assistant)?(?:commentary|analysis) to=functions\.|function call<|>>>(?=[A-Za-z_])"
)
_QUOTES = "\"'“‘`"
_SPACE = " \t"


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


class Answer:
    """One reading of one answer from `start` on. What stands before has been passed on as content already."""

    def __init__(self, source: Source, start: int) -> None:
        self.source = source
        self.text = source.text
        self.start = start
        self.found: list[Found] = []
        self.errors: list[FixError] = []
        self.repairs: Counter[str] = Counter()
        self.thoughts: list[tuple[int, int]] = []
        self.refused: list[tuple[int, int]] = []  # would-be calls that stay text, markup and all
        self._thinking: tuple[int, str] | None = None
        self._fresh = -1  # where a call or a thought has just ended: as good as a line's start

    # -- the scan

    def read(self) -> None:
        text, limit = self.text, self.source.limit
        pos = self.start
        if pos == 0 or text[pos - 1] == "\n":
            pos = self._line(pos)
        while pos < limit and not self.source.spent:
            match = TRIGGER.search(text, pos)
            if match is None:
                break
            at = match.start()
            char = text[at]
            if char == "\n":
                pos = self._line(at + 1)
            elif char == "`" or char == "~":
                pos = self._ticks(at)
            else:
                pos = self._mark(at)
            if pos == self._fresh and pos < limit and text[pos] != "\n":
                pos = self._line(pos)
        if self._thinking is not None:
            self.thoughts.append((self._thinking[0], limit))

    def _line(self, pos: int) -> int:
        """What begins at the start of a line: a bracket, a tool's name, a word like `Action:`."""
        text, limit = self.text, self.source.limit
        while pos < limit and text[pos] in _SPACE:
            pos += 1
        if pos >= limit or self._thinking is not None:
            return pos
        char = text[pos]
        if char in "{[":
            if char == "[":
                match = MARK.match(text, pos)
                if match:
                    return pos
            return self._bare(pos)
        if char.isalpha() or char in "_*>":
            if _WORDS.match(text, pos):
                return self._word(pos)
            head = CALL_HEAD.match(text, pos, limit)
            if head and head[0] in self.source.tools.line_words:
                return self._bare(pos)
            if text.startswith(("default_api.", "functions.", "print("), pos) and head:
                return self._bare(pos)
        return pos

    def _word(self, pos: int) -> int:
        text = self.text
        if text[pos] in "Aa*" and not text.startswith(("assistantcomm", "analysis to"), pos):
            return self._native(pos, react.read_action, marked=True, after=pos + 1)
        if text.startswith(("commentary", "analysis", "assistant"), pos):
            return self._native(pos, harmony.read_message, marked=True, after=pos + 1)
        if text.startswith("functools", pos):
            return self._native(pos + 9, read_native, marked=True, after=pos + 10, span=pos)
        if text.startswith(">>>", pos):
            return self._native(pos + 3, read_native, marked=True, after=pos + 3, span=pos)
        if text.startswith("function call<", pos):
            return self._native(pos + 13, read_native, marked=True, after=pos + 14, span=pos)
        return pos + 1

    def _mark(self, at: int) -> int:
        """`<`, `[`, `]` or `{` in mid-line."""
        text = self.text
        if text[at] == "{":
            before = text[max(0, at - 64) : at]
            if self._thinking is None and before[-1:] in _SPACE and ends_sentence(before):
                return self._bare(at)
            return at + 1
        match = MARK.match(text, at)
        if match is None:
            return at + 1
        group = match.lastgroup or ""
        if text[at - 1 : at] in _QUOTES and at > 0:
            return match.end()
        if group == "think":
            return self._open_thought(match)
        if group == "close":
            return self._close_thought(match)
        place = self._place(at)
        if group == "tag" and not place:
            return match.end()
        if group == "token" and self._is_channel(at):
            return self._channel(at)
        read = READERS.get(group) or read_native
        if read is harmony.read_message:
            end = self._native(at, read, marked=True, after=at)
            return end if end > at else self._channel(at)
        return self._native(at, read, marked=group != "tag" or place == "start", after=match.end())

    def _place(self, at: int) -> str:
        """ "start" of a line, after a call or reasoning; "sentence" behind the end of one; "" in mid-sentence."""
        text = self.text
        pos = at
        while pos > 0 and text[pos - 1] in _SPACE:
            pos -= 1
        if pos == 0 or text[pos - 1] == "\n" or pos == self._fresh or at == self._fresh:
            return "start"
        return "sentence" if ends_sentence(text[max(0, pos - 64) : pos]) else ""

    # -- reasoning

    def _open_thought(self, match: re.Match[str]) -> int:
        if self._thinking is None and self._place(match.start()):
            self._thinking = (match.start(), CLOSERS[match[0]])
            self._fresh = match.end()
        return match.end()

    def _close_thought(self, match: re.Match[str]) -> int:
        if self._thinking is not None:
            start = self._thinking[0]
            self._thinking = None
        else:
            start = 0
            for found in self.found:
                found.thought = True
        self.thoughts = [span for span in self.thoughts if span[0] < start]
        self.thoughts.append((start, match.end()))
        self._fresh = match.end()
        return match.end()

    def _is_channel(self, at: int) -> bool:
        return self.text.startswith(("<|channel|>", "<|start|>"), at)

    def _channel(self, at: int) -> int:
        """A harmony message to nobody: analysis is reasoning, the rest is content."""
        match = _CHANNEL.match(self.text, at, self.source.limit)
        if match is None:
            return at + 1
        if match[1] == "analysis":
            end = _CHANNEL_END.search(self.text, match.end(), self.source.limit)
            stop = end.start() if end else self.source.limit
            if end and end[0] == "<|end|>":
                stop = end.end()
            self.thoughts.append((at, stop))
            self._fresh = stop
            return stop
        self.thoughts.append((at, match.end()))
        return match.end()

    # -- code

    def _ticks(self, at: int) -> int:
        text, limit = self.text, self.source.limit
        run = at
        while run < limit and text[run] == text[at]:
            run += 1
        if run - at >= 3:
            return self._fence(at)
        if text[at] == "~":
            return run
        close = text.find("`", run, at + BACKTICK_REACH)
        line = text.find("\n", run, at + BACKTICK_REACH)
        if close < 0 or 0 <= line < close:
            return self._past_ticks(run, line, at)
        while close < limit and text[close] == "`":
            close += 1
        return close

    def _past_ticks(self, run: int, line: int, at: int) -> int:
        """A backtick that closes nothing opens nothing; the reading goes on behind it."""
        return run

    def _fence(self, at: int) -> int:
        """Code: a call if that is all it holds, else prose."""
        text, limit = self.text, self.source.limit
        head = _FENCE.match(text, at, limit)
        assert head is not None
        begin = head.end()
        found = self._group(begin) if begin < limit and self._thinking is None else None
        if found is not None:
            calls, end = found
            close = _CLOSE_FENCE.match(text, end, limit)
            if close or not text[end:].strip():
                stop = close.end() if close else end
                added = self._settle(calls, at, stop, marked=False, signal=head[2] in _SIGNALS)
                for item in added:
                    item.start, item.end = at, stop
                    self.repairs["fence"] += 0 if head[2] in _SIGNALS else 1
                if added:
                    return stop
        close_at = text.find(head[1][:3], begin)
        return limit if close_at < 0 else close_at + 3

    def _group(self, at: int) -> tuple[list[WrittenCall], int] | None:
        """The calls that stand one behind the other from `at` on."""
        text, limit = self.text, self.source.limit
        char = text[at]
        try:
            if char == "<":
                calls, end = read_native(self.source, at)
            elif _WORDS.match(text, at):
                calls, end = react.read_action(self.source, at)
            elif char in "{[" or CALL_HEAD.match(text, at, limit):
                calls, end = self._plain_calls(at)
            else:
                return None
        except Unreadable as error:
            self._failed(error, at)
            return None
        return (calls, end) if calls else None

    # -- calls

    def _bare(self, at: int) -> int:
        """A call without markers: JSON or Python."""
        try:
            calls, end = self._plain_calls(at)
        except Unreadable as error:
            self._failed(error, at)
            return at + 1
        if not calls:
            return max(end, at + 1)
        self._settle(calls, at, end, marked=False)
        self._fresh = end
        return end

    def _plain_calls(self, at: int) -> tuple[list[WrittenCall], int]:
        text, limit = self.text, self.source.limit
        if text[at] != "{":
            calls, end = read_calls(text, at, limit, self.source.tools)
            if calls:
                for call in calls:
                    call.start, call.end = at, end
                return calls, end
            if text[at] != "[":
                return [], at + 1
        reading = read_json(text, at, limit)
        end = reading.end
        found = calls_in(reading.value, self.source.tools)
        if not found:
            return [], end
        while end < limit and text[end] in "}]":
            reading.repairs.add("extra_bracket")
            end += 1
        for call in found:
            call.start, call.end = at, end
            call.supplied += reading.supplied
            call.repairs |= reading.repairs
        return found, end

    def _native(self, at: int, read: Read, *, marked: bool, after: int, span: int | None = None) -> int:
        """Read the calls of a marker at `at`; `after` is where the scan goes on if it opens none."""
        try:
            calls, end = read(self.source, at)
        except Unreadable as error:
            self._failed(error, at)
            self.errors.append(_error_of(error))
            if not error.cut:
                return max(after, at + 1)
            again = _RESYNC.search(self.text, max(after, at + 1), self.source.limit)
            if again is None:
                return self.source.limit
            self.refused.append((at, again.end()))
            self._fresh = again.end()
            return again.end()
        if not calls:
            return after
        start = at if span is None else span
        self._settle(calls, start, end, marked=marked)
        self._fresh = end
        return end

    def _failed(self, error: Unreadable, at: int) -> None:
        self.source.burn(max(0, (self.source.limit if error.cut else error.pos) - at))

    def _settle(
        self, calls: list[WrittenCall], start: int, end: int, *, marked: bool, signal: bool = False
    ) -> list[Found]:
        """Keep what validates; the spans of the rest stay text."""
        added: list[Found] = []
        begin = start
        for index, written in enumerate(calls):
            last = index == len(calls) - 1
            shared = not last and calls[index + 1].start == written.start
            stop = end if last else self._behind_closers(written.end)
            try:
                call = settle(written, self.source.tools, self.source.cut, self.repairs)
            except Rejected as rejected:
                self.errors.append(rejected.error)
                if not shared:
                    self.refused.append((begin, stop))
                    begin = stop
                continue
            item = Found(call, begin, stop, marked, signal, self._thinking is not None)
            added.append(item)
            if not shared:
                begin = stop
        self.found += added
        return added

    def _behind_closers(self, pos: int) -> int:
        match = _CLOSERS.match(self.text, pos, self.source.limit)
        return match.end() if match else pos

    # -- the judgement

    def judge(self) -> tuple[list[Call], str | None]:
        """The calls that run, and the text beside them. No calls: the text is None, for it stays as it was."""
        spoken = self._last_things([item for item in self.found if not item.thought])
        if not spoken:
            spoken = self._last_thoughts()
        if not spoken:
            return [], None
        return [item.call for item in spoken], self._content(spoken)

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
            first = min(item.start for item in loose)
            lead = self._prose(0, first, kept)
            if lead.strip() and not announces(lead):
                for item in loose:
                    self.errors.append(
                        FixError(kind="not_announced", message="a call shown in prose", name=item.call.name)
                    )
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
        """Whether nothing but space, markup and reasoning stands between."""
        pos = start
        while pos < end:
            inside = None if closing else next((span for span in self.thoughts if span[0] <= pos < span[1]), None)
            if inside is not None:
                pos = inside[1]
                continue
            match = _BETWEEN.match(self.text, pos, end)
            if match is None or match.end() == pos:
                if closing and self.text.startswith(tuple(CLOSERS.values()), pos):
                    return True
                if self.text.startswith(("```", "~~~"), pos):
                    pos += 3
                    continue
                upcoming = next((span for span in self.thoughts if span[0] == pos), None)
                if upcoming is None:
                    return False
                pos = upcoming[1]
                continue
            pos = match.end()
        return True

    def _prose(self, start: int, end: int, kept: list[Found]) -> str:
        spans = sorted([*self.thoughts, *((item.start, item.end) for item in kept)])
        parts = []
        pos = start
        for low, high in spans:
            if low >= end:
                break
            if low > pos:
                parts.append(self.text[pos:low])
            pos = max(pos, high)
        if pos < end:
            parts.append(self.text[pos:end])
        return _LEAKED.sub("", "".join(parts))

    def _content(self, spoken: list[Found]) -> str | None:
        text = self.text
        spans = sorted([*self.thoughts, *((item.start, item.end) for item in spoken)])
        made = ""
        pos = 0
        for low, high in [*spans, (len(text), len(text))]:
            piece = self._cleaned(pos, low) if low > pos else ""
            if piece.strip():
                if made:
                    made = made.rstrip()
                    piece = piece if piece[0].isspace() else f"\n{piece}"
                made += piece
            pos = max(pos, high)
        made = made.rstrip()
        return made if made.strip() else None

    def _cleaned(self, start: int, end: int) -> str:
        """The text of a span without leaked tokens and stray tags; refused calls stay as they are."""
        text = self.text
        if text.find("<", start, end) < 0 and text.find("]", start, end) < 0:
            return text[start:end]
        parts = []
        pos = start
        for low, high in self.refused:
            if low >= end or high <= pos:
                continue
            parts.append(_LEAKED.sub("", text[pos : max(pos, low)]))
            parts.append(text[max(pos, low) : min(high, end)])
            pos = min(high, end)
        parts.append(_LEAKED.sub("", text[pos:end]))
        return "".join(parts)

    @property
    def reasoning(self) -> str | None:
        parts = [_LEAKED.sub("", self.text[low:high]).strip() for low, high in self.thoughts]
        return "\n".join(part for part in parts if part) or None


def _error_of(error: Unreadable) -> FixError:
    return FixError(kind="truncated" if error.cut else "unreadable", message=str(error))
