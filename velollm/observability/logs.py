"""How log lines look: text for people, JSON for machines. One line each, whatever a client put into a name."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TextIO

import orjson

from velollm.observability.record import REQUESTS, Record, write_through

__all__ = ["JsonFormatter", "LineHandler", "TextFormatter", "configure_logging", "give_up"]

FLUSH_SECONDS = 0.05
NAMES = {logging.DEBUG: "DEBUG", logging.INFO: "INFO"}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
ODD = re.compile(r'[\s"=]|^$')


def configure_logging(level: str, style: str = "text", stream: TextIO | None = None) -> None:
    """Send the log of the whole process to `stream` (standard error), at `level`, as `text` or `json`.

    Other packages are heard from WARNING on. For the command line; a program that mounts VeloLLM has its own.
    """
    handler = LineHandler(stream or sys.stderr, JsonFormatter() if style == "json" else TextFormatter())
    write_through(handler.add_request)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("velollm").setLevel(level.upper())
    # What no line shows need not be found out for each (documented under "Optimization" in Python's logging HOWTO).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False  # type: ignore[attr-defined]


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines that come in quick succession together: at most a moment late, warnings at once.

    Without a running event loop, every line is written when it comes.
    """

    def __init__(self, stream: TextIO, formatter: JsonFormatter | TextFormatter) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._requests = formatter.request
        self._lines: deque[str | tuple[int, Record, float]] = deque()  # any thread adds to it
        self._due = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, and see to it that it is written."""
        try:
            self._lines.append(self.format(record))
            self._write(urgent=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)

    def add_request(self, level: int, record: Record) -> None:
        """The same with what is known of a request, of which a line is made when it is written."""
        self._lines.append((level, record, time.time()))
        if not self._due:
            self._write()

    def _write(self, *, urgent: bool = False) -> None:
        if self._due and not urgent:
            return
        self._due = not urgent and self._flush_soon()
        if not self._due:
            self.flush()

    def _flush_soon(self) -> bool:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        loop.call_later(FLUSH_SECONDS, self.flush)
        return True

    def flush(self) -> None:
        """Write what there is; logging does it as well when the process ends."""
        with self.lock or nullcontext():
            self._due = False
            texts: list[str] = []
            while self._lines:
                line = self._lines.popleft()
                texts.append(line if isinstance(line, str) else self._requests(*line))
            try:
                if texts:
                    self.stream.write(self.terminator.join([*texts, ""]))
                super().flush()
            except OSError as error:
                give_up(self.stream, error)


def give_up(stream: TextIO, error: OSError) -> None:
    """Where the terminal is closed, or whoever read the pipe is gone: lose what is in the buffers, and all that is to
    come. Else Python tries once more when it ends, and calls that a failure of the program. Raises any other error.
    """
    if error.errno not in (errno.EIO, errno.EPIPE):
        raise error
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Formatter(logging.Formatter):
    """Knows the time in UTC, to the millisecond; the seconds are put into words once each."""

    def __init__(self) -> None:
        super().__init__()
        self._second = (0, "")

    def time(self, now: float) -> str:
        second = int(now)
        if second != self._second[0]:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{self._second[1]}.{int((now - second) * 1000):03d}Z"


class TextFormatter(_Formatter):
    """`2026-11-24T16:00:00.123Z INFO request id=... path=...`; continued lines are indented."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{self.time(record.created)} {record.levelname} {record.getMessage()}"
        fields = getattr(record, "fields", None)
        if fields is not None:
            pairs = [f"{name}={value}" for name, value in fields.items()]
            text = f"{text} {_joined(pairs, lambda: fields)}"
        if not text.isprintable():
            text = CONTROL.sub(_escape, text)
        if record.exc_info:
            text += "\n    " + self.formatException(record.exc_info).replace("\r", "\\r").replace("\n", "\n    ")
        return text

    def request(self, level: int, record: Record, now: float) -> str:
        """The line of one HTTP request, which ended at `now`."""
        text = f"{self.time(now)} {NAMES[level]} request {_joined(record.pairs(), record.fields)}"
        return text if text.isprintable() else CONTROL.sub(_escape, text)


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _json(line)

    def request(self, level: int, record: Record, now: float) -> str:
        """The line of one HTTP request, which ended at `now`."""
        known = {
            "time": self.time(now),
            "level": NAMES[level].lower(),
            "logger": REQUESTS,
            "message": "request",
        }
        return _json(known | record.fields())


def _json(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line).decode()
    except orjson.JSONEncodeError:  # lone surrogates
        return orjson.dumps(line | {key: CONTROL.sub(_escape, str(value)) for key, value in line.items()}).decode()


def _joined(pairs: list[str], fields: Callable[[], dict[str, Any]]) -> str:
    """`name=value`, one beside the other; made anew of `fields` where a value has to be quoted."""
    text = " ".join(pairs)
    if text.count(" ") == len(pairs) - 1 and text.count("=") == len(pairs) and '"' not in text:
        return text
    return " ".join([f"{name}={_quoted(str(value))}" for name, value in fields().items()])


def _quoted(value: str) -> str:
    return '"' + value.replace('"', "'") + '"' if ODD.search(value) else value


def _escape(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
