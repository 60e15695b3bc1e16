"""The `messages` of Ollama's chat, read into typed turns.

Calls and results carry no ids here, unless the client is a recent one: a result answers the first open call of its
name, or simply the first. The typed turns have ids, so that every other dialect can say which result answers what.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeAlias, cast

import orjson

from velollm.api.values import (
    at,
    expect_object,
    fail,
    get_list,
    get_str,
    need_object,
    need_str,
    rest,
    unknown_value,
)
from velollm.messages import ImagePart, Message, Part, Role, TextPart, ToolCall

__all__ = ["read_images", "read_messages"]

JSON: TypeAlias = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
KNOWN = frozenset({"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id", "name"})
MAGIC = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


def read_messages(payload: JSON) -> list[Message]:
    """All turns in order; none when there are no messages."""
    reader = _Reader()
    return [reader.turn(item, number) for number, item in enumerate(get_list(payload, "messages") or ())]


def read_images(source: JSON, path: str = "") -> list[ImagePart]:
    """Images in base64; a data URL is understood, too."""
    where = at(path, "images")
    return [_image(item, at(where, number)) for number, item in enumerate(get_list(source, "images", path) or ())]


def _image(value: Any, path: str) -> ImagePart:
    if not isinstance(value, str):
        fail(path, "must be a string of base64")
    media_type = None
    if value.startswith("data:"):
        head, _, value = value.partition(",")
        media_type = head[5:].partition(";")[0] or None
    if value.startswith(("http://", "https://")):
        fail(path, "is a URL, which is not fetched: send the image itself, in base64")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        fail(path, "is not valid base64")
    if not raw:
        fail(path, "is empty")
    return ImagePart(data=value, media_type=media_type or _media_type(raw[:12]))


def _media_type(head: bytes) -> str:
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "image/webp"
    return next((name for magic, name in MAGIC if head.startswith(magic)), "image/png")


class _Reader:
    """Reads turn after turn, and remembers the calls that no result has answered yet."""

    def __init__(self) -> None:
        self._open: list[ToolCall] = []

    def turn(self, value: Any, number: int) -> Message:
        path = at("messages", number)
        message = expect_object(value, path)
        role = need_str(message, "role", path).lower()
        if role not in ROLES:
            unknown_value(at(path, "role"), role, ROLES)
        calls = self._calls(message, path, number)
        if calls:
            self._open = list(calls)
        name = get_str(message, "tool_name", path) or get_str(message, "name", path) or None
        call_id = get_str(message, "tool_call_id", path) or None
        if role == "tool":
            call_id, name = self._answered(call_id, name)
        return Message(
            role=cast("Role", role),
            content=self._content(message, path, bool(calls)),
            tool_calls=calls,
            tool_call_id=call_id,
            name=name,
            reasoning=get_str(message, "thinking", path) or None,
            extra=rest(message, KNOWN),
        )

    def _content(self, message: JSON, path: str, called: bool) -> str | list[Part] | None:
        text = message.get("content")
        if text is not None and not isinstance(text, str):
            fail(at(path, "content"), "must be a string; images go into the field images")
        images = read_images(message, path)
        if images:
            return [*([TextPart(text=text)] if text else []), *images]
        return text or (None if called else "")

    def _calls(self, message: JSON, path: str, number: int) -> list[ToolCall]:
        calls = []
        where = at(path, "tool_calls")
        for place, item in enumerate(get_list(message, "tool_calls", path) or ()):
            inner = at(where, place)
            call = expect_object(item, inner)
            function = need_object(call, "function", inner)
            inside = at(inner, "function")
            calls.append(
                ToolCall(
                    id=get_str(call, "id", inner) or f"call_{number}_{place}",
                    name=need_str(function, "name", inside, empty=False),
                    arguments=_arguments(function.get("arguments"), at(inside, "arguments")),
                )
            )
        return calls

    def _answered(self, call_id: str | None, name: str | None) -> tuple[str | None, str | None]:
        """Id and name of the call that a result answers, as far as they can be told."""
        found = next((call for call in self._open if call.id == call_id), None)
        if found is None and call_id is None:
            found = next((call for call in self._open if call.name == name), None)
            if found is None and self._open:
                found = self._open[0]
        if found is None:
            return call_id, name
        self._open.remove(found)
        return found.id, name or found.name


def _arguments(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        fail(path, "must be an object")
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        fail(path, "is nested too deeply")
