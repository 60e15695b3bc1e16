"""From a whole answer to its calls: finds where each begins, and has it read. Whether it runs is judged elsewhere."""

from __future__ import annotations

import re
from collections import Counter

from velollm.toolcalls.calls import Rejected, WrittenCall, calls_in, settle
from velollm.toolcalls.families import Read, harmony, react
from velollm.toolcalls.judgement import Found, Judgement, without_tokens
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.markers import (
    BACKTICK_REACH,
    CLOSERS,
    LIST_HEAD,
    MARK,
    OBJECT_HEAD,
    READERS,
    TRIGGER,
    may_follow,
    opens_list,
    starts_line,
)
from velollm.toolcalls.native import read_native
from velollm.toolcalls.prose import ends_sentence
from velollm.toolcalls.pythonic import CALL_HEAD, read_calls
from velollm.toolcalls.result import Call, FixError
from velollm.toolcalls.source import Source
from velollm.toolcalls.values import Unreadable

__all__ = ["Answer"]

_FENCE = re.compile(r"(`{3,}|~{3,})([\w+.\-]*)[ \t]*\n?\s*")
_CLOSE_FENCE = re.compile(r"\s*(?:`{3,}|~{3,}|`{1,2}\Z)")
_END = re.compile(r"\s*\Z")
_SIGNALS = frozenset({"tool_code", "tool_call", "tool_calls", "tool_use", "function_call", "tool"})
_CLOSERS = re.compile(
    r"(?:\s*(?:</(?:[\w-]+:|[|｜]\w+[|｜])?\w+>|<\|/\w+\|>|<[|｜]\w*?tool[▁_]calls?[▁_]end[|｜]>|<\|tool_call_end\|>"
    r"|<end_function_call>|<tool_call\|>|\[/TOOL_CALLS\]))+"
)
_RESYNC = re.compile(
    r"(?:</(?:[\w-]+:)?(?:tool_call|function_call|invoke|function)s?>|<[|｜][^|｜<>\n]{1,40}end[|｜]>|<tool_call\|>"
    r"|<end_function_call>)\s*(?=<|\[TOOL)"
)
_CHANNEL = re.compile(
    r"(?:(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*|(?=analysis))(\w*)[^<{]{0,80}(?:<\|constrain\|>[^<{]{0,40})?<\|message\|>"
)
_CHANNEL_END = re.compile(r"<\|(?:end|start|channel|call|return)\|>")
_WORDS = re.compile(
    r"(?:\*\*)?A(?:ction|CTION)(?:\*\*)?[ ]?:|functools\[|(?:assistant)?(?:commentary|analysis) to=functions\."
    r"|(?:assistant ?)?to=functions\.|function call<|>>>(?=[A-Za-z_])"
)
_HEAD = re.compile(
    r"(?:(?P<word>functions?\.(?=[\w.\-]+(?::\d+)?[{<])|function(?=<[|｜]))|call:)?(?P<name>[\w.\-/]{0,200})(?::\d{1,4})?"
    r"(?=\{|[ \n]\{|\n```|\[(?:ARGS|CALL_ID)\]|<[|｜]|\n?<(?:arg_key>|parameter\b))"
)
_ELEMENT = re.compile(r"<([A-Za-z_][\w.\-]{0,200})>")
_SEPARATORS = re.compile(r"[ \t,;]*")
_SEPARATORS_OR_SPACE = re.compile(r"[\s,;]*")
_PYTHON_PREFIXES = ("default_api.", "functions.", "print(")
_QUOTES = "\"'“‘`"
_SPACE = " \t"


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
        self._rehearsed = 0  # so many of the calls found are known to stand inside reasoning that never opened
        self._fresh = -1  # where a call or a thought has just ended: as good as a line's start

    # -- the scan

    def read(self) -> None:
        text, limit = self.text, self.source.limit
        pos = self.start
        if pos == 0 or text[pos - 1] == "\n":
            pos = self._line(pos)
        judged = -1
        while pos < limit and not self.source.spent:
            if pos == self._fresh != judged and text[pos] != "\n":
                judged = pos
                behind = _SEPARATORS.match(text, pos)
                pos = self._line(behind.end() if behind else pos)
                continue
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
        if char == "{" or (char == "[" and MARK.match(text, pos) is None):
            return self._bare(pos)
        if char == '"' and text.startswith('"{\\"', pos):
            return self._bare(pos)
        if char == "<":
            element = _ELEMENT.match(text, pos, limit)
            if element and element[1] in self.source.tools.names:
                return self._native(pos, read_native, marked=False, after=pos + 1)
            return pos
        return self._line_word(pos) if char.isalpha() or char in "_*>-" else pos

    def _line_word(self, pos: int) -> int:
        text, limit = self.text, self.source.limit
        if text.startswith("analysis<|message|>", pos):
            return self._channel(pos)
        bare = _HEAD.match(text, pos, limit)
        if bare and (bare["word"] or bare["name"] in self.source.tools.names):
            return self._native(pos, read_native, marked=False, after=pos + 1)
        if _WORDS.match(text, pos):
            return self._word(pos)
        head = CALL_HEAD.match(text, pos, limit)
        if head and (head[0] in self.source.tools.line_words or head[0].startswith(_PYTHON_PREFIXES)):
            return self._bare(pos)
        return pos

    def _word(self, pos: int) -> int:
        if self.text.startswith(">>>all\n", pos):
            return pos + 7
        read, begin = self._word_reader(pos)
        return self._native(begin, read, marked=True, after=begin + 1, span=pos)

    def _word_reader(self, pos: int) -> tuple[Read, int]:
        """Who reads what the word at `pos` opens, and from where."""
        text = self.text
        if text[pos] in "Aa*" and not text.startswith(("assistant", "analysis to"), pos):
            return react.read_action, pos
        for word in ("functools", ">>>", "function call"):
            if text.startswith(word, pos):
                return read_native, pos + len(word)
        return harmony.read_message, pos

    def _mark(self, at: int) -> int:
        """`<`, `[`, `]` or `{` in mid-line."""
        text = self.text
        if text[at] == "{":
            before = text[max(0, at - 64) : at]
            if self._thinking is None and before[-1:] in _SPACE and ends_sentence(before):
                return self._bare(at)
            return at + 1
        match = MARK.match(text, at) if may_follow(text[at - 1 : at], text[at]) else None
        if match is None and text[at] == "[" and self._thinking is None and self._opens_list(at):
            before = text[max(0, at - 64) : at]
            if before[-1:] in _SPACE and ends_sentence(before):
                return self._bare(at)
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

    def _opens_list(self, at: int) -> bool:
        return LIST_HEAD.match(self.text, at) is not None or opens_list(self.text, at, self.source.tools)

    def _place(self, at: int) -> str:
        """ "start" of a line, after a call or reasoning; "sentence" behind the end of one; "" in mid-sentence."""
        text = self.text
        pos = at
        while pos > 0 and text[pos - 1] in _SPACE:
            pos -= 1
        if pos == self._fresh or at == self._fresh or starts_line(text[max(0, at - 64) : at]):
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
            for found in self.found[self._rehearsed :]:
                found.thought = True
            self._rehearsed = len(self.found)
        while self.thoughts and self.thoughts[-1][0] >= start:
            self.thoughts.pop()
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
            if close or _END.match(text, end):
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
            mark = MARK.match(text, at)
            if mark is not None:
                calls, end = READERS.get(mark.lastgroup or "", read_native)(self.source, at)
            elif char == "<":
                calls, end = read_native(self.source, at)
            elif _WORDS.match(text, at):
                read, begin = self._word_reader(at)
                calls, end = read(self.source, begin)
            elif char in "{[" or CALL_HEAD.match(text, at, limit):
                calls, end = self._plain_group(at)
            else:
                return None
        except Unreadable as error:
            self._failed(error, at)
            return None
        return (calls, end) if calls else None

    def _plain_group(self, at: int) -> tuple[list[WrittenCall], int]:
        calls, end = self._plain_calls(at)
        while calls:
            behind = _SEPARATORS_OR_SPACE.match(self.text, end, self.source.limit)
            begin = behind.end() if behind else end
            if not OBJECT_HEAD.match(self.text, begin, self.source.limit):
                break
            more, after = self._plain_calls(begin)
            if not more:
                break
            calls, end = calls + more, after
        return calls, end

    # -- calls

    def _bare(self, at: int) -> int:
        """A call without markers: JSON or Python."""
        if self.text[at] == "{" and not OBJECT_HEAD.match(self.text, at, self.source.limit):
            return at + 1
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
            if text[at] not in '["':
                return [], at + 1
        reading = read_json(text, at, limit)
        end = reading.end
        if isinstance(reading.value, str):
            reading.value = read_json(reading.value).value
            reading.repairs.add("double_encoded")
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

    def judge(self) -> tuple[list[Call], str | None]:
        """The calls that run, and the text beside them. No calls: the text is None, for it stays as it was."""
        judgement = Judgement(self.text, self.start, self.found, self.thoughts, self.refused)
        spoken = judgement.spoken()
        self.errors += judgement.errors
        return [item.call for item in spoken], judgement.content(spoken) if spoken else None

    @property
    def reasoning(self) -> str | None:
        """What stood inside reasoning blocks."""
        parts = [without_tokens(self.text[low:high]).strip() for low, high in self.thoughts]
        return "\n".join(part for part in parts if part) or None


def _error_of(error: Unreadable) -> FixError:
    return FixError(kind="truncated" if error.cut else "unreadable", message=str(error))
