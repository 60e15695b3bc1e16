"""What is known about one request at its end: the content of its log line. Never a prompt, an answer or a key."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from operator import attrgetter
from typing import Any

import attrs

from velollm.errors import VeloError

__all__ = ["CURRENT", "REQUESTS", "Record", "note_refusal", "write", "write_through"]

REQUESTS = "velollm.request"  # the name of their logger
logger = logging.getLogger(REQUESTS)

# Service paths are asked every few seconds by machines.
QUIET = frozenset({"/health", "/ready", "/metrics", "/velollm/api/status", "/velollm/api/requests"})


@attrs.define(kw_only=True)
class Record:
    """One request. Times are in seconds, `outcome` is `ok`, `cancelled` or an error's code; `key` is a key's name."""

    id: str = ""
    client: str = ""
    key: str = ""
    method: str = ""
    path: str = ""
    status: int = 0
    duration: float = 0.0
    model: str = ""
    backend: str = ""
    outcome: str = ""
    finish: str = ""
    ttft: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None

    def pairs(self) -> list[str]:
        """`fields` as `name=value`."""
        pairs = [
            f"{name}={value}"
            for name, value in zip(FIELDS, GET(self), strict=True)
            if value is not None and value != ""
        ]
        pairs.append(f"duration_ms={round(self.duration * 1000, 1)}")
        if self.ttft is not None:
            pairs.append(f"ttft_ms={round(self.ttft * 1000, 1)}")
        return pairs

    def fields(self) -> dict[str, Any]:
        """What is known, by name."""
        found = {
            name: value for name, value in zip(FIELDS, GET(self), strict=True) if value is not None and value != ""
        }
        found["duration_ms"] = round(self.duration * 1000, 1)
        if self.ttft is not None:
            found["ttft_ms"] = round(self.ttft * 1000, 1)
        return found


FIELDS = tuple(field.name for field in attrs.fields(Record) if field.name not in ("duration", "ttft"))
GET = attrgetter(*FIELDS)

# The record of the request that is being answered, where a server keeps one: layers write into it.
CURRENT: ContextVar[Record | None] = ContextVar("velollm_record", default=None)


def note_refusal(error: VeloError) -> None:
    """The request that is being answered is refused: why, unless a layer has said so already."""
    record = CURRENT.get()
    if record is not None and not record.outcome:
        record.outcome = type(error).code  # an engine's own word could be anything


def write(record: Record) -> None:
    """Log one line, at DEBUG for what machines ask all the time."""
    level = logging.DEBUG if record.path in QUIET and record.status < 500 else logging.INFO
    if not logger.isEnabledFor(level):
        return
    if _writer is not None and logging.getLogRecordFactory() is logging.LogRecord:  # else, its own are wanted
        _writer(level, record)
    else:
        logger.handle(_line(level, record.fields()))


def write_through(writer: Callable[[int, Record], None] | None) -> None:
    """Have `writer`, and not `logging`, make the lines: what passes through its hands costs three times as much."""
    global _writer
    _writer = writer


_writer: Callable[[int, Record], None] | None = None


def _line(level: int, fields: dict[str, Any]) -> logging.LogRecord:
    """What `logging` makes of an event, without looking for who called: that does not matter here, and costs most."""
    if logging.getLogRecordFactory() is not logging.LogRecord:  # somebody wants their own on every line
        return logger.makeRecord(logger.name, level, "", 0, "request", (), None, extra={"fields": fields})
    line = logging.LogRecord.__new__(logging.LogRecord)
    now = time.time()
    line.__dict__.update(
        PATTERN, levelno=level, levelname=logging.getLevelName(level), created=now, msecs=now % 1 * 1000, fields=fields
    )
    return line


PATTERN = logging.LogRecord(REQUESTS, logging.INFO, "", 0, "request", (), None).__dict__
