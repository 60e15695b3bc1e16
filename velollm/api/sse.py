"""Cutting streams into frames: server-sent events (WHATWG HTML, §9.2) and newline-delimited JSON. No I/O.

Both decoders take bytes cut anywhere and work in linear time; a frame longer than `limit` is an error.
"""

from __future__ import annotations

from typing import NamedTuple

from velollm.errors import BackendProtocolError

__all__ = ["LineDecoder", "SSEDecoder", "SSEFrame", "sse"]

LIMIT = 32 << 20
CARRIAGE = 13


class SSEFrame(NamedTuple):
    """One event: its type (empty: `message`), its data lines joined, its bytes as they came, blank line included."""

    event: str
    data: bytes
    raw: bytes


def sse(data: bytes, event: str | None = None) -> bytes:
    """The frame for `data`, which holds no line breaks."""
    if event is None:
        return b"data: " + data + b"\n\n"
    return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


class SSEDecoder:
    """Server-sent events out of bytes: any line ends, comments, fields in any order.

    `feed` returns the frames that are complete; frames without data (comments, `retry`) are left out. The usual shape,
    `data: ...` and a blank line, takes a path of its own that never looks at single lines.
    """

    __slots__ = ("_any", "_buffer", "_limit", "_line", "_pieces", "_size", "_started")

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._buffer = b""  # without a blank line in it
        self._pieces: list[bytes] = []  # what came after it, without any line end
        self._size = 0
        self._limit = limit
        self._started = False
        self._any = False  # carriage returns have been seen
        self._line = 0  # then: where in the buffer the first unfinished line begins

    def feed(self, piece: bytes) -> list[SSEFrame]:
        """Take bytes in; the frames that they complete."""
        carriage = b"\r" in piece
        if self._started and not carriage and not self._any and b"\n" not in piece:
            self._pieces.append(piece)
            self._grow(len(piece))
            return []
        known = len(self._buffer)
        buffer = b"".join((self._buffer, *self._pieces, piece)) if self._size else piece
        self._pieces.clear()
        if not self._started:
            if len(buffer) < 3 and b"\xef\xbb\xbf".startswith(buffer):
                self._keep(buffer)
                return []
            self._started = True
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
        if carriage or self._any:
            self._any = True
            return self._feed_any(buffer)
        frames: list[SSEFrame] = []
        start, search = 0, max(0, known - 1)
        while (end := buffer.find(b"\n\n", search)) >= 0:
            end += 2
            _add(frames, buffer[start:end])
            start = search = end
        self._keep(buffer[start:])
        return frames

    def _feed_any(self, buffer: bytes) -> list[SSEFrame]:
        """Line ends other than a plain `\\n` are about: walk line by line, on from where the last walk ended."""
        frames: list[SSEFrame] = []
        start, line, size = 0, self._line, len(buffer)
        while line < size:
            end, after = _line_end(buffer, line)
            if end < 0 or (after == size and buffer[end] == CARRIAGE and end + 1 == after):  # its \n may be yet to come
                break
            if end == line:
                _add(frames, buffer[start:after])
                start = after
            line = after
        self._line = line - start
        self._keep(buffer[start:])
        return frames

    def _keep(self, rest: bytes) -> None:
        self._buffer = rest
        self._size = 0
        self._grow(len(rest))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._limit:
            raise BackendProtocolError(f"an event of the stream is longer than {self._limit} bytes")

    def end(self) -> list[SSEFrame]:
        """The stream is over: a last frame without its blank line still counts here (engines forget it)."""
        rest = b"".join((self._buffer, *self._pieces))
        self._keep(b"")
        self._pieces.clear()
        frames: list[SSEFrame] = []
        if rest.strip():
            _add(frames, rest, closing=b"\n\n")
        return frames


def _line_end(buffer: bytes, start: int) -> tuple[int, int]:
    """Where the line that begins at `start` ends, and where the next one begins; (-1, -1) when it is not complete."""
    newline = buffer.find(b"\n", start)
    limit = newline if newline >= 0 else len(buffer)
    carriage = buffer.find(b"\r", start, limit)
    if carriage >= 0:
        return carriage, carriage + 2 if carriage + 1 == newline else carriage + 1
    return (newline, newline + 1) if newline >= 0 else (-1, -1)


def _add(frames: list[SSEFrame], raw: bytes, closing: bytes = b"") -> None:
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2:
        frames.append(SSEFrame("", raw[6:-2], raw))
        return
    event = ""
    data: list[bytes] = []
    for line in raw.splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            event = value.decode("utf-8", "replace")
    if data:
        frames.append(SSEFrame(event, b"\n".join(data), raw + closing))


class LineDecoder:
    """Lines out of bytes, as NDJSON has them: complete, not empty, without their end."""

    __slots__ = ("_limit", "_pieces", "_size")

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._limit = limit

    def feed(self, piece: bytes) -> list[bytes]:
        """Take bytes in; the lines that they complete."""
        if b"\n" not in piece:
            self._keep(piece)
            return []
        self._pieces.append(piece)
        lines = b"".join(self._pieces).split(b"\n")
        rest = lines.pop()
        self._pieces, self._size = [], 0
        self._keep(rest)
        return [line for line in (line.rstrip(b"\r") for line in lines) if line.strip()]

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size > self._limit:
                raise BackendProtocolError(f"a line of the stream is longer than {self._limit} bytes")

    def end(self) -> list[bytes]:
        """The stream is over: the last line, if it has no end."""
        rest = b"".join(self._pieces).rstrip(b"\r")
        self._pieces, self._size = [], 0
        return [rest] if rest.strip() else []
