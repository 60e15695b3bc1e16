"""One choice of an answer on its way to the client: its events in, events with sound tool calls out. No I/O.

    text ──▶ Gate ──▶ flows at once, the event as it came
               └────▶ held ─┐
    tool call deltas ─ held ┴─▶ finish ──▶ settled: calls, text, why others were refused ──▶ events

A call that came whole and right leaves in the events it came in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import orjson

from velollm.messages import ChatEvent, FinishReason, ToolCall, ToolCallDelta
from velollm.toolcalls.arguments import read_arguments
from velollm.toolcalls.fitting import Context, Mismatch
from velollm.toolcalls.fixer import left_to_say, read_answer, settle_calls, twin_mark
from velollm.toolcalls.gate import Gate
from velollm.toolcalls.policy import Policy
from velollm.toolcalls.result import Call, FixError, FixResult
from velollm.toolcalls.values import Unreadable

__all__ = ["ChoiceMender", "Report"]


@attrs.define
class Report:
    """What was done in one answer: `repairs` and `refusals` by kind, and the calls that came out."""

    repairs: Counter[str] = attrs.field(factory=Counter)
    refusals: Counter[str] = attrs.field(factory=Counter)
    calls: int = 0

    @property
    def header(self) -> str | None:
        """The value of `x-velollm-tool-calls`; None when there is nothing to tell."""
        if not self.repairs and not self.refusals:
            return None
        told = f"repaired={self.repairs.total()}; kinds={','.join(sorted(self.repairs))}"
        if self.refusals:
            told += f"; refused={self.refusals.total()}; reasons={','.join(sorted(self.refusals))}"
        return told

    @property
    def trailer(self) -> dict[str, Any]:
        """The same for the last event of a stream."""
        told: dict[str, Any] = {"repaired": self.repairs.total(), "kinds": sorted(self.repairs)}
        if self.refusals:
            told |= {"refused": self.refusals.total(), "reasons": sorted(self.refusals)}
        return told


class ChoiceMender:
    """Mends choice `index`; what it did is added to `report`.

    After `settle`, `calls` are the calls that come out, `errors` why others do not, and `said` is all of the text.
    """

    def __init__(self, policy: Policy, report: Report, index: int = 0) -> None:
        self.policy = policy
        self.report = report
        self.index = index
        self.calls: list[Call] = []
        self.errors: list[FixError] = []
        self._gate = Gate(policy.tools) if policy.tools else None
        self._flowed: list[str] = []
        self._thoughts: list[str] = []
        self._held: list[ChatEvent] = []  # events of structured calls
        self._waiting: dict[int, ToolCall] = {}  # the calls in them
        self._pieces: dict[int, list[str]] = {}
        self._sent = 0  # calls that have left already
        self._marks: set[tuple[str, bytes | str]] = set()
        self._untouched = False  # all held calls are right as they came
        self._left = ""  # text that is still to be said
        self._wrecks: list[str] = []

    @property
    def said(self) -> str:
        """The text of the answer, wrecks of calls included."""
        return "".join((*self._flowed, self._left, *self._wrecks))

    @property
    def count(self) -> int:
        """How many calls come out."""
        return self._sent + len(self.calls)

    @property
    def as_it_came(self) -> bool:
        """Whether the calls are those that came, none of them changed."""
        return self._untouched or not (self._waiting or self.calls)

    @property
    def silent(self) -> bool:
        """Whether nothing has left yet that a client could see."""
        return not self._flowed and not self._sent

    # ---- events in

    def feed(self, event: ChatEvent) -> Sequence[ChatEvent]:
        """The events that may leave now that `event` (without a finish reason) is here."""
        if event.tool_calls:
            return self._take_calls(event)
        if event.reasoning:
            self._thoughts.append(event.reasoning)
        if not event.text or self._gate is None:
            if event.text:
                self._flowed.append(event.text)
            return (event,)
        text = self._gate.feed(event.text)
        if text:
            self._flowed.append(text)
        if text == event.text:
            return (event,)
        if not text and event.meta is None and event.usage is None and not event.reasoning:
            return ()
        return (attrs.evolve(event, text=text, wire=None, raw=None),)

    def _take_calls(self, event: ChatEvent) -> Sequence[ChatEvent]:
        out: list[ChatEvent] = []
        if event.text or event.reasoning or event.usage is not None:
            out += self.feed(attrs.evolve(event, tool_calls=(), wire=None, raw=None))
            event = ChatEvent(tool_calls=event.tool_calls, index=event.index, meta=None)
        if self._waiting and all(delta.index not in self._waiting for delta in event.tool_calls):
            out += self._release_early()
        self._held.append(event)
        for delta in event.tool_calls:
            call = self._waiting.get(delta.index)
            if call is None:
                call = self._waiting[delta.index] = ToolCall(id="", name="", arguments="")
                self._pieces[delta.index] = []
            call.id = delta.id or call.id
            call.name = delta.name or call.name
            self._pieces[delta.index].append(delta.arguments)
        return out

    def _release_early(self) -> Sequence[ChatEvent]:
        """When the next call begins: those before it leave, if they are right as they are."""
        trial = Report()
        calls, errors, _ = self._settle_waiting(trial, cut=False)
        if errors or trial.repairs or not self._as_they_came(calls):
            return ()
        fresh = [call for call in calls if twin_mark(call) not in self._marks]
        if len(fresh) != len(calls) or (not self.policy.parallel and self._sent + len(calls) > 1):
            return ()
        self._marks.update(map(twin_mark, calls))
        self._sent += len(calls)
        self.report.calls += len(calls)
        out, self._held = self._held, []
        self._waiting.clear()
        self._pieces.clear()
        return out

    # ---- the end

    def settle(self, reason: FinishReason | None) -> None:
        """Decide what becomes of all that was held back."""
        cut = reason == "length"
        calls, errors, self._wrecks = self._settle_waiting(self.report, cut=cut)
        self._untouched = bool(calls) and not errors and self._as_they_came(calls)
        self.errors += errors
        calls += self._read_text(reason, alone=not calls and not self._sent)
        kept = self._admitted(calls)
        self._untouched = self._untouched and kept == calls and len(calls) == len(self._waiting)
        self.calls = kept
        self.report.calls += len(kept)
        self.report.refusals.update(error.kind for error in self.errors)

    def finish(self, event: ChatEvent) -> Sequence[ChatEvent]:
        """Settle with `event`, which brings the finish reason and perhaps all the rest with it."""
        began: list[ChatEvent] = []
        if event.text or event.reasoning or event.tool_calls:
            opening = attrs.evolve(event, finish_reason=None, usage=None, wire=None, raw=None)
            began += self.feed(opening)
        self.settle(event.finish_reason)
        return began

    def adopt(self, calls: Sequence[Call]) -> None:
        """Take `calls` (the model's second attempt) for those that were refused; what was held of them is dropped."""
        self.calls = self._admitted(calls)
        self.report.calls += len(self.calls)
        self._left = ""
        self._wrecks.clear()
        self._untouched = False

    def ending(self, event: ChatEvent) -> Sequence[ChatEvent]:
        """The last events of the choice, of which `event` is to be the last."""
        text = self._left + "\n".join(self._wrecks)
        out: list[ChatEvent] = []
        if text:
            out.append(ChatEvent(text, index=self.index))
        if self._untouched and len(self.calls) == len(self._waiting):
            out += self._held
        else:
            out += [_whole(call, self._sent + number, self.index) for number, call in enumerate(self.calls)]
        reason = self._finish_reason(event.finish_reason)
        if not (event.text or event.reasoning or event.tool_calls):
            if reason == event.finish_reason:
                return (*out, event)
            return (*out, attrs.evolve(event, finish_reason=reason, wire=None, raw=None))
        bare = ChatEvent(finish_reason=reason, usage=event.usage, stop_sequence=event.stop_sequence, index=self.index)
        return (*out, bare)

    def surrender(self) -> Sequence[ChatEvent]:
        """Everything held back, as it came: for when mending itself has failed."""
        rest = self._gate.rest if self._gate is not None else ""
        self._gate = None
        out, self._held = self._held, []
        return (ChatEvent(rest, index=self.index), *out) if rest else out

    def _finish_reason(self, reason: FinishReason | None) -> FinishReason | None:
        if self.calls or self._sent:
            return "tool_calls" if reason == "stop" else reason
        return "stop" if reason == "tool_calls" else reason

    # ---- structured calls

    def _settle_waiting(self, report: Report, *, cut: bool) -> tuple[list[Call], list[FixError], list[str]]:
        """The calls that wait: those that validate, and errors and wrecks for the others."""
        calls: list[Call] = []
        errors: list[FixError] = []
        wrecks: list[str] = []
        for index, waiting in self._waiting.items():
            waiting.arguments = "".join(self._pieces[index])
            found = settle_calls([_entry(waiting)], self.policy.tools, cut=cut, mode=self.policy.mode, dedupe=False)
            calls += found.calls
            errors += found.errors
            report.repairs.update(found.repairs)
            if not found.calls:
                wrecks.append(orjson.dumps({"name": waiting.name, "arguments": waiting.arguments}).decode())
            elif not found.repairs and not _is_sound(waiting, found.calls[0]):
                report.repairs["json"] += 1
        return calls, errors, wrecks

    def _as_they_came(self, calls: Sequence[Call]) -> bool:
        """Whether `calls` are what waits, in its order and numbered on from those that have left."""
        return (
            len(calls) == len(self._waiting)
            and list(self._waiting) == list(range(self._sent, self._sent + len(calls)))
            and all(_is_sound(waiting, call) for waiting, call in zip(self._waiting.values(), calls, strict=True))
        )

    # ---- calls in text

    def _read_text(self, reason: FinishReason | None, *, alone: bool) -> list[Call]:
        if self._gate is None:
            return []
        flowed = "".join(self._flowed)
        text = flowed + self._gate.rest
        result = self._answer(text, len(flowed), reason) if text.strip() else FixResult()
        if not result.calls and alone:
            result = self._forced(text, flowed, reason) or self._rehearsed(text, reason) or result
        self.errors += result.errors
        if not result.calls:
            left = text[len(flowed) :]
            self._left = left if alone or not left.isspace() else ""
            return []
        self._left = left_to_say(result.content, flowed)
        self.report.repairs.update(result.repairs)
        self.report.repairs["raw_text"] += len(result.calls)
        return result.calls

    def _answer(self, text: str, flowed: int, reason: FinishReason | None) -> FixResult:
        return read_answer(text, flowed, self.policy.tools, reason, dedupe=False, mode=self.policy.mode)

    def _forced(self, text: str, flowed: str, reason: FinishReason | None) -> FixResult | None:
        """The bare arguments of the one tool that must be called."""
        tool = self.policy.sole
        if tool is None or flowed.strip() or not text.strip() or self.policy.mode == "strict":
            return None
        ctx = Context()
        try:
            reading = read_arguments(text, tool)
            if not isinstance(reading.value, dict) or (reading.supplied and reason == "length"):
                return None
            call = Call(tool.name, tool.fit(reading.value, ctx))
        except (Unreadable, Mismatch):
            return None
        return FixResult(calls=[call], repairs=ctx.repairs + Counter(dict.fromkeys(reading.repairs, 1)))

    def _rehearsed(self, text: str, reason: FinishReason | None) -> FixResult | None:
        """Rule 5's exception, where the backend has taken the reasoning apart: a call ends it, and nothing follows."""
        if text.strip() or not self._thoughts or self.policy.mode == "strict":
            return None
        found = self._answer("<think>" + "".join(self._thoughts), 0, reason)
        if not found.calls:
            return None
        found.content = None
        found.repairs["call_in_reasoning"] += 1
        return found

    def _admitted(self, calls: Iterable[Call]) -> list[Call]:
        """`calls` without repetitions, and not more of them than the request allows."""
        kept: list[Call] = []
        for call in calls:
            mark = twin_mark(call)
            if self.policy.dedupe and mark in self._marks:
                self.report.repairs["duplicate_dropped"] += 1
            elif not self.policy.parallel and self._sent + len(kept) >= 1:
                self.report.repairs["parallel_dropped"] += 1
            else:
                self._marks.add(mark)
                kept.append(call)
        return kept


def _entry(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}


def _is_sound(written: ToolCall, call: Call) -> bool:
    """Whether `call` says exactly what was written."""
    try:
        return written.name == call.name and bool(orjson.loads(written.arguments) == call.arguments)
    except orjson.JSONDecodeError:
        return False


def _whole(call: Call, number: int, index: int) -> ChatEvent:
    return ChatEvent(tool_calls=[ToolCallDelta(number, call.id, call.name, call.arguments_json)], index=index)
