"""Pieces of tool calls, as engines stream them, brought under one numbering."""

from __future__ import annotations

from typing import Any, TypeAlias

from velollm.api.openai.conversation import arguments_text
from velollm.api.openai.engine_words import text_of
from velollm.messages import ToolCallDelta

__all__ = ["CallIndex"]

JSON: TypeAlias = dict[str, Any]


class CallIndex:
    """The tool calls of one choice. `faithful` turns false once a piece is not as the schema wants it."""

    def __init__(self) -> None:
        self.faithful = True
        self._ids: list[str] = []
        self._of: dict[int, int] = {}
        self._last = -1

    def delta(self, call: JSON) -> ToolCallDelta:
        """The piece as the house has it: name and id once, indexes without gaps."""
        function = call.get("function") or {}
        call_id, name = text_of(call.get("id")), text_of(function.get("name"))
        arguments = function.get("arguments")
        new, index = self._place(call.get("index"), call_id, name)
        if new and not call_id:
            self.faithful = False
        if not new:
            self.faithful = self.faithful and not name
            name = call_id = ""
        if arguments is not None and not isinstance(arguments, str):
            self.faithful = False
        text = "" if arguments is None else arguments_text(arguments)
        return ToolCallDelta(index, call_id or None, name or None, text)

    def _place(self, stated: Any, call_id: str, name: str) -> tuple[bool, int]:
        """Engines leave `index` out, or give every parallel call the index 0: a new id with a name is a new call."""
        if type(stated) is int:
            known = self._of.get(stated)
            if known is not None and not (call_id and name and self._ids[known] and call_id != self._ids[known]):
                self._last = known
                return False, known
        else:
            self.faithful = False
            if call_id and call_id in self._ids:
                return False, self._ids.index(call_id)
            if not call_id and not name and self._last >= 0:
                return False, self._last
        self._last = len(self._ids)
        self._ids.append(call_id)
        if type(stated) is int:
            self._of[stated] = self._last
        if stated != self._last:
            self.faithful = False
        return True, self._last
