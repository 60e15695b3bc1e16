"""What of an answer is certainly content, decided while it arrives.

    FLOW ── marker, tool name at a line's start ──▶ HELD (to the end)
     │ ▲
     │ └── prose behind it ── TAIL ◀── closed ──┐
     ├── bracket at a line's start ──────────▶ SOFT (tracks brackets)
     ├── ``` before a bracket or a tag ──▶ SOFT or HELD
     └── ``` before other code ──▶ FENCE (flows)

Every decision depends on the text alone, never on where it was cut into deltas. What has flowed is never looked at
again, and a reader that starts behind it finds the same calls whether the text came whole or in pieces.
"""

from __future__ import annotations

import re

from velollm.toolcalls.markers import (
    BACKTICK_REACH,
    LIST_HEAD,
    MARK,
    OBJECT_HEAD,
    TRIGGER,
    is_partial,
    may_follow,
    opens_list,
    starts_line,
)
from velollm.toolcalls.prose import ends_sentence
from velollm.toolcalls.tools import ToolSet

__all__ = ["Gate"]

_FLOW, _SOFT, _TAIL, _FENCE, _HELD = range(5)
_BRACKETS = re.compile(r"[\"\\{}\[\]]")
_IN_STRING = re.compile(r"[\"\\]")
_TAIL_SKIP = re.compile(r"[\s,;}\])]*(?P<fence>(?:```|~~~)[\w-]{0,40}[\s,;}\])]*)?")
_FENCE_HEAD = re.compile(r"(`{3,}|~{3,})([\w+.\-]*)([ \t]*\n?)\s*")
_REACH = 512  # no decision looks further than this over white space, so that none is looked at again and again
_QUOTES = "\"'“‘`"
_SPACE = re.compile(r"[ \t]*")
_OBJECT_MAYBE = re.compile(r"\{\s*(?:[A-Za-z_$][\w$\-]*\s*[\"']?\s*)?$")
_LIST_MAYBE = re.compile(r"\[[\s\[]*(?:[A-Za-z_][\w.\-]*)?$")
_LIST_CALL = re.compile(r"\[\s*([A-Za-z_][\w.\-]*)\(")
_SIGNALS = frozenset({"tool_code", "tool_call", "tool_calls", "tool_use", "function_call", "tool"})


