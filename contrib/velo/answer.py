"""From the engine's updates to the events of an answer: reasoning apart, tool calls read, forced calls unpacked.

    text ──▶ Reasoning ──┬─▶ reasoning
                         └─▶ CallReader (a call was forced) | StreamFixer (tools were offered) | as it is ──▶ events
No I/O.
"""

from __future__ import annotations

import secrets
from typing import Any, TypeAlias

from velollm.contrib.forced import CallReader
from velollm.contrib.velo.reading import Meant
from velollm.engine.core import Update
from velollm.engine.sampling import Logprob
from velollm.engine.vocabulary import Vocabulary
from velollm.messages import ChatEvent, FinishReason, ToolCallDelta
from velollm.toolcalls import StreamFixer

__all__ = ["ChoiceWriter", "Reasoning"]

JSON: TypeAlias = dict[str, Any]

OPEN, CLOSE = "<think>", "</think>"
SPACE = " \t\r\n"


class Reasoning:
    """Tells reasoning from the answer: it stands in front, or was `begun` in the prompt; with None all is answer."""

    __slots__ = ("_blank", "_held", "_state")

    def __init__(self, *, begun: bool | None = False) -> None:
        self._state = "answer" if begun is None else "inside" if begun else "start"
        self._held = ""
        self._blank = True  # no thought has come yet

    def feed(self, text: str) -> tuple[str, str]:
        """What of `text` is reasoning, and what is answer."""
        if self._state == "answer":
            return "", text
        self._held += text
        if self._state == "gap":
            return "", self._after(self._rest("gap"))
        if self._state == "start":
            seen = self._held.lstrip(SPACE)
            if OPEN.startswith(seen[: len(OPEN)]) and len(seen) < len(OPEN):
                return "", ""
            if not seen.startswith(OPEN):
                return "", self._rest("answer")
            self._state, self._held = "inside", seen[len(OPEN) :]
        if self._blank:
            self._held = self._held.lstrip(SPACE)
        at = self._held.find(CLOSE)
        if at >= 0:
            thought, rest = self._held[:at], self._held[at + len(CLOSE) :]
            self._state, self._held = "gap", ""
            return thought.rstrip(SPACE), self._after(rest)
        keep = next((n for n in range(len(CLOSE) - 1, 0, -1) if self._held.endswith(CLOSE[:n])), 0)
        thought = self._held[: len(self._held) - keep].rstrip(SPACE)
        self._held = self._held[len(thought) :]
        self._blank = self._blank and not thought
        return thought, ""

    def finish(self) -> tuple[str, str]:
        """What was held back."""
        rest = self._rest("answer") if self._state != "inside" else ""
        thought, self._held = self._held, ""
        return thought.rstrip(SPACE), rest

    def _after(self, text: str) -> str:
        """The answer without the empty lines between it and the reasoning."""
        text = text.lstrip(SPACE)
        if text:
            self._state = "answer"
        return text

    def _rest(self, state: str) -> str:
        text, self._held, self._state = self._held, "", state
        return text


class ChoiceWriter:
    """Makes the events of choice `index`."""

    def __init__(self, index: int, meant: Meant, vocabulary: Vocabulary, backend: str) -> None:
        self._index = index
        self._vocabulary = vocabulary
        self._begun = meant.echo
        self._reasoning = Reasoning(begun=meant.thinking)
        self._fixer = StreamFixer(meant.tools) if meant.tools else None
        self._caller = CallReader(meant.forced, _call_id(), backend) if meant.forced is not None else None

    def feed(self, update: Update) -> ChatEvent | None:
        """The event that `update` makes, None when it makes none yet. With its `finish` all is said."""
        text, self._begun = self._begun + update.text, ""
        thought, said = self._reasoning.feed(text)
        event = ChatEvent(index=self._index)
        if update.finish is not None:
            more_thought, more = self._reasoning.finish()
            thought, said = thought + more_thought, said + more
            event.stop_sequence = update.stop_sequence
        event.reasoning = thought
        calls = self._speak(event, said, update.finish)
        if update.finish is not None:
            event.finish_reason = "tool_calls" if calls and update.finish == "stop" else update.finish
        if update.logprobs:
            event.logprobs = {"content": [self._logprob(one) for one in update.logprobs]}
        empty = not (event.text or thought or event.tool_calls or event.finish_reason or event.logprobs)
        return None if empty else event

    def _speak(self, event: ChatEvent, text: str, finish: FinishReason | None) -> bool:
        """Put text and calls into `event`; whether there were calls, when the end has come."""
        if self._caller is not None:
            calls = self._caller.feed(text) if text else []
            if finish is not None:
                calls += self._caller.end(cut=finish == "length")
            event.tool_calls = calls
            return True
        if self._fixer is None:
            event.text = text
            return False
        events = self._fixer.feed(text)
        if finish is not None:
            events += self._fixer.finish(finish)
        event.text = "".join(one.text for one in events if one.text)
        event.tool_calls = [
            ToolCallDelta(one.index, (one.id or _call_id()) if one.name else None, one.name, one.arguments or "")
            for one in events
            if one.index is not None
        ]
        return bool(event.tool_calls)

    def _logprob(self, found: Logprob) -> JSON:
        top = [self._entry(token, value) for token, value in found.top]
        return {**self._entry(found.token, found.value), "top_logprobs": top}

    def _entry(self, token: int, value: float) -> JSON:
        data = self._vocabulary.name(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": value, "bytes": list(data)}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
