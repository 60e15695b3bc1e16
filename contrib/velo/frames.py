"""What passes between the process that serves and the child that computes, on one connection. No I/O.

    parent ─▶ child   the key, then [id, method, arguments], pickled: the child believes its parent
    child ─▶ parent   [id, "event" | "result" | "error" | "end", value], JSON: a broken child must not run code here

Every frame has its length in front, four bytes, the least significant first.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any, TypeAlias

import attrs
import orjson

from velollm import errors
from velollm.errors import BackendError, VeloError
from velollm.messages import ChatEvent, Embeddings, ResponseMeta, Timings, ToolCallDelta, Usage

__all__ = [
    "LARGEST",
    "pack_answer",
    "pack_call",
    "read_answer",
    "read_call",
    "read_embeddings",
    "read_error",
    "read_event",
    "read_frame",
    "write_embeddings",
    "write_error",
    "write_event",
]

JSON: TypeAlias = dict[str, Any]

LARGEST = 256 * 1024 * 1024
HEAD = 4


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(HEAD, "little") + data


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame, None at the end of the connection."""
    try:
        length = int.from_bytes(await reader.readexactly(HEAD), "little")
        return await reader.readexactly(length) if length <= LARGEST else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def pack_call(number: int, method: str, *arguments: Any) -> bytes:
    """A call as a frame."""
    return _framed(pickle.dumps((number, method, arguments)))


def read_call(frame: bytes) -> tuple[int, str, tuple[Any, ...]]:
    """The call in a frame that came from the parent, and from nobody else."""
    number, method, arguments = pickle.loads(frame)  # noqa: S301 (the parent has shown its key)
    return number, method, arguments


def pack_answer(number: int, kind: str, value: Any = None) -> bytes:
    """An answer as a frame."""
    return _framed(orjson.dumps((number, kind, value)))


def read_answer(frame: bytes) -> tuple[int, str, Any]:
    """The answer in a frame. Raises `ValueError` for what is none."""
    number, kind, value = orjson.loads(frame)
    return number, kind, value


# ---- values ----------------------------------------------------------------------------------------------------------


def write_event(event: ChatEvent) -> JSON:
    """The fields of an event that are set; its bytes of a wire do not travel."""
    fields: JSON = {"index": event.index}
    for name in ("text", "reasoning", "finish_reason", "stop_sequence", "logprobs"):
        value = getattr(event, name)
        if value:
            fields[name] = value
    if event.tool_calls:
        fields["tool_calls"] = [[call.index, call.id, call.name, call.arguments] for call in event.tool_calls]
    for name in ("usage", "meta"):
        value = getattr(event, name)
        if value is not None:
            fields[name] = attrs.asdict(value)
    return fields


def read_event(fields: JSON) -> ChatEvent:
    """The event again."""
    event = ChatEvent(**{name: value for name, value in fields.items() if name not in ("tool_calls", "usage", "meta")})
    if calls := fields.get("tool_calls"):
        event.tool_calls = [ToolCallDelta(*call) for call in calls]
    if usage := fields.get("usage"):
        timings = usage.pop("timings")
        event.usage = Usage(**usage, timings=Timings(**timings) if timings else None)
    if meta := fields.get("meta"):
        event.meta = ResponseMeta(**meta)
    return event


def write_embeddings(made: Embeddings) -> JSON:
    """Vectors as plain values."""
    return attrs.asdict(made)


def read_embeddings(fields: JSON) -> Embeddings:
    """The vectors again."""
    return Embeddings(vectors=fields["vectors"], model=fields["model"], prompt_tokens=fields["prompt_tokens"])


def write_error(error: VeloError) -> JSON:
    """An error as plain values; its class goes by its name."""
    names = ("message", "param", "code", "status", "retry_after", "details")
    return {"kind": type(error).__name__, **{name: getattr(error, name) for name in names}}


def read_error(fields: JSON) -> VeloError:
    """The error again; of a class that does not exist here, a `BackendError`."""
    kind = getattr(errors, fields.pop("kind"), None)
    message = fields.pop("message")
    if not (isinstance(kind, type) and issubclass(kind, VeloError)):
        kind = BackendError
    return kind(message, **fields)