class Gate:
    """Holds back what may be a call. `feed` gives what may go out; `rest` is what was held."""

    __slots__ = (
        "_before",
        "_depth",
        "_fence_mark",
        "_held",
        "_mode",
        "_pending",
        "_prefixes",
        "_quoted",
        "_scan",
        "_skip_ticks",
        "_tools",
        "_words",
    )

    def __init__(self, tools: ToolSet) -> None:
        self._tools = tools
        self._words = tools.line_words
        self._prefixes = tools.line_prefixes
        self._mode = _FLOW
        self._pending = ""
        self._scan = 0
        self._skip_ticks = 0
        self._before = "\n"  # the end of what has flowed: enough to judge positions
        self._held: list[str] = []
        self._depth = 0
        self._quoted = False
        self._fence_mark = "```"

    @property
    def rest(self) -> str:
        return "".join(self._held) + self._pending

    @property
    def holding(self) -> bool:
        return self._mode == _HELD

    def feed(self, delta: str) -> str:
        """The text that may go out now that `delta` has come."""
        if self._mode == _HELD:
            self._held.append(delta)
            return ""
        self._pending += delta
        out: list[str] = []
        while True:
            mode = self._mode
            if mode == _FLOW:
                more = self._flow(out)
            elif mode == _FENCE:
                more = self._fence(out)
            elif mode == _SOFT:
                more = self._soft()
            elif mode == _TAIL:
                more = self._tail(out)
            else:
                break
            if not more:
                break
        return "".join(out)

    # -- moving text

    def _emit(self, out: list[str], end: int) -> None:
        """Let pending text go up to `end`, with all that was held before it."""
        if self._held:
            self._held.append(self._pending[:end])
            text = "".join(self._held)
            self._held.clear()
        else:
            text = self._pending[:end]
        if text:
            out.append(text)
            self._before = (self._before + text[-64:])[-64:]
        self._pending = self._pending[end:]
        self._scan = max(0, self._scan - end)
        self._skip_ticks = max(0, self._skip_ticks - end)

    def _solid(self, end: int) -> int:
        """Where the text before `end` stops but for white space, which stays with what follows it."""
        low = max(0, end - _REACH)
        return low + len(self._pending[low:end].rstrip())

    def _hold(self, out: list[str], start: int) -> bool:
        """From `start` on, nothing flows any more; space before it stays with it."""
        self._emit(out, self._solid(start))
        self._held.append(self._pending)
        self._pending = ""
        self._mode = _HELD
        return False

    def _wait(self, out: list[str], start: int) -> bool:
        """Text from `start` on waits for more."""
        self._scan = start
        kept = self._solid(start)
        if kept:
            self._emit(out, kept)
        return False

    # -- FLOW

    def _flow(self, out: list[str]) -> bool:
        text = self._pending
        pos = self._scan
        if self._starts_line(pos):
            stepped = self._line_start(out, pos)
            if stepped is None:
                return self._mode != _FLOW
            pos = stepped
        while True:
            match = TRIGGER.search(text, pos)
            if match is None:
                self._scan = len(text)
                end = self._solid(len(text))
                if end:
                    self._emit(out, end)
                self._scan = len(self._pending)
                return False
            at = match.start()
            char = text[at]
            if char == "\n":
                stepped = self._line_start(out, at + 1)
            elif char == "`" or char == "~":
                stepped = self._ticks(out, at)
            else:
                stepped = self._marker(out, at)
            if stepped is None:
                return self._mode not in (_FLOW, _HELD)
            pos = stepped

    def _starts_line(self, pos: int) -> bool:
        """Whether the scan stands at the start of a line that it has not judged yet."""
        if pos:
            return self._pending[pos - 1] == "\n"
        return self._before[-1:] == "\n"

    def _preceding(self, at: int) -> str:
        if at >= 64:
            return self._pending[at - 64 : at]
        return (self._before + self._pending[:at])[-64:]

    def _line_start(self, out: list[str], pos: int) -> int | None:
        """Judge the start of the line at `pos`; None where the gate waits, holds, or changes mode."""
        text = self._pending
        match = _SPACE.match(text, pos)
        at = match.end() if match else pos
        if at - pos > _REACH:
            return at
        if at >= len(text):
            self._wait(out, pos)
            return None
        char = text[at]
        if char in "{[":
            return self._bracket(out, at, pos)
        length = 0
        limit = len(text)
        prefixes = self._prefixes
        while at + length < limit and text[at : at + length + 1] in prefixes:
            length += 1
            if text[at : at + length] in self._words:
                self._hold(out, at)
                return None
        if at + length >= limit:
            self._wait(out, pos)
            return None
        return at

    def _bracket(self, out: list[str], at: int, start: int) -> int | None:
        """`{` or `[` where a call without markers may begin; it is judged again from `start` where more is to come."""
        text = self._pending
        if text[at] == "{":
            if OBJECT_HEAD.match(text, at):
                self._track(out, at)
                return None
            if _OBJECT_MAYBE.match(text, at) and len(text) - at < 200:
                self._wait(out, start)
                return None
            return at + 1
        stepped = self._list(out, at, start)
        return self._marker(out, at) if stepped == at else stepped

    def _list(self, out: list[str], at: int, start: int) -> int | None:
        """`[` where a list of calls may begin; `at` itself where none does."""
        text = self._pending
        if _LIST_CALL.match(text, at):
            if opens_list(text, at, self._tools):
                self._hold(out, at)
                return None
            return at + 1
        if LIST_HEAD.match(text, at):
            self._track(out, at)
            return None
        if _LIST_MAYBE.match(text, at) and len(text) - at < 200:
            self._wait(out, start)
            return None
        return at

    def _track(self, out: list[str], at: int) -> None:
        self._emit(out, self._solid(at))
        self._mode = _SOFT
        self._depth = 0
        self._quoted = False
        self._scan = 0

    def _ticks(self, out: list[str], at: int) -> int | None:
        text = self._pending
        char = text[at]
        run = at
        while run < len(text) and text[run] == char:
            run += 1
        if run == len(text) and run - at < 3:
            self._wait(out, at)
            return None
        if run - at >= 3:
            return self._fence_head(out, at)
        if char == "~" or at < self._skip_ticks:
            return run
        close = text.find("`", run, at + BACKTICK_REACH)
        line = text.find("\n", run, at + BACKTICK_REACH)
        if close >= 0 and (line < 0 or close < line):
            end = close
            while end < len(text) and text[end] == "`":
                end += 1
            if end == len(text):
                self._wait(out, at)
                return None
            return end
        if line >= 0 or len(text) >= at + BACKTICK_REACH:
            self._skip_ticks = line if line >= 0 else at + BACKTICK_REACH
            return run
        self._wait(out, at)
        return None

    def _fence_head(self, out: list[str], at: int) -> int | None:
        text = self._pending
        head = _FENCE_HEAD.match(text, at)
        assert head is not None
        ticks = text[at]
        begin = head.end()
        if begin - at > _REACH:
            self._open_fence(out, begin, ticks)
            return None
        if begin >= len(text):
            self._wait(out, at)
            return None
        char = text[begin]
        mark = MARK.match(text, begin)
        if char == "<" or head[2] in _SIGNALS or (mark is not None and mark.lastgroup not in ("think", "close")):
            self._hold(out, at)
            return None
        if char == "]" and is_partial(text, begin):
            self._wait(out, at)
            return None
        if char == "{":
            if OBJECT_HEAD.match(text, begin):
                self._track(out, at)
                self._scan = text.index("{", begin) - (len(text) - len(self._pending))
                return None
            if _OBJECT_MAYBE.match(text, begin) and len(text) - begin < 200:
                self._wait(out, at)
                return None
        elif char == "[":
            if LIST_HEAD.match(text, begin):
                self._track(out, at)
                self._scan = text.index("[", begin) - (len(text) - len(self._pending))
                return None
            if _LIST_CALL.match(text, begin):
                self._hold(out, at)
                return None
            if (_LIST_MAYBE.match(text, begin) and len(text) - begin < 200) or is_partial(text, begin):
                self._wait(out, at)
                return None
        elif self._opens_word(text, begin):
            if self._mode == _FLOW and self._word_waits(text, begin):
                self._wait(out, at)
            else:
                self._hold(out, at)
            return None
        self._open_fence(out, begin, ticks)
        return None

    def _open_fence(self, out: list[str], begin: int, ticks: str) -> None:
        self._emit(out, begin)
        self._mode = _FENCE
        self._fence_mark = ticks * 3
        self._scan = 0

    def _opens_word(self, text: str, at: int) -> bool:
        """Whether the code at `at` begins with a tool's call, as far as can be seen."""
        length = 0
        while at + length < len(text) and text[at : at + length + 1] in self._prefixes:
            length += 1
            if text[at : at + length] in self._words:
                return True
        return at + length >= len(text)

    def _word_waits(self, text: str, at: int) -> bool:
        return not any(text.startswith(word, at) for word in self._words)

    def _marker(self, out: list[str], at: int) -> int | None:
        """`<`, `[`, `]` or `{` in mid-line."""
        text = self._pending
        char = text[at]
        if char == "{":
            before = self._preceding(at)
            if before[-1:] in " \t" and ends_sentence(before):
                return self._bracket(out, at, at)
            return at + 1
        if char == "[":
            before = self._preceding(at)
            if before[-1:] in " \t" and ends_sentence(before):
                stepped = self._list(out, at, at)
                if stepped != at:
                    return stepped
        if not may_follow(self._preceding(at), char):
            return at + 1
        match = MARK.match(text, at)
        if match is not None and not (match.end() == len(text) and is_partial(text, at) and match.lastgroup == "tag"):
            if self._counts(match, at):
                self._hold(out, at)
                return None
            return at + 1
        if is_partial(text, at):
            self._wait(out, at)
            return None
        return at + 1

    def _counts(self, match: re.Match[str], at: int) -> bool:
        before = self._preceding(at)
        if before[-1:] in _QUOTES:
            return False
        if match.lastgroup in ("tag", "think"):
            return starts_line(before) or ends_sentence(before)
        return True

    # -- the other modes

    def _fence(self, out: list[str]) -> bool:
        """Inside code that is no call: all flows up to the closing fence."""
        text = self._pending
        close = text.find(self._fence_mark, self._scan)
        if close < 0:
            keep = len(text) - len(text.rstrip(self._fence_mark[0]))
            end = len(text) - keep
            self._emit(out, end)
            self._scan = 0
            return False
        end = close + 3
        self._emit(out, end)
        self._mode = _FLOW
        self._scan = 0
        return True

    def _soft(self) -> bool:
        """Track brackets; at the end of the outermost, see what follows."""
        text = self._pending
        pos = self._scan
        while True:
            match = (_IN_STRING if self._quoted else _BRACKETS).search(text, pos)
            if match is None:
                self._held.append(text)
                self._pending = ""
                self._scan = 0
                return False
            pos = match.end()
            char = match[0]
            if char == "\\":
                if pos >= len(text):
                    self._held.append(text[:-1])
                    self._pending = text[-1:]
                    self._scan = 0
                    return False
                pos += 1
            elif char == '"':
                self._quoted = not self._quoted
            elif char in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    break
        self._held.append(text[:pos])
        self._pending = text[pos:]
        self._scan = 0
        self._mode = _TAIL
        return True

    def _tail(self, out: list[str]) -> bool:
        """Behind a closed bracket: more of the kind, or prose, which proves that it was no call."""
        text = self._pending
        match = _TAIL_SKIP.match(text)
        assert match is not None
        at = match.end()
        if at >= len(text) or (text[at] in "`~" and len(text) - at < 3 and not text[at:].strip("`~")):
            if at > 2 * _REACH and match["fence"] is None:
                self._held.append(text[:_REACH])
                self._pending = text[_REACH:]
            return False
        char = text[at]
        if char in "{[":
            self._held.append(text[:at])
            self._pending = text[at:]
            self._mode = _SOFT
            self._depth = 0
            self._quoted = False
            return True
        if char in "<]`~":
            self._held.append(text)
            self._pending = ""
            self._mode = _HELD
            return False
        self._emit(out, self._solid(at))
        self._mode = _FLOW
        self._scan = 0
        if "\n" in text[max(0, at - _REACH) : at]:
            self._scan = len(self._pending) - len(self._pending.lstrip())
            while self._scan and self._pending[self._scan - 1] != "\n":
                self._scan -= 1
        return True
