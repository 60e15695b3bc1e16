"""The tool calls in a conversation's history, as engines can read them.

Clients send back what a model once wrote. Engines answer 400 or 500 to arguments that are no JSON object, and to
results that name no call; here the former are mended and the latter get the id of the call that they must belong to.
"""

from __future__ import annotations

from typing import Any

import attrs
import orjson

from velollm.messages import ChatRequest, Message, ToolCall
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.values import Unreadable, plain

__all__ = ["sound_history"]


def sound_history(request: ChatRequest) -> ChatRequest:
    """`request` itself where there is nothing to mend, else a copy."""
    messages: list[Message] = []
    open_calls: list[ToolCall] = []
    touched = False
    for message in request.messages:
        mended = message
        if message.tool_calls:
            calls = [_sound(call) for call in message.tool_calls]
            open_calls = list(calls)
            if any(new is not old for new, old in zip(calls, message.tool_calls, strict=True)):
                mended = attrs.evolve(message, tool_calls=calls)
        elif message.role == "tool":
            mended = _answering(message, open_calls)
        touched = touched or mended is not message
        messages.append(mended)
    return request.replace(messages=messages) if touched else request


def _sound(call: ToolCall) -> ToolCall:
    """`call` with arguments that are a JSON object."""
    try:
        if type(orjson.loads(call.arguments)) is dict:
            return call
    except orjson.JSONDecodeError:
        pass
    return attrs.evolve(call, arguments=orjson.dumps(_arguments(call.arguments)).decode())


def _arguments(text: str) -> dict[str, Any]:
    """The object that `text` means; what means none is kept as the one argument `input`."""
    if not text.strip() or text.strip() in ("null", "None", "[]"):
        return {}
    found: Any = text
    try:
        for _ in range(3):
            if not isinstance(found, str):
                break
            reading = read_json(found.strip())
            if found.strip()[reading.end :].strip():
                break
            found = plain(reading.value)
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        if isinstance(found, dict):
            orjson.dumps(found)
            return found
    except (Unreadable, RecursionError, TypeError):
        pass
    return {"input": text}


def _answering(message: Message, calls: list[ToolCall]) -> Message:
    """A result that says which call it answers; without a name or an id it answers the first one still open."""
    if message.tool_call_id:
        calls[:] = [call for call in calls if call.id != message.tool_call_id]
        return message
    open_calls = [call for call in calls if call.id and message.name in (None, call.name)]
    if not open_calls:
        return message
    calls.remove(open_calls[0])
    return attrs.evolve(message, tool_call_id=open_calls[0].id)
